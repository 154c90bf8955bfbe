from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc_jax.errors import InputError
from dlc_jax.runs import recipes
from dlc_jax.training import optimizers


# After 0, 25, 50, 75 and 100 % of the steps, as fractions of the peak.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("step", [1, 1, 0.1, 0.01, 0.01]),
        ("triangular", [0.2, 1 - 0.93 * 2 / 77, 1 - 0.93 * 27 / 77, 1 - 0.93 * 52 / 77, 0.07]),
        ("cosine", [1 / 6, *(0.5 + 0.5 * np.cos(np.pi * np.array([20, 45, 70, 95]) / 95))]),
    ],
)
def test_schedules_match_their_closed_forms(name: str, expected: list[float]) -> None:
    rate = optimizers.create_schedule(name, 3.0, 100)
    rates = [float(rate(step)) / 3 for step in (0, 25, 50, 75, 100)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_sgd_has_nesterov_momentum_weight_decay_and_a_bias_multiplier() -> None:
    params = {"conv": {"kernel": jnp.array(2.0), "bias": jnp.array(3.0)}}
    grads = {"conv": {"kernel": jnp.array(0.5), "bias": jnp.array(0.25)}}
    optimizer = optimizers.sgd(
        0.1, momentum=0.9, nesterov=True, weight_decay=0.01, bias_lr_multiplier=4.0
    )
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


def test_lookahead_synchronizes_with_a_growing_decay() -> None:
    params, grads = {"w": jnp.array(1.0)}, {"w": jnp.array(1.0)}
    optimizer = optimizers.lookahead(optax.sgd(0.1), num_steps=7, sync_period=2)
    state = optimizer.init(params)
    fast = slow = 1.0
    for step in range(1, 8):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        fast -= 0.1
        if step % 2 == 0 or step == 7:
            decay = 1.0 if step == 7 else 0.95**2 * (step / 7) ** 3
            fast = slow = decay * slow + (1 - decay) * fast
        assert float(params["w"]) == pytest.approx(fast, rel=1e-5)


def test_ema_of_params_ends_at_the_moving_average_of_all_steps() -> None:
    params, grads = {"w": jnp.array(1.0)}, {"w": jnp.array(1.0)}
    optimizer = optimizers.ema_of_params(optax.sgd(0.1), num_steps=4, decay=0.7)
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


def test_frozen_parameters_no_longer_change() -> None:
    params = {"first": {"whitening_bias": jnp.array(1.0), "kernel": jnp.array(1.0)}}
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer = optimizers.freeze_after(optax.sgd(0.1), 2, "whitening_bias")
    state = optimizer.init(params)
    for _ in range(5):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert float(params["first"]["whitening_bias"]) == pytest.approx(0.8)
    assert float(params["first"]["kernel"]) == pytest.approx(0.5)


def test_freezing_an_unknown_parameter_is_an_error() -> None:
    params = {"first": {"whitening_bias": jnp.array(1.0), "kernel": jnp.array(1.0)}}
    optimizer = optimizers.freeze_after(optax.sgd(0.1), 2, "whitenin_bias")
    with pytest.raises(InputError, match=r"'whitenin_bias'.*whitening_bias"):
        optimizer.init(params)


def test_muon_orthogonalizes_updates_of_kernels_and_uses_adam_for_biases() -> None:
    key = jax.random.key(0)
    params = {"conv": {"kernel": jnp.zeros((3, 3, 2, 8)), "bias": jnp.zeros(8)}}
    grads = {"conv": {"kernel": jax.random.normal(key, (3, 3, 2, 8)), "bias": jnp.arange(8.0) - 4}}
    optimizer = optimizers.create(
        "muon", 0.01, momentum=0.9, nesterov=False, bias_lr_multiplier=3.0
    )
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    step = np.asarray(updates["conv"]["kernel"]).reshape(18, 8)
    assert np.sqrt((step**2).mean()) == pytest.approx(0.2 * 0.01, rel=0.2)
    singular_values = np.linalg.svd(step)[1]
    before = np.linalg.svd(np.asarray(grads["conv"]["kernel"]).reshape(18, 8))[1]
    assert singular_values.max() / singular_values.min() < 2 < before.max() / before.min()
    expected = -3 * 0.01 * np.sign(np.arange(8) - 4)
    np.testing.assert_allclose(updates["conv"]["bias"], expected, rtol=1e-3)


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 30, 1000])
def test_no_schedule_has_a_learning_rate_of_zero(name: str, steps: int) -> None:
    rate = optimizers.create_schedule(name, 3.0, steps)
    rates = [float(rate(step)) for step in (0, steps // 2, steps - 1)]
    assert min(rates) > 0
    assert max(rates) <= 3 + 1e-6


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adamw", 0.1)])
def test_adam_and_adamw_match_their_papers(name: str, decay: float) -> None:
    params: Any = {"conv": {"kernel": jnp.array(2.0), "bias": jnp.array(3.0)}}
    optimizer = optimizers.create(name, 0.01, weight_decay=decay, bias_lr_multiplier=4.0)
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


def test_adam_refuses_weight_decay() -> None:
    with pytest.raises(InputError, match=r"no weight decay, but weight_decay is 0\.1; use adamw"):
        optimizers.create("adam", 0.01, weight_decay=0.1)


def test_another_optimizer_brings_its_default_hyperparameters() -> None:
    recipe = recipes.find("cifar10-cpu")
    adam = recipe.replace(optimizer="adam", momentum=0.8)
    assert (adam.learning_rate, adam.momentum, adam.weight_decay) == (0.001, 0.8, 0.0)
    assert recipe.replace(optimizer="sgd") == recipe
    for name in optimizers.OPTIMIZERS:
        recipe.replace(optimizer=name).create_optimizer(100)


def test_every_optimizer_computes_the_same_under_jit() -> None:
    params: Any = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    rate = optimizers.create_schedule("triangular", 0.1, 2)
    for name in optimizers.OPTIMIZERS:
        decay = 0.0 if name == "adam" else 0.1
        inner = optimizers.create(name, rate, momentum=0.9, nesterov=True, weight_decay=decay)
        optimizer = optimizers.ema_of_params(optimizers.lookahead(inner, 2, 2), 2, 0.9)
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
