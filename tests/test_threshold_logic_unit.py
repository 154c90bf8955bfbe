import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc_jax import training
from dlc_jax.data import Examples, Normalize
from dlc_jax.data.batching import Batch
from dlc_jax.errors import InputError
from dlc_jax.models import parameters
from dlc_jax.models.threshold_logic_unit import ThresholdLogicUnit, fires

# Each function of any number of truth values, in Python's own terms.
MEANING = {
    "and": all,
    "or": any,
    "not": lambda values: not any(values),
    "xor": lambda values: sum(values) % 2 == 1,
}


def network(function: str, inputs: int = 2) -> ThresholdLogicUnit:
    return ThresholdLogicUnit(
        image_shape=(1, inputs, 1), num_classes=2, rngs=nnx.Rngs(0), function=function
    )


@jax.jit
def stages_of(model: ThresholdLogicUnit, x: Any) -> dict[str, jax.Array]:
    return model.stages(x)


def images(rows: Any) -> np.ndarray:
    """Inputs as images, of which a pixel above 0 is on."""
    return np.where(rows, 0.5, -0.5)[:, None, :, None].astype(np.float32)


def truth_table(inputs: int) -> np.ndarray:
    return np.array(list(itertools.product([False, True], repeat=inputs)))


@pytest.mark.parametrize("function", MEANING)
@pytest.mark.parametrize("inputs", [1, 2, 3, 5])
def test_truth_tables(function: str, inputs: int) -> None:
    rows = truth_table(inputs)
    logits = np.asarray(stages_of(network(function, inputs), images(rows))["logits"])
    expected = [MEANING[function](row) for row in rows]
    np.testing.assert_array_equal(logits.argmax(1), expected)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from(sorted(MEANING)))
def test_functions_of_many_inputs(values: list[bool], function: str) -> None:
    logits = stages_of(network(function, len(values)), images([values]))["logits"]
    expected = MEANING[function](values)
    np.testing.assert_array_equal(logits, [[not expected, expected]])


def test_xor_of_two_inputs_is_or_and_not_and() -> None:
    rows = truth_table(2)
    stages = network("xor").stages(jnp.asarray(images(rows)))
    assert list(stages) == ["inputs", "at_least", "exactly", "or", "logits"]
    np.testing.assert_array_equal(stages["inputs"], rows)
    np.testing.assert_array_equal(stages["at_least"], [[0, 0], [1, 0], [1, 0], [1, 1]])
    np.testing.assert_array_equal(stages["exactly"], [[0], [1], [1], [0]])
    np.testing.assert_array_equal(stages["or"], stages["exactly"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.lists(st.integers(-2, 3), min_size=4, max_size=4),
    st.integers(0, 6),
)
def test_one_active_inhibitory_synapse_prevents_firing(
    active: list[bool], synapses: list[int], threshold: int
) -> None:
    pairs = list(zip(active, synapses, strict=True))
    excitation = sum(count for on, count in pairs if on and count > 0)
    inhibited = any(on and count < 0 for on, count in pairs)
    expected = excitation >= threshold and not inhibited
    result = fires(np.array([active]), np.array(synapses)[:, None], np.array([threshold]))
    assert result.tolist() == [[expected]]


def computable(weighted_sum: bool) -> set[tuple[bool, ...]]:
    """All truth tables of two inputs that some single unit of small weights computes."""
    tables = set()
    rows = truth_table(2)
    weights = range(-4, 5)
    pairs = np.array(list(itertools.product(weights, weights))).T
    for threshold in range(-9, 10):
        if weighted_sum:
            fire = rows @ pairs >= threshold
        else:
            fire = np.asarray(fires(rows, pairs, np.full(pairs.shape[1], threshold)))
        tables |= set(map(tuple, fire.T.tolist()))
    return tables


XOR, XNOR = (False, True, True, False), (True, False, False, True)


def test_no_single_unit_computes_xor() -> None:
    assert not computable(weighted_sum=False) & {XOR, XNOR}


def test_linear_threshold_units_compute_all_functions_but_xor_and_xnor() -> None:
    every = set(itertools.product([False, True], repeat=4))
    assert every - computable(weighted_sum=True) == {XOR, XNOR}


def test_all_channels_are_inputs() -> None:
    model = ThresholdLogicUnit(
        image_shape=(2, 2, 3), num_classes=2, rngs=nnx.Rngs(0), function="and"
    )
    x = np.ones((2, 2, 2, 3), np.float32)
    x[1, 1, 0, 2] = 0
    np.testing.assert_array_equal(stages_of(model, x)["logits"], [[0, 1], [1, 0]])


def test_synapses_are_saved_and_not_trained(tmp_path: Any) -> None:
    model = network("xor", 3)
    assert not jax.tree.leaves(nnx.state(model, nnx.Param))
    rows = images(truth_table(3))
    task = training.classification(lambda key: model, optax.sgd(0.1), Normalize((0.0,), (1.0,)))
    batch = Batch.from_examples(Examples(jnp.asarray(rows), jnp.zeros(8, jnp.int32)))
    state, metrics = task.step(task.init(jax.random.key(0)), batch)
    assert metrics["error"].mean == 0.5
    parameters.save(tmp_path / "synapses", state.model)
    erased = jax.tree.map(jnp.zeros_like, network("xor", 3))
    again = parameters.load(tmp_path / "synapses", erased)
    logits = [stages_of(each, rows)["logits"] for each in (again, model)]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": "nand"}, "'nand'; choose from and, or, not, xor"),
        ({"num_classes": 10}, "2 classes .*, not 10"),
        ({"image_shape": (0, 2, 1)}, r"\(0, 2, 1\) have no pixels"),
    ],
)
def test_invalid_arguments_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ThresholdLogicUnit(rngs=nnx.Rngs(0), **arguments)
