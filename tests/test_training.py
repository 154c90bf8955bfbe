"""Steps, epochs and the loop of a task."""

import dataclasses
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import Array
from tiny import NORMALIZE, Coupled, OneLayer, assert_close, take, task, train, whole_epoch

from dlc_jax import models, sharding, training
from dlc_jax.data import ArraySource, Batch, Dataset, Examples
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.errors import InputError
from dlc_jax.models import parameters

KEY = jax.random.key(0)
TASK = task()


@pytest.fixture(scope="module")
def batch(few_digits: Dataset) -> Batch:
    return take(few_digits.train, 0, 20)


@pytest.fixture(scope="module")
def state() -> training.TrainState:
    return TASK.init(KEY)


step = jax.jit(TASK.step)


def test_a_state_is_a_pytree_of_arrays(state: training.TrainState) -> None:
    again = jax.jit(lambda state: state)(state)
    assert repr(jax.tree.structure(again)) == repr(jax.tree.structure(state))
    assert all(isinstance(leaf, Array) for leaf in jax.tree.leaves(state))


def test_a_step_is_sgd_on_the_mean_cross_entropy(state: Any, batch: Batch) -> None:
    def loss(params: Any) -> Array:
        images, labels = batch.examples
        logits = nnx.merge(state.graphdef, params, state.batch_stats)(NORMALIZE(images))
        chosen = jnp.take_along_axis(logits, jnp.asarray(labels)[:, None], 1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, 1) - chosen)

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    expected = jax.tree.map(lambda p, g: p - np.float32(0.01) * np.asarray(g), state.params, grads)
    after, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"].mean, value, rtol=1e-6)
    assert int(after.step) == 1
    assert_close(after.params, expected, atol=1e-6)


def test_a_step_leaves_its_arguments_alone(batch: Batch) -> None:
    state = TASK.init(KEY)
    before = jax.tree.map(np.array, state.params)
    step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, state.params, before)


def test_steps_on_one_batch_learn_it(state: Any, batch: Batch) -> None:
    errors = []
    for _ in range(40):
        state, metrics = step(state, batch)
        errors.append(float(metrics["error"].mean))
    assert errors[0] > 0.5
    assert errors[-1] == 0


@pytest.mark.parametrize("real", [1, 7])
@pytest.mark.parametrize("model", [OneLayer, Coupled])
def test_padding_of_weight_0_changes_nothing(few_digits: Dataset, model: Any, real: int) -> None:
    own = task(model)
    run = jax.jit(own.step)
    state = own.init(KEY)
    padded = dataclasses.replace(
        take(few_digits.train, 0, 20), mask=(np.arange(20) < real).astype(np.float32)
    )
    alone = take(few_digits.train, 0, real)
    (ours, metrics), (expected, plain) = run(state, padded), run(state, alone)
    assert_close(metrics, plain)
    assert_close(ours, expected)


def test_states_train_side_by_side_under_vmap(batch: Batch) -> None:
    states = [TASK.init(jax.random.key(seed)) for seed in (0, 1)]
    together, _ = jax.vmap(step, (0, None))(training.stack(states), batch)
    for ours, state in zip(training.unstack(together), states, strict=True):
        assert_close(ours.params, step(state, batch)[0].params, atol=1e-6)


def test_an_epoch_is_its_batches_in_order_with_the_remainder_last(
    state: Any, few_digits: Dataset
) -> None:
    after, metrics = training.train_steps(TASK, state, whole_epoch(few_digits.train, 100))
    losses = []
    for start in (0, 100, 200):
        state, one = step(state, take(few_digits.train, start, min(start + 100, 230)))
        losses.append(float(one["loss"].mean))
    assert int(after.step) == 3
    np.testing.assert_allclose(metrics["loss"].mean, losses, rtol=1e-5)
    assert_close(after.params, state.params, atol=1e-6)


@pytest.mark.parametrize("lecture", [False, True])
def test_nothing_passes_between_host_and_device_inside_an_epoch(
    few_digits: Dataset, lecture: bool
) -> None:
    def create(key: Array) -> nnx.Module:
        return models.create("lecture", rngs=nnx.Rngs(key))

    own = task(create) if lecture else TASK
    mesh = sharding.cpu_mesh(50) if lecture else None
    state = sharding.replicate(own.init(KEY), mesh)
    chunk = whole_epoch(few_digits.train, 50, mesh=mesh)
    epoch = training.train_steps.lower(own, state, chunk, None, mesh).compile()
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(epoch(state, chunk, None))
    program = str(epoch.as_text())
    assert not any(word in program for word in ("infeed", "outfeed", "callback", "host_compute"))


