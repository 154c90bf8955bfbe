"""What is made of a caller's arrays stays as it is when the caller changes them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from dlc_jax import data, models, sharding, training
from dlc_jax.data import Dataset, Examples, Normalise, RecordDataset, Records, augmentation
from dlc_jax.explain import View
from dlc_jax.models.threshold_logic_unit import Units, fires

# Of more than a megabyte, which JAX reads in the background.
SHAPE = (300, 28, 28, 3)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address that JAX takes over as it is, where it may."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def unaligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address that JAX does not take over."""
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


def a_state(kernel: np.ndarray) -> Any:
    return training.create_state(network(kernel), optax.sgd(0.1, momentum=0.9))


def a_view(kernel: np.ndarray) -> Any:
    return View.of(network(kernel), Normalise(np.zeros(1), np.ones(1)))


def of_a_mesh(images: np.ndarray) -> Any:
    return sharding.replicate((images, 3), Mesh(jax.devices()[:2], (sharding.BATCH,)))


rng = np.random.default_rng(0)
FLOATS = rng.uniform(0, 255, SHAPE).astype(np.float32)
PIXELS = rng.integers(0, 256, SHAPE, np.uint8)
LABELS = rng.integers(0, 2, 300).astype(np.int32)
CHANNELS = np.array([1, 2, 3], np.float32)
KERNEL = rng.normal(size=(5, 5, 1, 32)).astype(np.float32)
SYNAPSES = np.ones((64, 16), np.float32)
BITS = np.ones((1000, 64), np.float32)

# What is kept, or still computed with, after the call.
KEEPERS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "Normalise": (Normalise, (CHANNELS, CHANNELS)),
    "Normalise.fit": (Normalise.fit, (PIXELS,)),
    "normalised floats": (Normalise(CHANNELS, CHANNELS), (FLOATS,)),
    "normalised pixels": (Normalise(CHANNELS, CHANNELS), (PIXELS,)),
    "Dataset": (lambda *arrays: dataset(*arrays).train, (PIXELS, LABELS)),
    "Dataset.first": (lambda *arrays: dataset(*arrays).first(200).train, (PIXELS, LABELS)),
    "Records.of": (lambda *arrays: Records.of(Examples(*arrays)), (PIXELS, LABELS)),
    "RecordDataset.of": (
        lambda *arrays: RecordDataset.of(dataset(*arrays)).train,
        (PIXELS, LABELS),
    ),
    "create_state": (a_state, (KERNEL,)),
    "View.of": (a_view, (KERNEL,)),
    "replicate": (lambda images: sharding.replicate(images, None), (FLOATS,)),
    "replicate on a mesh": (of_a_mesh, (FLOATS,)),
    "threshold logic units": (
        lambda *arrays: nnx.state(Units(*arrays)),
        (SYNAPSES, np.ones(16, np.float32)),
    ),
    "fires": (fires, (BITS, SYNAPSES, np.ones(16, np.float32))),
    "mirror": (augmentation.mirror, (FLOATS, np.arange(300) % 2 == 0)),
    "crop": (
        lambda images, corners: augmentation.crop(images, corners, (20, 20)),
        (FLOATS, np.full((300, 2), 4)),
    ),
    "shift": (
        lambda images, corners: augmentation.shift(images, corners, 4),
        (FLOATS, np.full((300, 2), 4)),
    ),
    "erase": (
        lambda images, corners: augmentation.erase(images, corners, 4),
        (FLOATS, np.full((300, 2), 4)),
    ),
}


def values(kept: Any) -> list[np.ndarray]:
    if isinstance(kept, Records):
        kept = kept.load()
    return [np.array(leaf) for leaf in jax.tree.leaves(kept)]


@pytest.mark.parametrize("place", [aligned, unaligned])
@pytest.mark.parametrize("name", KEEPERS)
def test_what_is_kept_of_a_callers_arrays_is_a_copy(
    name: str, place: Callable[[np.ndarray], np.ndarray]
) -> None:
    keep, arrays = KEEPERS[name]
    expected = values(keep(*arrays))
    for _ in range(3):
        given = [place(array) for array in arrays]
        kept = keep(*given)
        for array in given:
            array.fill(0)
        for value, other in zip(values(kept), expected, strict=True):
            np.testing.assert_array_equal(value, other)


def test_a_dataset_may_be_told_not_to_copy() -> None:
    held = Dataset("m", "1", Examples(PIXELS, LABELS), Examples(PIXELS, LABELS), (), "", copy=False)
    assert held.train.images is PIXELS


def test_a_state_is_not_changed_by_training_on_in_numpy() -> None:
    """Donating a state to a jitted function does not write into the caller's arrays either."""
    kernel = aligned(KERNEL)
    state = a_state(kernel)
    add = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    jax.block_until_ready(add(state.params))
    np.testing.assert_array_equal(kernel, KERNEL)


class Reuses:
    """A reader that has one piece of memory for all batches."""

    def __init__(self) -> None:
        self.images = aligned(np.zeros((4, 8, 8, 1), np.uint8))
        self.labels = aligned(np.zeros(4, np.int32))

    def __call__(self, places: np.ndarray) -> Examples:
        self.labels[:] = places
        self.images[:] = places[:, None, None, None]
        return Examples(self.images, self.labels)


def test_batches_of_a_reader_that_reuses_its_memory_stay_as_they_were() -> None:
    records = Records(Reuses(), 40, (8, 8, 1))
    batches = list(data.stream(records, batch_size=4, epochs=1, threads=0, prefetch=0))
    labels = np.concatenate([batch.labels for batch in batches])
    pixels = np.concatenate([batch.images[:, 0, 0, 0] for batch in batches])
    np.testing.assert_array_equal(labels, np.arange(40))
    np.testing.assert_array_equal(pixels, np.arange(40))
    whole = records.part(0, 1).first(40)
    one, other = whole.read([0, 1, 2, 3]), whole.read([4, 5, 6, 7])
    np.testing.assert_array_equal(one.labels, [0, 1, 2, 3])
    np.testing.assert_array_equal(other.labels, [4, 5, 6, 7])


def test_what_one_caller_loads_another_can_not_change() -> None:
    first = data.load("mnist-5k")
    before = np.array(first.train.images[:10])
    np.asarray(first.train.images)[:10] = 0
    np.testing.assert_array_equal(data.load("mnist-5k").train.images[:10], before)
