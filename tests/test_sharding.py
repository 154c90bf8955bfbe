"""One batch on several devices."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from tiny import Coupled, OneLayer, assert_close, task, train, two_devices

from dlc_jax import sharding
from dlc_jax.data import Dataset
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.errors import InputError
from dlc_jax.sharding.data_parallel import sum_over_devices
from dlc_jax.utils.environment import prepare_jax

KEY = jax.random.key(3)


# Batches that divide among two devices and that don't; 230 examples leave smaller last batches.
@pytest.mark.parametrize("batch_size", [46, 45])
@pytest.mark.parametrize("model", [OneLayer, Coupled])
def test_training_on_two_devices_equals_training_on_one(
    few_digits: Dataset, batch_size: int, model: type
) -> None:
    own = task(model, augmentation=Augmentation("random", 2, "zero", 3), tta_translate=1)
    one, records = train(own, few_digits, batch_size, key=KEY)
    two, others = train(own, few_digits, batch_size, key=KEY, mesh=two_devices())
    assert_close(two.state, one.state)
    for ours, expected in zip(others, records, strict=True):
        assert_close((ours.train, ours.test), (expected.train, expected.test))
        np.testing.assert_allclose(ours.losses, expected.losses, rtol=1e-4)


class ExactGelu(OneLayer):
    """A network with an activation that JAX 0.12 can't differentiate on several devices."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(super().__call__(x), approximate=False)


def jax_shards_erf(mesh: Mesh) -> bool:
    """Whether JAX itself can differentiate erf inside `shard_map`."""
    slope = jax.grad(lambda x: jax.lax.erf(x).sum())
    sharded = jax.shard_map(slope, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    try:
        jax.eval_shape(sharded, jax.ShapeDtypeStruct((4,), np.float32))
    except ValueError:
        return False
    return True


@pytest.mark.versions
def test_an_operation_that_jax_can_not_shard_is_named(few_digits: Dataset) -> None:
    own, mesh = task(ExactGelu), two_devices()
    if not jax_shards_erf(mesh):
        with pytest.raises(InputError, match=r"'polynomial' .* one device .* dlc_jax\.nn\.gelu"):
            train(own, few_digits, 46, mesh=mesh)
        return
    one, _ = train(own, few_digits, 46)
    two, _ = train(own, few_digits, 46, mesh=mesh)
    assert_close(two.state, one.state)


def test_sums_over_devices_keep_dtypes_and_shapes() -> None:
    tree = {
        "a": jnp.arange(6.0).reshape(2, 3),
        "b": jnp.arange(4).reshape(2, 2),
        "c": jnp.ones((2, 1), jnp.bfloat16),
    }
    mesh = two_devices()
    summed = jax.shard_map(sum_over_devices, mesh=mesh, in_specs=P("batch"), out_specs=P())(tree)
    for name, array in tree.items():
        assert summed[name].dtype == array.dtype
        np.testing.assert_array_equal(summed[name], array.sum(0, keepdims=True))


def test_a_cpu_mesh_divides_the_batch_and_leaves_each_core_enough() -> None:
    meshes = {size: sharding.cpu_mesh(size) for size in (1, 31, 32, 33, 100)}
    devices = {size: mesh and mesh.size for size, mesh in meshes.items()}
    assert devices == {1: None, 31: None, 32: 2, 33: None, 100: 2}


def test_a_mesh_has_no_more_devices_than_a_batch_has_examples() -> None:
    devices = jax.devices()[:2]
    meshes = {size: sharding.device_mesh(size, devices) for size in (1, 2, 3)}
    assert {size: mesh and mesh.size for size, mesh in meshes.items()} == {1: None, 2: 2, 3: 2}


def test_replicated_arrays_share_no_memory_with_numpy() -> None:
    array = np.zeros(1024, np.float32)
    for mesh in (None, two_devices()):
        copy = sharding.replicate({"a": array}, mesh)["a"]
        array += 1
        assert not np.asarray(copy).any()
        array[:] = 0


def test_what_the_user_set_for_jax_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "7")
    prepare_jax()
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "7"
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    prepare_jax()
    assert "JAX_NUM_CPU_DEVICES" not in os.environ
