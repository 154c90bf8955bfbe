"""What eight devices make of networks, beside what one makes; test_devices.py compares it.

JAX counts devices once in a process, so that this is a program of its own.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dlc_jax import data, models, sharding, training
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.nn import layers

Results = dict[str, np.ndarray]
# At the lecture's 0.1 training is chaotic, so that rounding would decide what becomes of it.
RATE = 0.02
DIGITS = data.load("mnist-5k")
TRAIN = data.Examples(*(array[:300] for array in DIGITS.train))
TEST = data.Examples(*(array[:230] for array in DIGITS.test))
NORMALISE = data.Normalise.fit(TRAIN.images)
COMPILATIONS: list[str] = []


def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
    """Notes compilations, those that find their program in the cache on the disk among them."""
    del duration_secs, kwargs
    if event.endswith("backend_compile_duration"):
        COMPILATIONS.append(event)


class Small(nnx.Module):
    """A network all of whose layers may depend on how a batch is spread, or draw for it."""

    def __init__(self, rngs: nnx.Rngs, *, normalised: bool, dropped: float) -> None:
        self.conv = layers.Conv(1, 4, (2, 2), strides=2, rngs=rngs)
        self.norm = layers.BatchNorm(4, rngs=rngs) if normalised else None
        self.dropout = layers.Dropout(dropped, rngs=rngs) if dropped else None
        self.linear = layers.Linear(14 * 14 * 4, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.conv(images)
        x = nnx.relu(x if self.norm is None else self.norm(x))
        x = layers.flatten(x)
        return self.linear(x if self.dropout is None else self.dropout(x))


def lecture() -> nnx.Module:
    return models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))


def plain() -> nnx.Module:
    return Small(nnx.Rngs(0), normalised=False, dropped=0)


def normalised() -> nnx.Module:
    return Small(nnx.Rngs(0), normalised=True, dropped=0)


def dropping() -> nnx.Module:
    return Small(nnx.Rngs(0), normalised=False, dropped=0.5)


def normalised_and_dropping() -> nnx.Module:
    return Small(nnx.Rngs(0), normalised=True, dropped=0.5)


def new(create: Callable[[], nnx.Module]) -> training.TrainState:
    return training.create_state(create(), optax.sgd(RATE, 0.9))


def numbers(state: training.TrainState) -> dict[str, np.ndarray]:
    """All arrays of a state but its keys, by path."""
    leaves = jax.tree_util.tree_flatten_with_path((state.params, state.stats))[0]
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in leaves
        if not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def trained(
    mesh: Mesh | None, create: Callable[[], nnx.Module], batch_size: int, **how: Any
) -> Results:
    """The losses of all steps, the state afterwards, and how often each epoch had to compile."""
    state, train, normalise = sharding.replicate((new(create), TRAIN, NORMALISE), mesh)
    losses, compiled = [], []
    for _ in range(3):
        before = len(COMPILATIONS)
        state, metrics = training.train_epoch(
            state, train, normalise, batch_size=batch_size, mesh=mesh, **how
        )
        losses.append(np.asarray(metrics.loss))
        compiled.append(len(COMPILATIONS) - before)
    return {"losses": np.array(losses), "compiled": np.array(compiled), **numbers(state)}


def evaluated(mesh: Mesh | None) -> Results:
    arguments = sharding.replicate((new(plain), TEST, NORMALISE), mesh)
    logits, metrics = training.evaluate(*arguments, batch_size=50, mesh=mesh)
    return {"logits": np.asarray(logits), "loss": np.asarray(metrics.loss)}


def stepped(mesh: Mesh | None) -> Results:
    """One step of plain `jax.jit`, which is told of the mesh by nothing but its arguments."""
    state = new(normalised_and_dropping)
    batch = data.Examples(NORMALISE(TRAIN.images[:64]), TRAIN.labels[:64])
    if mesh is not None:
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch")))
    state, metrics = training.train_step(state, batch)
    return {"losses": np.asarray(metrics.loss), **numbers(state)}


def both(make: Callable[..., Results], mesh: Mesh | None, *arguments: Any, **how: Any) -> Results:
    made = {"one": make(None, *arguments, **how), "many": make(mesh, *arguments, **how)}
    assert mesh is not None
    return {
        "devices": np.array(mesh.size),
        **{f"{which}/{name}": array for which, of in made.items() for name, array in of.items()},
    }


def everything() -> dict[str, Results]:
    assert jax.device_count() == 8
    jax.monitoring.register_event_duration_secs_listener(note)
    mixed = {"key": jax.random.key(1), "augmentation": Augmentation(translate=1)}
    epochs: dict[str, tuple[Callable[[], nnx.Module], int, dict[str, Any]]] = {
        "uneven": (plain, 100, mixed),
        "normalised": (normalised, 100, {}),
        "dropping": (dropping, 96, {}),
    }
    results = {}
    for name, (create, size, how) in epochs.items():
        mesh = sharding.device_mesh(size, even=training.couples_examples(new(create)))
        results[name] = both(trained, mesh, create, size, **how)
    results["plain jit"] = both(stepped, sharding.device_mesh(64))
    results["evaluation"] = both(evaluated, sharding.device_mesh(64))
    return results


if __name__ == "__main__":
    flat = {
        f"{name}/{what}": array
        for name, result in everything().items()
        for what, array in result.items()
    }
    np.savez(sys.argv[1], allow_pickle=False, **flat)
