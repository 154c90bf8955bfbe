from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc_jax.errors import InputError
from dlc_jax.runs import recipes
from dlc_jax.training import optimizers


# At the beginning, a quarter, a half, three quarters, and the end, as parts of the peak.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("step", [1, 1, 0.1, 0.01, 0.01]),
        ("triangular", [0.2, 1 - 0.93 * 2 / 77, 1 - 0.93 * 27 / 77, 1 - 0.93 * 52 / 77, 0.07]),
        ("cosine", [1 / 6, *(0.5 + 0.5 * np.cos(np.pi * np.array([20, 45, 70, 95]) / 95))]),
    ],
)
def test_schedules_have_their_closed_forms(name: str, expected: list[float]) -> None:
    rate = optimizers.schedule(name, 3.0, 100)
    rates = [float(rate(step)) / 3 for step in (0, 25, 50, 75, 100)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_sgd_is_nesterovs_with_decay_of_weights_alone_and_faster_biases() -> None:
    params = {"conv": {"kernel": jnp.array(2.0), "bias": jnp.array(3.0)}}
    grads = {"conv": {"kernel": jnp.array(0.5), "bias": jnp.array(0.25)}}
    optimizer = optimizers.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01, bias_factor=4.0)
    state = optimizer.init(params)
    kernel, bias, velocity = 2.0, 3.0, 0.0
    for _ in range(3):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + 1
        step = 1 + 0.9 * velocity
        kernel -= 0.1 * (0.5 * step + 0.01 * kernel)
        bias -= 0.1 * 4 * 0.25 * step
    assert float(params["conv"]["kernel"]) == pytest.approx(kernel, rel=1e-5)
    assert float(params["conv"]["bias"]) == pytest.approx(bias, rel=1e-5)


def test_lookahead_goes_back_to_an_average_that_keeps_more_and_more_of_itself() -> None:
    params, grads = {"w": jnp.array(1.0)}, {"w": jnp.array(1.0)}
    optimizer = optimizers.lookahead(optax.sgd(0.1), steps=7, period=2)
    state = optimizer.init(params)
    fast = slow = 1.0
    for step in range(1, 8):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        fast -= 0.1
        if step % 2 == 0 or step == 7:
            keep = 1.0 if step == 7 else 0.95**2 * (step / 7) ** 3
            fast = slow = keep * slow + (1 - keep) * fast
        assert float(params["w"]) == pytest.approx(fast, rel=1e-5)


def test_averaging_ends_at_the_exponential_average_of_all_steps() -> None:
    params, grads = {"w": jnp.array(1.0)}, {"w": jnp.array(1.0)}
    optimizer = optimizers.averaged(optax.sgd(0.1), steps=4, decay=0.7)
    state = optimizer.init(params)
    values = []
    for step in range(1, 5):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        values.append(1 - 0.1 * step)
        if step < 4:
            assert float(params["w"]) == pytest.approx(values[-1], rel=1e-5)
    weights = 0.7 ** np.arange(3, -1, -1)
    assert float(params["w"]) == pytest.approx(np.average(values, weights=weights), rel=1e-5)


def test_what_is_frozen_stays_as_it_is_after_its_steps() -> None:
    params = {"first": {"whitening_bias": jnp.array(1.0), "kernel": jnp.array(1.0)}}
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer = optimizers.freeze_after(optax.sgd(0.1), 2, "whitening_bias")
    state = optimizer.init(params)
    for _ in range(5):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert float(params["first"]["whitening_bias"]) == pytest.approx(0.8)
    assert float(params["first"]["kernel"]) == pytest.approx(0.5)


def test_muons_steps_of_kernels_are_orthogonal_and_those_of_biases_adams() -> None:
    key = jax.random.key(0)
    params = {"conv": {"kernel": jnp.zeros((3, 3, 2, 8)), "bias": jnp.zeros(8)}}
    grads = {"conv": {"kernel": jax.random.normal(key, (3, 3, 2, 8)), "bias": jnp.arange(8.0) - 4}}
    optimizer = optimizers.create("muon", 0.01, momentum=0.9, nesterov=False, bias_factor=3.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    step = np.asarray(updates["conv"]["kernel"]).reshape(18, 8)
    assert np.sqrt((step**2).mean()) == pytest.approx(0.2 * 0.01, rel=0.2)
    stretches = np.linalg.svd(step)[1] / np.linalg.norm(step) * 8**0.5
    before = np.linalg.svd(np.asarray(grads["conv"]["kernel"]).reshape(18, 8))[1]
    assert stretches.max() / stretches.min() < 2 < before.max() / before.min()
    expected = -3 * 0.01 * np.sign(np.arange(8) - 4)
    np.testing.assert_allclose(updates["conv"]["bias"], expected, rtol=1e-3)


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 30, 1000])
def test_no_schedule_loses_a_step_on_a_rate_of_zero(name: str, steps: int) -> None:
    rate = optimizers.schedule(name, 3.0, steps)
    rates = [float(rate(step)) for step in (0, steps // 2, steps - 1)]
    assert min(rates) > 0
    assert max(rates) <= 3 + 1e-6


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adamw", 0.1)])
def test_adams_steps_are_its_papers_with_decay_of_weights_alone(name: str, decay: float) -> None:
    params: Any = {"conv": {"kernel": jnp.array(2.0), "bias": jnp.array(3.0)}}
    optimizer = optimizers.create(name, 0.01, weight_decay=decay, bias_factor=4.0)
    state = optimizer.init(params)
    expected, first, second = {"kernel": 2.0, "bias": 3.0}, 0.0, 0.0
    for step, grad in enumerate((0.5, -0.25, 1.0), 1):
        grads = {"conv": {"kernel": jnp.array(grad), "bias": jnp.array(grad)}}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
        change = mean / (square**0.5 + 1e-8)
        expected["kernel"] -= 0.01 * (change + decay * expected["kernel"])
        expected["bias"] -= 0.01 * 4 * change
    for kind, value in expected.items():
        assert float(params["conv"][kind]) == pytest.approx(value, rel=1e-5)


def test_adam_refuses_a_weight_decay_that_adamw_takes() -> None:
    with pytest.raises(InputError, match=r"weight decay, such as 0\.1; choose adamw"):
        optimizers.create("adam", 0.01, weight_decay=0.1)


def test_another_optimizer_comes_with_its_usual_numbers_unless_others_are_told() -> None:
    recipe = recipes.find("cifar10-cpu")
    adam = recipe.changed(optimizer="adam", momentum=0.8)
    assert (adam.learning_rate, adam.momentum, adam.weight_decay) == (0.001, 0.8, 0.0)
    assert recipe.changed(optimizer="sgd") == recipe
    for name in optimizers.OPTIMIZERS:
        recipe.changed(optimizer=name).create_optimizer(100)


def test_every_optimizer_gives_the_same_under_jit() -> None:
    params: Any = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    rate = optimizers.schedule("triangular", 0.1, 2)
    for name in optimizers.OPTIMIZERS:
        decay = 0.0 if name == "adam" else 0.1
        inside = optimizers.create(name, rate, momentum=0.9, nesterov=True, weight_decay=decay)
        optimizer = optimizers.averaged(optimizers.lookahead(inside, 2, 2), 2, 0.9)
        results = []
        for update in (optimizer.update, jax.jit(optimizer.update)):
            after, state = params, optimizer.init(params)
            for _ in range(2):
                updates, state = update(params, state, after)
                after = optax.apply_updates(after, updates)
            results.append(after)
        for ours, expected in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5)
            assert not np.allclose(ours, 1)
