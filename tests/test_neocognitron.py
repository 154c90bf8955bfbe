"""The neocognitron against Fukushima's equations and rule, written again in plain NumPy."""

import itertools
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dlc_jax import data, training
from dlc_jax.data import Dataset
from dlc_jax.data.batching import Batch
from dlc_jax.errors import InputError
from dlc_jax.models import neocognitron, parameters
from dlc_jax.models.neocognitron import Learned, Neocognitron

EXAMPLE = Path(__file__).parents[1] / "examples" / "neocognitron.py"

# Compiled as a whole, which takes far less time than to compile their operations one by one.
s_cells = jax.jit(neocognitron.s_cells, static_argnames="selectivity")
representatives = jax.jit(neocognitron.representatives, static_argnames="column")
reinforce = jax.jit(neocognitron.reinforce, static_argnames=("selectivity", "column"))
activity = jax.jit(neocognitron.activity)
stages_of = jax.jit(Neocognitron.stages)


def network(seed: int = 0, **options: Any) -> Neocognitron:
    arguments = {"image_shape": (28, 28, 1), "num_classes": 10, "planes": (6, 8, 10), **options}
    return Neocognitron(rngs=nnx.Rngs(seed), **arguments)


@pytest.fixture(scope="module")
def images(digits: Dataset) -> np.ndarray:
    return np.asarray(data.Normalize.fit(digits.train.images)(digits.train.images[:100]))


@pytest.fixture(scope="module")
def trained(images: np.ndarray) -> Neocognitron:
    return neocognitron.self_organize(network(), images[:20], jax.random.key(0))


def learned_weights(model: nnx.Module) -> dict[Any, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, Learned))
    return {path: np.asarray(variable[...]) for path, variable in flat}


# The paper's equations cell by cell, with the constants that the module's docstring calls ours.


def place_weights(channels: int) -> np.ndarray:
    c = np.array([[[0.9 ** np.hypot(i, j)] * channels for j in range(-2, 3)] for i in range(-2, 3)])
    return c / c.sum()


def read(u: np.ndarray, i: int, j: int) -> np.ndarray:
    seen = np.zeros((5, 5, u.shape[2]))
    for di, dj in itertools.product(range(5), repeat=2):
        if 0 <= i + di - 2 < u.shape[0] and 0 <= j + dj - 2 < u.shape[1]:
            seen[di, dj] = u[i + di - 2, j + dj - 2]
    return seen


def v_cell(seen: np.ndarray) -> float:
    return float(np.sqrt((place_weights(seen.shape[2]) * seen**2).sum()))


def s_layer(u: np.ndarray, a: np.ndarray, b: np.ndarray, r: float) -> np.ndarray:
    s = np.zeros((*u.shape[:2], len(b)))
    for i, j, k in np.ndindex(*s.shape):
        seen = read(u, i, j)
        inhibition = 2 * r / (1 + r) * b[k] * v_cell(seen)
        s[i, j, k] = r * max(0, (1 + (a[..., k] * seen).sum()) / (1 + inhibition) - 1)
    return s


def one_lesson(u: np.ndarray, a: np.ndarray, b: np.ndarray, r: float) -> Any:
    """The weights after one image, by sorting cells instead of comparing arrays."""
    s = s_layer(u, a, b, r)
    starts = [sorted({*range(0, size - 4, 3), size - 5}) for size in u.shape[:2]]
    best: dict[int, tuple[float, int, int]] = {}
    for top, left in itertools.product(*starts):
        column = itertools.product(range(top, top + 5), range(left, left + 5), range(len(b)))
        i, j, k = max(column, key=lambda cell: s[cell])
        if s[i, j, k] > 0:
            best[k] = max(best.get(k, (0.0, 0, 0)), (s[i, j, k], i, j))
    a, b = a.copy(), b.copy()
    for k, (_, i, j) in best.items():
        a[..., k] += 100 * place_weights(u.shape[2]) * read(u, i, j)
        b[k] += 50 * v_cell(read(u, i, j))
    return a, b, best


