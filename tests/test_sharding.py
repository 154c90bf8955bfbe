import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dlc_jax import sharding, training
from dlc_jax.data import Dataset, Normalise
from dlc_jax.errors import InputError
from dlc_jax.nn import layers
from dlc_jax.utils.environment import prepare_jax


class Small(nnx.Module):
    """A network that is compiled quickly."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = layers.Linear(28 * 28, 16, rngs=rngs)
        self.output = layers.Linear(16, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.output(nnx.relu(self.hidden(layers.flatten(images))))


def new_state() -> training.TrainState:
    return training.create_state(Small(nnx.Rngs(0)), optax.sgd(0.1))


# 100 divides the 230 digits with a rest, 46 does not; one device takes the rest alone.
@pytest.mark.parametrize("batch_size", [100, 46])
def test_an_epoch_spread_over_devices_is_that_of_one_device(
    few_digits: Dataset, batch_size: int
) -> None:
    normalise = Normalise.fit(few_digits.train.images)
    mesh = sharding.cpu_mesh(batch_size)
    assert mesh is not None
    assert mesh.size == 2
    one, losses = training.train_epoch(
        new_state(), few_digits.train, normalise, batch_size=batch_size
    )
    spread, spread_losses = training.train_epoch(
        *sharding.replicate((new_state(), few_digits.train, normalise), mesh),
        batch_size=batch_size,
        mesh=mesh,
    )
    np.testing.assert_allclose(spread_losses.loss, losses.loss, rtol=1e-5)
    np.testing.assert_allclose(spread_losses.error, losses.error, rtol=1e-6)
    for ours, expected in zip(*map(jax.tree.leaves, (spread.params, one.params)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


class ExactGelu(Small):
    """The same with an activation that JAX 0.12 can't spread over devices."""

    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = jax.nn.gelu(self.hidden(layers.flatten(images)), approximate=False)
        return self.output(hidden)


def jax_spreads_erf(mesh: Mesh) -> bool:
    """Whether JAX itself can differentiate erf over several devices."""
    slope = jax.grad(lambda x: jax.lax.erf(x).sum())
    parts = jax.shard_map(slope, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    try:
        jax.eval_shape(parts, jax.ShapeDtypeStruct((4,), np.float32))
    except ValueError:
        return False
    return True


@pytest.mark.versions
def test_what_jax_can_not_spread_over_devices_is_named(few_digits: Dataset) -> None:
    normalise = Normalise.fit(few_digits.train.images)
    state = training.create_state(ExactGelu(nnx.Rngs(0)), optax.sgd(0.1))
    one, _ = training.train_epoch(state, few_digits.train, normalise, batch_size=46)
    mesh = sharding.cpu_mesh(46)
    assert mesh is not None
    arguments = sharding.replicate((state, few_digits.train, normalise), mesh)
    told = r"'polynomial' .* one device .* dlc_jax\.layers\.gelu"
    if not jax_spreads_erf(mesh):
        with pytest.raises(InputError, match=told):
            training.train_epoch(*arguments, batch_size=46, mesh=mesh)
        return
    spread, _ = training.train_epoch(*arguments, batch_size=46, mesh=mesh)
    for ours, expected in zip(*map(jax.tree.leaves, (spread.params, one.params)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [24, 25])
def test_evaluation_spread_over_devices_is_that_of_one_device(
    few_digits: Dataset, batch_size: int
) -> None:
    normalise = Normalise.fit(few_digits.train.images)
    mesh = sharding.cpu_mesh(32)
    arguments = new_state(), few_digits.test, normalise
    one, _ = training.evaluate(*arguments, batch_size=batch_size)
    spread, _ = training.evaluate(
        *sharding.replicate(arguments, mesh), batch_size=batch_size, mesh=mesh
    )
    np.testing.assert_allclose(spread, one, rtol=1e-4, atol=1e-5)


def test_a_mesh_shares_the_batch_evenly_and_leaves_each_device_enough() -> None:
    sizes = {size: sharding.cpu_mesh(size) for size in (1, 31, 32, 33, 100)}
    devices = {size: mesh and mesh.size for size, mesh in sizes.items()}
    assert devices == {1: None, 31: None, 32: 2, 33: None, 100: 2}


def test_what_the_user_set_for_jax_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "7")
    prepare_jax()
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "7"
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    prepare_jax()
    assert "JAX_NUM_CPU_DEVICES" not in os.environ
