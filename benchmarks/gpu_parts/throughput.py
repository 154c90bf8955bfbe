"""Images per second of training a ResNet-50 at 224x224 in bfloat16."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from harness import programs

from dlc_jax import models
from dlc_jax.data import Examples
from gpu_parts import profiling
from gpu_parts.settings import Save, Settings, median_seconds

# Floating-point operations per image of 224x224 in training, three times those of the forward pass:
# 4.09 billion multiply-adds (torchvision's documentation).
OPERATIONS_PER_IMAGE = 3 * 2 * 4.09e9
# Operations per second of dense bfloat16 products with float32 sums (NVIDIA's data sheets).
PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L4": 121e12,
    "V100": 125e12,
}
_STEPS = 20


def measure(settings: Settings, save: Save) -> None:
    """Times training steps on random images, for two batch sizes."""
    size, classes = settings.size(224, 32), settings.size(1000, 10)

    def create(rngs: nnx.Rngs) -> Any:
        name = "resnet20" if settings.rehearse else "resnet50"
        shape = (size, size, 3)
        return models.create(
            name, image_shape=shape, num_classes=classes, rngs=rngs, dtype=jnp.bfloat16
        )

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (settings.size(256, 4), size, size, 3), np.uint8)
    labels = rng.integers(0, classes, len(images), np.int32)
    optimizer = optax.sgd(0.1, 0.9, nesterov=True)
    task = programs.classification(create, images[:16], optimizer)
    state = jax.jit(task.init)(jax.random.key(0))
    rate = _product_rate(settings.size(8192, 256))
    results: dict[str, Any] = {"product_operations_per_second": rate, "batches": {}}
    for batch_size in (settings.size(256, 4), settings.size(128, 2)):
        batch = jax.device_put(Examples(images[:batch_size], labels[:batch_size]))
        measured, call = _time_steps(task, state, batch, settings.size(_STEPS, 2))
        operations = OPERATIONS_PER_IMAGE * measured["images_per_second"]
        measured["operations_per_second"] = operations
        measured["fraction_of_products"] = operations / rate
        peak = _peak()
        if peak:
            measured["fraction_of_peak"] = operations / peak
        results["batches"][str(batch_size)] = measured
        save(results)
        if settings.profile and len(results["batches"]) == 1:
            results["kernels"] = profiling.kernels(call, settings.profile)
            save(results)


def _time_steps(task: Any, state: Any, batch: Examples, steps: int) -> tuple[dict[str, Any], Any]:
    """Times several steps on a batch; returns the results and a function that repeats them."""
    start = time.perf_counter()
    program = jax.jit(programs.repeat_step(task, steps)).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    seconds = median_seconds(lambda: program(state, batch), 3) / steps
    measured = {
        "compile_s": compile_seconds,
        "step_ms": 1e3 * seconds,
        "images_per_second": len(batch.labels) / seconds,
    }
    return measured, lambda: program(state, batch)


def _product_rate(size: int) -> float:
    """Operations per second of products of random square matrices in bfloat16."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(a, b))
    return 2 * size**3 / median_seconds(lambda: [product(a, b) for _ in range(10)], 5) * 10


def _peak() -> float | None:
    kind = jax.devices()[0].device_kind
    found = [name for name in PEAKS if all(word in kind for word in name.split())]
    return PEAKS[max(found, key=len)] if found else None
