"""Objects made from NumPy arrays do not change when the caller changes these arrays."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from dlc_jax import data, models, sharding, training
from dlc_jax.data import (
    ArraySource,
    Dataset,
    Examples,
    Normalize,
    RecordDataset,
    Records,
    augmentation,
)
from dlc_jax.explain import ImageClassifier
from dlc_jax.models.threshold_logic_unit import Units, fires

# JAX copies arrays of more than a megabyte in the background.
SHAPE = (300, 28, 28, 3)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address that lets JAX use the memory in place."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def unaligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address that makes JAX copy the memory."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + array.itemsize
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def dataset(images: np.ndarray, labels: np.ndarray) -> Dataset:
    examples = Examples(images, labels)
    return Dataset("mine", "1", examples, examples, ("a", "b"), "made here")


def network(kernel: np.ndarray) -> nnx.Module:
    model = models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
    model.conv1.kernel = nnx.Param(kernel)  # type: ignore[attr-defined]
    return model


def state_of(kernel: np.ndarray) -> Any:
    return training.create_state(network(kernel), optax.sgd(0.1, momentum=0.9))


def classifier_of(kernel: np.ndarray) -> Any:
    return ImageClassifier.from_model(network(kernel), Normalize(np.zeros(1), np.ones(1)))


def batches_of(images: np.ndarray, labels: np.ndarray) -> Any:
    source = ArraySource(Examples(images, labels), batch_size=100)
    return source.chunks(0, source.plan.steps_per_epoch)


def shuffled_batches_of(images: np.ndarray, labels: np.ndarray) -> Any:
    source = ArraySource(Examples(images, labels), batch_size=100, key=jax.random.key(0))
    return source.chunks(0, source.plan.steps_per_epoch)


def replicated_on_a_mesh(images: np.ndarray) -> Any:
    return sharding.replicate((images, 3), Mesh(jax.devices()[:2], (sharding.BATCH,)))


rng = np.random.default_rng(0)
FLOATS = rng.uniform(0, 255, SHAPE).astype(np.float32)
PIXELS = rng.integers(0, 256, SHAPE, np.uint8)
LABELS = rng.integers(0, 2, 300).astype(np.int32)
CHANNELS = np.array([1, 2, 3], np.float32)
KERNEL = rng.normal(size=(5, 5, 1, 32)).astype(np.float32)
SYNAPSES = np.ones((64, 16), np.float32)
BITS = np.ones((1000, 64), np.float32)

# Functions whose results must not depend on the arrays after the call.
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "Normalize": (Normalize, (CHANNELS, CHANNELS)),
    "Normalize.fit": (Normalize.fit, (PIXELS,)),
    "normalized floats": (Normalize(CHANNELS, CHANNELS), (FLOATS,)),
    "normalized pixels": (Normalize(CHANNELS, CHANNELS), (PIXELS,)),
    "Dataset": (lambda *arrays: dataset(*arrays).train, (PIXELS, LABELS)),
    "Dataset.take": (lambda *arrays: dataset(*arrays).take(200).train, (PIXELS, LABELS)),
    "Records.from_arrays": (
        lambda *arrays: Records.from_arrays(Examples(*arrays)),
        (PIXELS, LABELS),
    ),
    "RecordDataset.from_dataset": (
        lambda *arrays: RecordDataset.from_dataset(dataset(*arrays)).train,
        (PIXELS, LABELS),
    ),
    "create_state": (state_of, (KERNEL,)),
    "ImageClassifier": (classifier_of, (KERNEL,)),
    "ArraySource": (batches_of, (PIXELS, LABELS)),
    "ArraySource with a key": (shuffled_batches_of, (PIXELS, LABELS)),
    "replicate": (lambda images: sharding.replicate(images, None), (FLOATS,)),
    "replicate on a mesh": (replicated_on_a_mesh, (FLOATS,)),
    "threshold logic units": (
        lambda *arrays: nnx.state(Units(*arrays)),
        (SYNAPSES, np.ones(16, np.float32)),
    ),
    "fires": (fires, (BITS, SYNAPSES, np.ones(16, np.float32))),
    "flip_left_right": (augmentation.flip_left_right, (FLOATS, np.arange(300) % 2 == 0)),
    "crop": (
        lambda images, corners: augmentation.crop(images, corners, (20, 20)),
        (FLOATS, np.full((300, 2), 4)),
    ),
    "shift": (
        lambda images, offsets: augmentation.shift(images, offsets, 4),
        (FLOATS, np.full((300, 2), 4)),
    ),
    "cutout_at": (
        lambda images, corners: augmentation.cutout_at(images, corners, 4),
        (FLOATS, np.full((300, 2), 4)),
    ),
}


def values(result: Any) -> list[np.ndarray]:
    if isinstance(result, Records):
        result = result.load()
    if isinstance(result, Normalize):
        result = result.mean, result.std
    if isinstance(result, Iterator):
        result = list(result)
    return [np.array(leaf) for leaf in jax.tree.leaves(result)]


@pytest.mark.parametrize("align", [aligned, unaligned])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_do_not_change_with_the_callers_arrays(
    name: str, align: Callable[[np.ndarray], np.ndarray]
) -> None:
    function, arrays = FUNCTIONS[name]
    expected = values(function(*arrays))
    assert expected
    for _ in range(3):
        copies = [align(array) for array in arrays]
        result = function(*copies)
        for array in copies:
            array.fill(0)
        for value, other in zip(values(result), expected, strict=True):
            np.testing.assert_array_equal(value, other)


def test_a_dataset_does_not_copy_on_request() -> None:
    dataset = Dataset(
        "m", "1", Examples(PIXELS, LABELS), Examples(PIXELS, LABELS), (), "", copy=False
    )
    assert dataset.train.images is PIXELS


def test_donating_a_state_does_not_change_the_callers_arrays() -> None:
    kernel = aligned(KERNEL)
    state = state_of(kernel)
    add = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    jax.block_until_ready(add(state.params))
    np.testing.assert_array_equal(kernel, KERNEL)


class ReusingReader:
    """A reader that returns the same arrays for all batches."""

    def __init__(self) -> None:
        self.images = aligned(np.zeros((4, 8, 8, 1), np.uint8))
        self.labels = aligned(np.zeros(4, np.int32))

    def __call__(self, indices: np.ndarray) -> Examples:
        self.labels[:] = indices
        self.images[:] = indices[:, None, None, None]
        return Examples(self.images, self.labels)


def test_batches_of_a_reader_that_reuses_its_memory_do_not_change() -> None:
    records = Records(ReusingReader(), 40, (8, 8, 1))
    batches = list(
        data.stream(records, batch_size=4, epochs=1, num_threads=0, prefetch_buffer_size=0)
    )
    labels = np.concatenate([batch.examples.labels for batch in batches])
    pixels = np.concatenate([batch.examples.images[:, 0, 0, 0] for batch in batches])
    np.testing.assert_array_equal(labels, np.arange(40))
    np.testing.assert_array_equal(pixels, np.arange(40))
    whole = records.shard(0, 1).take(40)
    one, other = whole.read([0, 1, 2, 3]), whole.read([4, 5, 6, 7])
    np.testing.assert_array_equal(one.labels, [0, 1, 2, 3])
    np.testing.assert_array_equal(other.labels, [4, 5, 6, 7])


def test_loaded_datasets_do_not_share_memory() -> None:
    first = data.load("mnist-5k")
    before = np.array(first.train.images[:10])
    np.asarray(first.train.images)[:10] = 0
    np.testing.assert_array_equal(data.load("mnist-5k").train.images[:10], before)