# No full batches, only full ones, and both.
@pytest.mark.parametrize(
    "batch_size",
    [pytest.param(20, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow), 8],
)
def test_without_jit_training_and_evaluation_are_the_same(
    batch_size: int, state: Any, few_digits: Dataset
) -> None:
    few = Examples(*(array[:20] for array in few_digits.train))
    chunk = whole_epoch(few, batch_size)

    def results() -> Any:
        after, metrics = training.train_steps(TASK, state, chunk)
        return after.params, metrics, training.evaluate_steps(TASK, state, chunk)

    with jax.disable_jit():
        plain = results()
    assert_close(plain, results())


def test_an_epoch_has_forward_mode_derivatives(state: Any, few_digits: Dataset) -> None:
    chunk = whole_epoch(Examples(*(array[:20] for array in few_digits.train)), 10)
    direction = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size)).reshape(p.shape), state.params)

    def loss(distance: Any) -> Array:
        params = jax.tree.map(lambda p, d: p + distance * d, state.params, direction)
        moved = dataclasses.replace(state, params=params)
        after, _ = training.train_steps(TASK, moved, chunk)
        return training.evaluate_steps(TASK, after, chunk)["loss"].mean

    _, slope = jax.jvp(loss, (0.0,), (1.0,))
    assert float(slope) == pytest.approx(float(jax.grad(loss)(0.0)), rel=1e-4)
    _, linear = jax.linearize(loss, 0.0)
    assert float(linear(1.0)) == pytest.approx(float(slope), rel=1e-4)


def test_augmentation_does_not_depend_on_the_batch_size(few_digits: Dataset) -> None:
    own = task(augmentation=Augmentation("alternating", 2, "reflect", 4))

    def augmented(batch_size: int) -> np.ndarray:
        chunk = whole_epoch(few_digits.train, batch_size, key=KEY)
        augment = jax.jit(jax.vmap(lambda batch: own.transform(batch, KEY)))
        images = np.asarray(augment(chunk).images).reshape(-1, 28, 28, 1)
        return images[np.argsort(np.asarray(chunk.index).ravel())]

    np.testing.assert_array_equal(augmented(46), augmented(23))


def test_evaluation_is_independent_of_the_batch_size(state: Any, few_digits: Dataset) -> None:
    sources = [ArraySource(few_digits.test, size) for size in (50, 17)]
    whole, parts = (training.predict(TASK, state, source) for source in sources)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    metrics, others = (training.means(training.evaluate(TASK, state, each)) for each in sources)
    wrong = whole.argmax(1) != few_digits.test.labels
    np.testing.assert_allclose(metrics["error"], wrong.mean(), rtol=1e-6)
    assert_close(metrics, others)


def test_test_time_augmentation_averages_logits(state: Any, few_digits: Dataset) -> None:
    source = ArraySource(few_digits.test, 50)

    def logits(images: np.ndarray, **options: Any) -> np.ndarray:
        own = ArraySource(Examples(images, few_digits.test.labels), 50)
        result: np.ndarray = training.predict(task(**options), state, own)
        return result

    images = np.asarray(few_digits.test.images)
    plain, flipped = logits(images), logits(images[:, :, ::-1])
    both = training.predict(task(tta_flip=True), state, source)
    np.testing.assert_allclose(both, (plain + flipped) / 2, rtol=1e-4, atol=1e-5)
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    moved = logits(padded[:, :-2, :-2]) + logits(padded[:, 2:, 2:])
    shifted = training.predict(task(tta_translate=1), state, source)
    np.testing.assert_allclose(shifted, plain / 2 + moved / 4, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(few_digits: Dataset) -> None:
    def trained(seed: int) -> str:
        state = TASK.init(jax.random.key(seed))
        progress, _ = train(TASK, few_digits, 50, state=state, num_epochs=1)
        return parameters.fingerprint(progress.state.params)

    assert trained(0) == trained(0) != trained(1)


def test_records_are_of_the_untrained_network_and_of_every_epoch(few_digits: Dataset) -> None:
    _, records = train(TASK, few_digits, 100)
    assert [record.epoch for record in records] == [0, 1, 2]
    assert [len(record.losses) for record in records] == [0, 3, 3]
    assert all(before.step < after.step for before, after in pairwise(records))
    # The last batch of 30 counts less than those of 100.
    weights = np.array([100, 100, 30]) / 230
    np.testing.assert_allclose(records[1].train["loss"], weights @ records[1].losses, rtol=1e-5)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_training_continues_within_an_epoch_bit_by_bit(few_digits: Dataset, stop: int) -> None:
    own = task(Coupled, optax.adam(0.01), Augmentation(translate=1))
    saved: list[training.Progress] = []

    class Save(training.Callback):
        def on_chunk_end(self, progress: training.Progress) -> None:
            copy = training.Progress(progress.state, progress.metrics, progress.seconds)
            saved.append(copy)

    options: dict[str, Any] = {"key": KEY, "max_chunk_steps": 2}
    whole, records = train(own, few_digits, 70, callbacks=[Save()], **options)
    source = ArraySource(few_digits.train, 70, key=KEY)
    test = ArraySource(few_digits.test, 20)
    resumed = saved[stop - 1]
    again = training.train(
        own, source, num_epochs=2, progress=resumed, key=KEY, test=test, max_chunk_steps=2
    )
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, whole.state.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.metrics, whole.metrics)
    assert again[-1].test == records[-1].test
    np.testing.assert_array_equal(again[-1].losses, records[-1].losses)


