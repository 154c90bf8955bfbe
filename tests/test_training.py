import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import new_state
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from dlc_jax import models, sharding, training
from dlc_jax.data import Dataset, Examples, Normalise
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.errors import InputError
from dlc_jax.models import parameters
from dlc_jax.training import TrainState


def lecture_state() -> TrainState:
    model = models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
    return training.create_state(model, optax.sgd(0.1))


@pytest.fixture(scope="module")
def normalise(few_digits: Dataset) -> Normalise:
    return Normalise.fit(few_digits.train.images)


@pytest.fixture(scope="module")
def batch(few_digits: Dataset, normalise: Normalise) -> Examples:
    images, labels = (array[:20] for array in few_digits.train)
    return Examples(normalise(images), jnp.asarray(labels))


def test_the_state_is_a_pytree_of_arrays_that_jit_returns_whole() -> None:
    state = new_state()
    again = jax.jit(lambda state: state)(state)
    assert repr(jax.tree.structure(again)) == repr(jax.tree.structure(state))
    assert all(isinstance(leaf, Array) for leaf in jax.tree.leaves(state))


def test_a_step_is_sgd_on_the_cross_entropy(batch: Examples) -> None:
    state = new_state()

    def loss(params: Any) -> Array:
        logits = nnx.merge(state.graphdef, params, state.stats)(batch.images)
        chosen = jnp.take_along_axis(logits, jnp.asarray(batch.labels)[:, None], 1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, 1) - chosen)

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    expected = jax.tree.map(lambda p, g: p - np.float32(0.01) * np.asarray(g), state.params, grads)
    after, metrics = training.train_step(state, batch)
    np.testing.assert_allclose(metrics.loss, value, rtol=1e-6)
    assert int(after.step) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, expected)


def test_a_step_leaves_its_arguments_alone(batch: Examples) -> None:
    state = new_state()
    before = jax.tree.map(np.array, state.params)
    training.train_step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, state.params, before)


def test_steps_on_one_batch_learn_it(batch: Examples) -> None:
    state = new_state()
    errors = []
    for _ in range(40):
        state, metrics = training.train_step(state, batch)
        errors.append(float(metrics.error))
    assert errors[0] > 0.5
    assert errors[-1] == 0


def test_states_train_side_by_side_under_vmap(batch: Examples) -> None:
    states = [new_state(seed) for seed in (0, 1)]
    # One optimizer object for both, since it is part of the pytree's structure.
    states[1] = dataclasses.replace(states[1], optimizer=states[0].optimizer)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together, _ = jax.vmap(training.train_step, (0, None))(stacked, batch)
    for index, state in enumerate(states):
        alone, _ = training.train_step(state, batch)
        one = jax.tree.map(lambda leaf, i=index: leaf[i], together.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, alone.params)


def test_an_epoch_is_its_batches_in_order_with_what_is_left_over_last(
    few_digits: Dataset, normalise: Normalise
) -> None:
    state = new_state()
    after, metrics = training.train_epoch(state, few_digits.train, normalise, batch_size=100)
    losses = []
    for start in (0, 100, 200):
        images, labels = (array[start : start + 100] for array in few_digits.train)
        state, one = training.train_step(state, Examples(normalise(images), labels))
        losses.append(float(one.loss))
    assert int(after.step) == 3
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, state.params
    )


@pytest.mark.parametrize(
    ("new_state", "mesh"), [(new_state, None), (lecture_state, sharding.cpu_mesh(50))]
)
def test_nothing_passes_between_host_and_device_inside_an_epoch(
    few_digits: Dataset,
    normalise: Normalise,
    new_state: Callable[[], TrainState],
    mesh: Mesh | None,
) -> None:
    arguments = sharding.replicate((new_state(), few_digits.train, normalise), mesh)
    epoch = (
        jax.jit(partial(training.train_epoch, batch_size=50, mesh=mesh)).lower(*arguments).compile()
    )
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(epoch(*arguments))
    program = str(epoch.as_text())
    assert not any(word in program for word in ("infeed", "outfeed", "callback", "host_compute"))


# So many that there are no full batches, only full ones, and both.
@pytest.mark.parametrize(
    "batch_size",
    [pytest.param(32, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow), 8],
)
def test_without_jit_epochs_and_tests_are_the_same(
    batch_size: int, few_digits: Dataset, normalise: Normalise
) -> None:
    few = Examples(*(array[:20] for array in few_digits.train))
    state = new_state()

    def results() -> Any:
        after, metrics = training.train_epoch(state, few, normalise, batch_size=batch_size)
        return (
            after.params,
            metrics,
            training.evaluate(state, few, normalise, batch_size=batch_size),
        )

    with jax.disable_jit():
        plain = results()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, results())


