"""Results of training on eight devices, beside those on one; test_devices.py compares them.

JAX counts devices once in a process, so that this is a program of its own.
"""

import sys
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny import Coupled, OneLayer, take, task

from dlc_jax import data, sharding, training
from dlc_jax.data.augmentation import Augmentation

Results = dict[str, np.ndarray]
DIGITS = data.load("mnist-5k")
TRAIN = data.Examples(*(array[:300] for array in DIGITS.train))
TEST = data.Examples(*(array[:230] for array in DIGITS.test))
KEY = jax.random.key(1)
# At the lecture's rate of 0.1 training is chaotic, so that rounding would decide the results.
OPTIMIZER = optax.sgd(0.02, 0.9)
COMPILATIONS: list[str] = []


def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
    """Notes compilations, those that find their program in the cache on the disk included."""
    del duration_secs, kwargs
    if event.endswith("backend_compile_duration"):
        COMPILATIONS.append(event)


def numbers(state: training.TrainState) -> Results:
    """All arrays of a state but its keys, by path."""
    leaves = jax.tree_util.tree_flatten_with_path((state.params, state.batch_stats))[0]
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in leaves
        if not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def trained(task: training.Supervised, batch_size: int, mesh: Mesh | None) -> Results:
    """The losses of all steps, the state afterwards, and how often each epoch had to compile."""
    state, key = sharding.replicate((task.init(jax.random.key(0)), KEY), mesh)
    source = data.ArraySource(TRAIN, batch_size, key=key, mesh=mesh)
    losses, compiled = [], []
    steps = source.plan.steps_per_epoch
    for start in range(0, 3 * steps, steps):
        before = len(COMPILATIONS)
        [chunk] = source.chunks(start, start + steps)
        state, metrics = training.train_steps(task, state, chunk, key, mesh)
        losses.append(np.asarray(metrics["loss"].total))
        compiled.append(len(COMPILATIONS) - before)
    test = data.ArraySource(TEST, 50, mesh=mesh)
    logits = training.predict(task, state, test)
    sums = np.asarray(training.evaluate(task, state, test)["loss"].total)
    return {
        "losses": np.array(losses),
        "compiled": np.array(compiled),
        "logits": logits,
        "test_loss": sums,
        **numbers(state),
    }


def stepped(mesh: Mesh | None) -> Results:
    """One step of plain `jax.jit`, whose arguments alone lie on the mesh."""
    own = task(Coupled, OPTIMIZER)
    state, batch = own.init(jax.random.key(0)), take(TRAIN, 0, 64)
    if mesh is not None:
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        batch = sharding.put_batch(batch, mesh)
    state, metrics = jax.jit(own.step)(state, batch)
    return {"losses": np.asarray(metrics["loss"].total), **numbers(state)}


def everything() -> dict[str, Results]:
    assert jax.device_count() == 8
    jax.monitoring.register_event_duration_secs_listener(note)
    augmentation = Augmentation("alternating", translate=1, cutout=3)
    mesh = sharding.device_mesh(64)
    results: dict[str, Any] = {}
    # 100 divides neither among eight devices nor into 300 and 230 without a remainder.
    for name, model in (("plain", OneLayer), ("coupled", Coupled)):
        own = task(model, OPTIMIZER, augmentation, tta_translate=1)
        for where, devices in (("one", None), ("many", mesh)):
            results[f"{name}/{where}"] = trained(own, 100, devices)
    results["jit/one"], results["jit/many"] = stepped(None), stepped(mesh)
    return results


if __name__ == "__main__":
    flat = {
        f"{name}/{key}": array for name, each in everything().items() for key, array in each.items()
    }
    np.savez(sys.argv[1], allow_pickle=False, **flat)