def test_callbacks_are_called_in_order_at_chunks_and_epochs(few_digits: Dataset) -> None:
    calls: list[Any] = []

    class Note(training.Callback):
        def on_train_begin(self, progress: training.Progress) -> None:
            calls.append("start")

        def on_chunk_end(self, progress: training.Progress) -> None:
            calls.append(progress.step)

        def on_epoch_end(self, progress: training.Progress, record: training.EpochRecord) -> None:
            calls.append(("epoch", record.epoch))

    train(TASK, few_digits, 50, callbacks=[Note()], max_chunk_steps=3)
    assert calls == ["start", ("epoch", 0), 3, 5, ("epoch", 1), 8, 10, ("epoch", 2)]


def test_a_loss_that_is_not_finite_stops_at_the_step_that_it_names(few_digits: Dataset) -> None:
    own = task(optimizer=optax.sgd(1e38))
    state, losses = own.init(KEY), []
    run = jax.jit(own.step)
    for start in range(0, 200, 50):
        state, metrics = run(state, take(few_digits.train, start, start + 50))
        losses.append(float(metrics["loss"].mean))
    first = 1 + int(np.flatnonzero(~np.isfinite(losses))[0])
    assert first > 1
    with pytest.raises(training.DivergedError, match=f"at step {first} .*smaller learning rate"):
        train(own, few_digits, 50, num_epochs=1)


def test_a_state_that_is_not_finite_after_the_last_step_is_named(few_digits: Dataset) -> None:
    def explode(updates: Any, state: Any, params: Any = None) -> Any:
        last = state == 4
        return jax.tree.map(lambda u: jnp.where(last, jnp.inf, u), updates), state + 1

    bomb = optax.GradientTransformation(lambda params: jnp.int32(0), explode)
    own = task(optimizer=optax.chain(optax.sgd(0.01), bomb))
    with pytest.raises(training.DivergedError, match=r"params\.layer\.\w+ is -?inf .*epoch 1"):
        train(own, few_digits, 50, num_epochs=1)


def test_a_program_that_needs_too_much_memory_is_refused_with_what_it_needs(
    few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 2**10}

    monkeypatch.setattr(jax, "local_devices", lambda: [Small()])
    with pytest.raises(training.OutOfMemoryError, match=r"needs .* GiB on a device of 0\.0 GiB"):
        train(TASK, few_digits, 50)


def test_a_task_that_is_not_classification_writes_its_own_step(few_digits: Dataset) -> None:
    """Two networks against each other, each with its optimizer."""
    sgd = optax.sgd(0.1)

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Pair:
        step: Array
        ours: Array
        theirs: Array
        opt_state: Any

    @dataclasses.dataclass(frozen=True)
    class Saddle:
        """Ours minimises, theirs maximises ours * theirs + ours**2 - theirs**2."""

        def init(self, key: Array) -> Pair:
            ours, theirs = jax.random.normal(key, (2,))
            return Pair(jnp.int32(0), ours, theirs, sgd.init((ours, theirs)))

        def step(self, state: Pair, batch: Batch, key: Any, reduce: Any = lambda x: x) -> Any:
            def value(ours: Array, theirs: Array) -> Array:
                return ours * theirs + ours**2 - theirs**2

            descent, ascent = jax.grad(value, (0, 1))(state.ours, state.theirs)
            weight = reduce(batch.weights.sum())
            grads = descent, -ascent
            updates, opt_state = sgd.update(grads, state.opt_state)
            ours, theirs = optax.apply_updates((state.ours, state.theirs), updates)
            gap = training.WeightedSum(weight * (ours**2 + theirs**2), weight)
            return Pair(state.step + 1, ours, theirs, opt_state), {"gap": gap}

        def evaluate(self, state: Pair, batch: Batch) -> training.Metrics:
            weight = batch.weights.sum()
            return {"gap": training.WeightedSum(weight * state.ours**2, weight)}

    for mesh in (None, sharding.cpu_mesh(50)):
        _, records = train(Saddle(), few_digits, 50, num_epochs=10, mesh=mesh)
        assert records[-1].test["gap"] < 1e-6 < records[0].test["gap"]


def test_batch_sizes_that_do_not_fit_are_refused(few_digits: Dataset) -> None:
    with pytest.raises(InputError, match="231 does not fit 230"):
        train(TASK, few_digits, 231)