def test_an_epoch_has_forward_mode_derivatives(few_digits: Dataset, normalise: Normalise) -> None:
    few = Examples(*(array[:20] for array in few_digits.train))
    state = new_state()
    direction = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size)).reshape(p.shape), state.params)

    def loss(step: Any) -> Array:
        params = jax.tree.map(lambda p, d: p + step * d, state.params, direction)
        moved = dataclasses.replace(state, params=params)
        after, _ = training.train_epoch(moved, few, normalise, batch_size=10)
        return training.evaluate(after, few, normalise)[1].loss

    _, slope = jax.jvp(loss, (0.0,), (1.0,))
    assert float(slope) == pytest.approx(float(jax.grad(loss)(0.0)), rel=1e-4)
    _, linear = jax.linearize(loss, 0.0)
    assert float(linear(1.0)) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("step", "examples", "left"), [(2, 20, 10), (4, 30, 20), (1, 15, 20)])
def test_examples_that_an_epoch_no_longer_has_are_refused(
    shuffled: bool,
    step: int,
    examples: int,
    left: int,
    few_digits: Dataset,
    normalise: Normalise,
) -> None:
    few = Examples(*(array[:30] for array in few_digits.train))
    state = dataclasses.replace(new_state(), step=jnp.asarray(step, jnp.int32))
    key = jax.random.key(0) if shuffled else None
    how: dict[str, Any] = {"batch_size": 10, "key": key, "examples": examples}
    with pytest.raises(InputError, match=f"^{examples} examples .* up to {left}$"):
        training.train_epoch(state, few, normalise, **how)


def test_inside_jit_examples_that_an_epoch_no_longer_has_make_everything_nan(
    few_digits: Dataset, normalise: Normalise
) -> None:
    few = Examples(*(array[:30] for array in few_digits.train))

    @jax.jit
    def train(state: TrainState) -> Any:
        return training.train_epoch(state, few, normalise, batch_size=10, examples=20)

    after, metrics = train(dataclasses.replace(new_state(), step=jnp.int32(2)))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves((after.params, metrics)))
    after, metrics = train(dataclasses.replace(new_state(), step=jnp.int32(4)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.params, metrics)))


def test_a_batch_that_is_not_the_one_its_changes_are_for_makes_everything_nan(
    few_digits: Dataset, normalise: Normalise
) -> None:
    augmentation = Augmentation(translate=1)
    images = few_digits.train.images[:25]
    changes = training.changes_of_epoch(
        jax.random.key(0), 0, images.shape, augmentation=augmentation
    )
    for step, size, right in ((1, 10, True), (2, 5, True), (2, 10, False), (0, 5, False)):
        state = dataclasses.replace(new_state(), step=jnp.int32(step))
        batch = Examples(images[:size], few_digits.train.labels[:size])
        _, metrics = training.train_batch(
            state, batch, normalise, changes, batch_size=10, augmentation=augmentation
        )
        assert np.isfinite(metrics.loss) == right


def test_evaluation_is_independent_of_the_batch_size(
    few_digits: Dataset, normalise: Normalise
) -> None:
    state = new_state()
    whole, metrics = training.evaluate(state, few_digits.test, normalise, batch_size=50)
    parts, _ = training.evaluate(state, few_digits.test, normalise, batch_size=17)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    wrong = np.asarray(whole).argmax(1) != few_digits.test.labels
    np.testing.assert_allclose(metrics.error, wrong.mean(), rtol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    few_digits: Dataset, normalise: Normalise
) -> None:
    def trained(seed: int) -> str:
        state, _ = training.train_epoch(new_state(seed), few_digits.train, normalise, batch_size=50)
        return parameters.fingerprint(state.params)

    assert trained(0) == trained(0) != trained(1)


def test_fit_reports_the_untrained_network_and_every_epoch(
    few_digits: Dataset, normalise: Normalise
) -> None:
    reports = list(training.fit(new_state(), few_digits, normalise, epochs=2, batch_size=50))
    assert [report.epoch for report in reports] == [0, 1, 2]
    assert [len(report.losses) for report in reports] == [0, 5, 5]
    assert all(a.state.step < b.state.step for a, b in pairwise(reports))


def test_a_loss_that_is_not_finite_stops_at_the_step_that_it_names(
    few_digits: Dataset, normalise: Normalise
) -> None:
    state = new_state(optimizer=optax.sgd(1e38))
    losses = []
    for start in range(0, 200, 50):
        images, labels = (array[start : start + 50] for array in few_digits.train)
        state, metrics = training.train_step(state, Examples(normalise(images), labels))
        losses.append(float(metrics.loss))
    first = 1 + int(np.flatnonzero(~np.isfinite(losses))[0])
    assert first > 1
    reports = training.fit(
        new_state(optimizer=optax.sgd(1e38)), few_digits, normalise, epochs=1, batch_size=50
    )
    assert next(reports).epoch == 0
    with pytest.raises(InputError, match=f"at step {first} .*smaller learning rate"):
        next(reports)


@pytest.mark.parametrize("batch_size", [0, -1, 231])
def test_batch_sizes_that_do_not_fit_are_refused_at_once(
    few_digits: Dataset, normalise: Normalise, batch_size: int
) -> None:
    with pytest.raises(InputError, match=f"{batch_size} does not fit few's 230"):
        training.fit(new_state(), few_digits, normalise, epochs=1, batch_size=batch_size)