def as_jax(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def some_weights(rng: np.random.Generator, channels: int, planes: int) -> Any:
    return rng.uniform(0, 0.5, (5, 5, channels, planes)), rng.uniform(0, 0.5, planes)


def test_s_cells_equal_numpy(rng: np.random.Generator) -> None:
    u, (a, b) = rng.uniform(0, 1, (9, 7, 2)), some_weights(rng, 2, 3)
    result = s_cells(*as_jax(u[None], a, b, place_weights(2)), selectivity=1.5)
    expected = s_layer(u, a, b, 1.5)
    assert (expected > 0).any()
    np.testing.assert_allclose(result[0], expected, rtol=1e-4, atol=1e-4)


def test_c_cells_equal_numpy(rng: np.random.Generator) -> None:
    s = rng.uniform(0, 1, (9, 9, 4)) * (rng.uniform(0, 1, (9, 9, 4)) > 0.8)
    layer = neocognitron.CLayer((5, 5), step=2, padding="VALID")
    result = layer(*as_jax(s[None]))
    expected = np.zeros((3, 3, 4))
    for i, j in np.ndindex(3, 3):
        sums = np.zeros(4)
        for di, dj in itertools.product(range(-2, 3), repeat=2):
            sums += 0.25 * 0.8 ** np.hypot(di, dj) * s[2 * i + 2 + di, 2 * j + 2 + dj]
        x = np.maximum((1 + sums) / (1 + sums.mean()) - 1, 0)
        expected[i, j] = x / (0.5 + x)
    assert (expected == 0).any()
    assert (expected > 0).any()
    np.testing.assert_allclose(result[0], expected, rtol=1e-5, atol=1e-6)


def test_learning_rule_equals_numpy(rng: np.random.Generator) -> None:
    a, b = some_weights(rng, 2, 5)
    ours, c = tuple(as_jax(a, b)), as_jax(place_weights(2))
    how_many = set()
    for _ in range(4):
        u = rng.uniform(0, 1, (11, 9, 2)) * (rng.uniform(0, 1, (11, 9, 2)) > 0.5)
        a, b, taught = one_lesson(u, a, b, 1.5)
        ours = reinforce(*ours, *c, *as_jax(u), selectivity=1.5, column=5)
        how_many.add(len(taught))
        for result, expected in zip(ours, (a, b), strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    assert how_many - {0, 5}  # some planes learned while others did not


def test_representative_is_the_largest_candidate_of_a_plane() -> None:
    s = np.zeros((6, 6, 3), np.float32)
    # Columns of 3x3 that touch: three candidates in plane 0, and plane 1 with one.
    s[1, 1, 0], s[1, 4, 0], s[4, 1, 0] = 0.5, 0.9, 0.7
    s[4, 4, 1] = 0.3
    s[4, 3, 2] = 0.2  # loses to plane 1 in its own column
    rows, columns, found = representatives(jnp.asarray(s), column=3)
    assert found.tolist() == [True, True, False]
    assert (rows[:2].tolist(), columns[:2].tolist()) == ([1, 4], [4, 4])


def test_two_planes_learn_two_bars() -> None:
    bars = np.zeros((2, 5, 5, 1), np.float32)
    bars[0, 2] = bars[1, :, 2] = 1
    layer = neocognitron.SLayer(1, 4, selectivity=2.0, column=5, rngs=nnx.Rngs(0))
    weights = layer.a[...], layer.b[...]
    for bar in (*bars, *bars):
        weights = reinforce(*weights, layer.c[...], jnp.asarray(bar), selectivity=2.0, column=5)
    inhibited = np.asarray(weights[1]) > 0
    assert inhibited.sum() == 2
    responses = s_cells(jnp.asarray(bars), *weights, layer.c[...], selectivity=2.0).max((1, 2))
    own = np.asarray(responses)[:, inhibited]
    assert sorted(own.argmax(0).tolist()) == [0, 1]
    np.testing.assert_array_equal((own > 0).sum(0), [1, 1])  # silent at the other bar


def test_trained_cell_responds_by_cosine_similarity(rng: np.random.Generator) -> None:
    known, *others = rng.uniform(0, 1, (6, 5, 5, 1)) * (rng.uniform(0, 1, (6, 5, 5, 1)) > 0.4)
    r, c = 1.5, place_weights(1)
    q = 1e7  # as after many lessons; then the equation's ones no longer matter
    a, b = q * c * known, q / 2 * v_cell(known)
    for pattern in (known, *others):
        cosine = (c * known * pattern).sum() / (v_cell(known) * v_cell(pattern))
        response = s_cells(*as_jax(pattern[None], a[..., None], np.array([b]), c), selectivity=r)[
            0, 2, 2, 0
        ]
        expected = r * max(0, (1 + r) / r * cosine - 1)
        assert float(response) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_layers_learn_from_the_trained_layer_below(images: np.ndarray) -> None:
    model = network()
    after = neocognitron.self_organize(model, images[:1], jax.random.key(0))
    stages = stages_of(after, images[:5])
    below = (activity(images[:5]), stages["c1"], stages["c2"])
    for u, name, column in zip(below, ("s1", "s2", "s3"), (5, 5, 3), strict=True):
        old, new = (getattr(m, name) for m in (model, after))
        expected = reinforce(
            old.a[...], old.b[...], old.c[...], u[0], selectivity=old.selectivity, column=column
        )
        assert float(expected[1].max()) > 0
        np.testing.assert_allclose(new.a[...], expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(new.b[...], expected[1], rtol=1e-4, atol=1e-5)


def test_self_organize_is_a_pure_function_of_the_key(images: np.ndarray) -> None:
    model = network()
    before = learned_weights(model)
    first, second, other = (
        learned_weights(neocognitron.self_organize(model, images[:20], jax.random.key(seed)))
        for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, before, learned_weights(model))
    assert any((first[path] != other[path]).any() for path in first)


def test_planes_are_translation_equivariant(trained: Neocognitron, images: np.ndarray) -> None:
    # By four pixels, the distance between two cells of C2; nothing leaves the image.
    margin = ((0, 0), (6, 6), (6, 6), (0, 0))
    centre = np.pad(activity(images[:5, 6:-6, 6:-6]), margin)
    centred, shifted = (stages_of(trained, x) for x in (centre, np.roll(centre, (4, -4), (1, 2))))
    for name, cells in (("s1", 4), ("c1", 2), ("s2", 2), ("c2", 1)):
        moved = np.roll(centred[name], (cells, -cells), (1, 2))
        inner = np.s_[:, 2 * cells : -2 * cells, 2 * cells : -2 * cells]
        assert np.asarray(centred[name]).max() > 0
        result = np.asarray(shifted[name])[inner]
        np.testing.assert_allclose(result, moved[inner], rtol=1e-3, atol=1e-4)


def test_shapes_of_stages(trained: Neocognitron, images: np.ndarray) -> None:
    stages = jax.eval_shape(Neocognitron.stages, trained, images[:2])
    shapes = [(name, stage.shape[1:]) for name, stage in stages.items()]
    assert shapes == [
        ("s1", (28, 28, 6)),
        ("c1", (14, 14, 6)),
        ("s2", (14, 14, 8)),
        ("c2", (7, 7, 8)),
        ("s3", (7, 7, 10)),
        ("c3", (1, 1, 10)),
        ("logits", (10,)),
    ]


def test_invariance_to_brightness_and_contrast(trained: Neocognitron, images: np.ndarray) -> None:
    u0 = np.asarray(activity(images[:5]))
    np.testing.assert_allclose((u0.min((1, 2, 3)), u0.max((1, 2, 3))), ([0] * 5, [1] * 5))
    usual, changed = (stages_of(trained, x)["logits"] for x in (images[:5], 3 * images[:5] + 7))
    np.testing.assert_allclose(changed, usual, rtol=1e-3, atol=1e-4)
    blank = stages_of(trained, jnp.ones((5, 28, 28, 1)))
    assert {np.asarray(blank[name]).max() for name in ("s1", "c1", "s2", "c2", "s3", "c3")} == {0.0}


def test_training_changes_only_the_readout(
    trained: Neocognitron, digits: Dataset, images: np.ndarray
) -> None:
    identity = data.Normalize((0.0,), (1.0,))
    task = training.classification(lambda key: trained, optax.adam(0.01), identity)
    state, step = task.init(jax.random.key(0)), jax.jit(task.step)
    assert {path[0] for path, _ in nnx.to_flat_state(state.params)} == {"readout"}
    examples = data.Examples(jnp.asarray(images), jnp.asarray(digits.train.labels[:100]))
    losses = []
    for _ in range(20):
        state, metrics = step(state, Batch.from_examples(examples))
        losses.append(float(metrics["loss"].mean))
    assert losses[-1] < 0.5 * losses[0]
    jax.tree.map(
        np.testing.assert_array_equal, learned_weights(trained), learned_weights(state.model)
    )


def test_learned_weights_are_saved(
    trained: Neocognitron, images: np.ndarray, tmp_path: Path
) -> None:
    parameters.save(tmp_path / "cells", trained)
    restored = parameters.load(tmp_path / "cells", network(seed=1))
    expected, result = (stages_of(model, images[:5])["logits"] for model in (trained, restored))
    np.testing.assert_array_equal(result, expected)


def test_bfloat16_computation_keeps_float32_parameters(images: np.ndarray) -> None:
    model = network(dtype=jnp.bfloat16)
    model = neocognitron.self_organize(model, images[:20], jax.random.key(0))
    stages = stages_of(model, images[:2])
    assert {stage.dtype for stage in stages.values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (15, 28, 1)}, "16x16, not 15x28"),
        ({"planes": (24, 24)}, r"planes .*not \(24, 24\)"),
        ({"selectivity": (1.0, 0.0, 1.0)}, r"selectivity .*not \(1.0, 0.0, 1.0\)"),
    ],
)
def test_invalid_arguments_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(**options)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_cells_halve_the_error_of_pixels_with_the_same_readout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = runpy.run_path(str(EXAMPLE))["main"]
    # Layers read alone take as long as all of them.
    main.__globals__["READ"] = ("pixels", "all cells")
    main("mnist-5k", "1")
    # Labelled digits; errors on pixels and on all cells, in percent.
    table = np.loadtxt(capsys.readouterr().out.splitlines()[1:])
    assert table[:, 0].tolist() == [100, 500, 1000]
    pixels, cells = table[:, 1], table[:, -1]
    assert (cells <= 0.5 * pixels).all()
    assert (cells <= [15, 7, 5.5]).all()
