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
from jax.sharding import Mesh

from dlc_jax import models, parameters, sharding, training
from dlc_jax.data import Dataset, Examples, Normalise
from dlc_jax.errors import InputError
from dlc_jax.training import TrainState


def new_state(seed: int = 0, learning_rate: float = 0.1) -> TrainState:
    model = models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(seed))
    return training.create_state(model, optax.sgd(learning_rate))


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
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
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
    states = [new_state(seed, 0.1) for seed in (0, 1)]
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


@pytest.mark.parametrize("mesh", [None, sharding.cpu_mesh(50)])
def test_nothing_passes_between_host_and_device_inside_an_epoch(
    few_digits: Dataset, normalise: Normalise, mesh: Mesh | None
) -> None:
    arguments = sharding.replicate((new_state(), few_digits.train, normalise), mesh)
    epoch = training.train_epoch.lower(*arguments, batch_size=50, mesh=mesh).compile()
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(epoch(*arguments))
    program = str(epoch.as_text())
    assert not any(word in program for word in ("infeed", "outfeed", "callback", "host_compute"))


def test_evaluation_is_independent_of_the_batch_size(
    few_digits: Dataset, normalise: Normalise
) -> None:
    state = new_state()
    whole, metrics = training.evaluate(state, few_digits.test, normalise, batch_size=50)
    parts, _ = training.evaluate(state, few_digits.test, normalise, batch_size=17)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    wrong = np.asarray(whole).argmax(1) != few_digits.test.labels
    np.testing.assert_allclose(metrics.error, wrong.mean(), rtol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(digits: Dataset) -> None:
    normalise = Normalise.fit(digits.train.images)

    def trained(seed: int) -> str:
        state, _ = training.train_epoch(new_state(seed), digits.train, normalise, batch_size=100)
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
    state = new_state(learning_rate=1e25)
    losses = []
    for start in range(0, 200, 50):
        images, labels = (array[start : start + 50] for array in few_digits.train)
        state, metrics = training.train_step(state, Examples(normalise(images), labels))
        losses.append(float(metrics.loss))
    first = 1 + int(np.flatnonzero(~np.isfinite(losses))[0])
    reports = training.fit(
        new_state(learning_rate=1e25), few_digits, normalise, epochs=1, batch_size=50
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
