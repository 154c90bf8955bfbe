from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, PartitionSpec

from dlc_jax.data import augmentation
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.errors import InputError

KEY = jax.random.key(0)
AUGMENTATION = Augmentation("alternating", 2, "reflect", 3)
AUGMENTATIONS = {
    "all": AUGMENTATION,
    "random flip": Augmentation("random"),
    "alternating flip": Augmentation("alternating"),
    "translate": Augmentation(translate=2),
    "cutout": Augmentation(cutout=3),
}
augment = jax.jit(AUGMENTATION)


def distinct_pixels(count: int = 6, dtype: Any = np.uint8) -> np.ndarray:
    """Images [count, 5, 7, 2] in which no two pixels are the same."""
    return (1 + np.arange(count * 5 * 7 * 2)).reshape(count, 5, 7, 2).astype(dtype)


def same_image(count: int) -> np.ndarray:
    """The same image `count` times."""
    return np.repeat(distinct_pixels(1, np.float32), count, 0)


# --- Augmentation -----------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmented_image_does_not_depend_on_its_batch(name: str) -> None:
    images, index = distinct_pixels(40, np.float32), np.arange(40, dtype=np.int32)
    function = jax.jit(AUGMENTATIONS[name])
    expected = np.asarray(function(KEY, images, index, 3))
    assert (expected != images).any()
    order = np.random.default_rng(0).permutation(40)
    for part in (order, order[:7], order[-1:], np.array([5, 5])):
        augmented = function(KEY, images[part], index[part], 3)
        np.testing.assert_array_equal(augmented, expected[part])


def test_jit_and_vmap_give_the_same_images() -> None:
    images, index = distinct_pixels(20, np.float32), np.arange(20, dtype=np.int32)
    expected = AUGMENTATION(KEY, images, index, 1)
    np.testing.assert_array_equal(augment(KEY, images, index, jnp.int32(1)), expected)
    keys = jax.random.split(KEY, 3)
    stacked = jax.jit(jax.vmap(AUGMENTATION, (0, None, None, None)))(keys, images, index, 1)
    for key, one in zip(keys, stacked, strict=True):
        np.testing.assert_array_equal(one, augment(key, images, index, 1))


def test_shard_map_gives_the_same_images() -> None:
    images, index = distinct_pixels(20, np.float32), np.arange(20, dtype=np.int32)
    mesh = Mesh(jax.devices()[:2], ("batch",), axis_types=(AxisType.Auto,))
    none, batch = PartitionSpec(), PartitionSpec("batch")
    sharded = jax.shard_map(
        AUGMENTATION, mesh=mesh, in_specs=(none, batch, batch, none), out_specs=batch
    )
    expected = augment(KEY, images, index, jnp.int32(1))
    np.testing.assert_array_equal(jax.jit(sharded)(KEY, images, index, jnp.int32(1)), expected)


def test_x64_mode_gives_the_same_images() -> None:
    images = distinct_pixels(20, np.float32)
    expected = augment(KEY, images, np.arange(20, dtype=np.int32), 1)
    with jax.enable_x64(True):
        wide = jax.jit(AUGMENTATION)(KEY, images, np.arange(20), 1)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, expected)


@pytest.mark.parametrize("name", ["random flip", "translate", "cutout"])
def test_epochs_and_keys_differ(name: str) -> None:
    images, index = distinct_pixels(40, np.float32), np.arange(40)
    function = jax.jit(AUGMENTATIONS[name])
    calls = [(KEY, 0), (KEY, 1), (KEY, 2), (jax.random.key(1), 0)]
    results = [np.asarray(function(key, images, index, epoch)) for key, epoch in calls]
    for i, first in enumerate(results):
        for second in results[:i]:
            assert 8 < (first != second).any((1, 2, 3)).sum() <= 40


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20))
def test_alternating_flips_show_each_image_both_ways_in_successive_epochs(epoch: int) -> None:
    images, index = distinct_pixels(20, np.float32), np.arange(20)
    function = jax.jit(AUGMENTATIONS["alternating flip"])
    first, second, third = (np.asarray(function(KEY, images, index, epoch + e)) for e in range(3))
    np.testing.assert_array_equal(first, second[:, :, ::-1])
    np.testing.assert_array_equal(first, third)


@pytest.mark.parametrize("name", ["random flip", "alternating flip"])
def test_about_half_of_the_images_are_flipped(name: str) -> None:
    images = same_image(2000)
    result = np.asarray(jax.jit(AUGMENTATIONS[name])(KEY, images, np.arange(2000), 0))
    flipped = (result != images).any((1, 2, 3))
    # Four standard deviations.
    assert abs(flipped.sum() - 1000) < 4 * 500**0.5
    np.testing.assert_array_equal(result[flipped], images[flipped][:, :, ::-1])


def test_flips_of_different_examples_and_epochs_are_uncorrelated() -> None:
    images, index = distinct_pixels(500, np.float32), np.arange(500)
    function = jax.jit(AUGMENTATIONS["random flip"])
    epochs = [np.asarray(function(KEY, images, index, epoch)) for epoch in range(20)]
    signs = np.array([np.where((e != images).any((1, 2, 3)), 1.0, -1.0) for e in epochs])
    assert abs((signs[:-1] * signs[1:]).mean()) < 4 / (19 * 500) ** 0.5
    assert abs((signs[:, :-1] * signs[:, 1:]).mean()) < 4 / (20 * 499) ** 0.5


def test_translations_and_cutouts_are_uniformly_distributed() -> None:
    images, index, count = same_image(2500), np.arange(2500), 2500
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)))
    windows = [padded[i : i + 5, j : j + 7] for i in range(5) for j in range(5)]
    moved = np.asarray(jax.jit(AUGMENTATIONS["translate"])(KEY, images, index, 0))
    hits = np.array([(moved == window).all((1, 2, 3)).sum() for window in windows])
    assert hits.sum() == count
    # The 99.9 % quantiles of chi squared with 24 and 14 degrees of freedom.
    assert ((hits - count / 25) ** 2 / (count / 25)).sum() < 51.2
    holes = np.asarray(jax.jit(AUGMENTATIONS["cutout"])(KEY, images, index, 0)) == 0
    corners, hits = np.unique(holes.reshape(count, -1).argmax(1), return_counts=True)
    assert len(corners) == 3 * 5
    assert ((hits - count / 15) ** 2 / (count / 15)).sum() < 36.1


def test_without_augmentation_images_are_unchanged() -> None:
    assert Augmentation().is_identity
    assert not any(each.is_identity for each in AUGMENTATIONS.values())
    images = distinct_pixels(6, np.float32)
    np.testing.assert_array_equal(Augmentation()(KEY, images, np.arange(6), 1), images)


def test_a_cutout_larger_than_the_images_is_an_error() -> None:
    with pytest.raises(InputError, match=r"6x6 pixels.*5x7"):
        Augmentation(cutout=6)(KEY, distinct_pixels(6, np.float32), np.arange(6), 0)


# --- functions --------------------------------------------------------------------------

FUNCTIONS = {
    "flip": augmentation.random_flip,
    "crop": lambda key, x: augmentation.random_crop(key, x, (5, 7)),
    "translate": lambda key, x: augmentation.random_translate(key, x, 2),
    "reflect": lambda key, x: augmentation.random_translate(key, x, 2, "reflect"),
    "cutout": lambda key, x: augmentation.cutout(key, x, 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_shapes_and_dtypes_are_kept_and_keys_differ(name: str, dtype: Any) -> None:
    images = distinct_pixels(100, dtype)
    function = jax.jit(FUNCTIONS[name])
    first, again, other = (function(jax.random.key(seed), images) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == (images.shape, images.dtype)
    np.testing.assert_array_equal(first, again)
    if name != "crop":
        assert (np.asarray(first) != np.asarray(other)).any()


def test_flipping_twice_restores_the_images() -> None:
    images, where = distinct_pixels(), np.array([True, False] * 3)
    once = augmentation.flip_left_right(images, where)
    np.testing.assert_array_equal(once[0], images[0, :, ::-1])
    np.testing.assert_array_equal(once[1], images[1])
    np.testing.assert_array_equal(augmentation.flip_left_right(once, where), images)


def test_a_random_flip_flips_about_half_of_the_images() -> None:
    images = distinct_pixels(1000, np.float32)
    result = np.asarray(augmentation.random_flip(KEY, images))
    flipped = (result != images).any((1, 2, 3))
    assert 400 < flipped.sum() < 600
    np.testing.assert_array_equal(result[flipped], images[flipped, :, ::-1])


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 100))
def test_a_random_crop_is_a_window_of_its_image(height: int, width: int, seed: int) -> None:
    images = distinct_pixels()
    windows = np.asarray(augmentation.random_crop(jax.random.key(seed), images, (height, width)))
    for image, window in zip(images, windows, strict=True):
        (row,), (column,) = np.nonzero((image == window[0, 0]).all(-1))
        np.testing.assert_array_equal(window, image[row : row + height, column : column + width])


@pytest.mark.parametrize(("padding", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_random_translations_reach_every_offset(padding: Any, mode: Any) -> None:
    images = same_image(400)
    moved = np.asarray(augmentation.random_translate(KEY, images, 2, padding))
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)), mode)
    windows = {(i, j): padded[i : i + 5, j : j + 7] for i in range(5) for j in range(5)}
    found = [next(at for at, window in windows.items() if (window == m).all()) for m in moved]
    assert set(found) == set(windows)


def test_a_positive_offset_moves_an_image_down_and_right() -> None:
    images = distinct_pixels(2)
    moved = np.asarray(augmentation.shift(images, np.array([[1, 2], [-1, 0]]), 2))
    np.testing.assert_array_equal(moved[0, 1:, 2:], images[0, :-1, :-2])
    assert not moved[0, 0].any()
    assert not moved[0, :, :2].any()
    np.testing.assert_array_equal(moved[1, :-1], images[1, 1:])


def test_a_cutout_is_one_square_within_each_image() -> None:
    images = distinct_pixels(50, np.float32)
    holes = np.asarray(augmentation.cutout(KEY, images, 3)) == 0
    assert (holes.sum((1, 2, 3)) == 3 * 3 * 2).all()
    for hole in holes[..., 0]:
        assert [int(np.ptp(positions)) for positions in np.nonzero(hole)] == [2, 2]
    assert len({hole.tobytes() for hole in holes}) > 5


WRAP: Any = "wrap"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: augmentation.random_crop(KEY, x, (6, 7)), "6x7.*5x7"),
        (lambda x: augmentation.cutout(KEY, x, 6), "6x6 pixels.*5x7"),
        (lambda x: augmentation.random_translate(KEY, x, 1, WRAP), "'wrap'.*zero or reflect"),
    ],
)
def test_sizes_that_do_not_fit_and_unknown_paddings_are_errors(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(distinct_pixels())


@pytest.mark.parametrize("corner", [[3, 0], [0, 4], [-1, 0]])
def test_a_window_outside_its_image_is_an_error(corner: list[int]) -> None:
    images = np.zeros((2, 5, 6, 1), np.float32)
    with pytest.raises(InputError, match=rf"\[{corner[0]}, {corner[1]}\] of image 1.*\[2, 3\]"):
        augmentation.crop(images, np.array([[2, 3], corner]), (3, 3))
