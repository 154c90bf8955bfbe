from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc_jax.data import augmentation
from dlc_jax.errors import InputError


def pictures(count: int = 6, dtype: Any = np.uint8) -> np.ndarray:
    """Images in which no two pixels are alike."""
    return (1 + np.arange(count * 5 * 7 * 2)).reshape(count, 5, 7, 2).astype(dtype)


FUNCTIONS = {
    "flip": augmentation.flip,
    "random_crop": lambda key, x: augmentation.random_crop(key, x, (5, 7)),
    "translate": lambda key, x: augmentation.translate(key, x, 2),
    "reflect": lambda key, x: augmentation.translate(key, x, 2, "reflect"),
    "cutout": lambda key, x: augmentation.cutout(key, x, 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_shapes_and_dtypes_are_kept_and_the_key_decides(name: str, dtype: Any) -> None:
    images = pictures(100, dtype)
    function = jax.jit(FUNCTIONS[name])
    first, again, other = (function(jax.random.key(seed), images) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == (images.shape, images.dtype)
    np.testing.assert_array_equal(first, again)
    if name != "random_crop":
        assert (np.asarray(first) != np.asarray(other)).any()


def test_mirroring_twice_gives_the_image_back() -> None:
    images, which = pictures(), np.array([True, False] * 3)
    once = augmentation.mirror(images, which)
    np.testing.assert_array_equal(once[0], images[0, :, ::-1])
    np.testing.assert_array_equal(once[1], images[1])
    np.testing.assert_array_equal(augmentation.mirror(once, which), images)


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    images = pictures(1000, np.float32)
    flipped = np.asarray(augmentation.flip(jax.random.key(0), images))
    mirrored = (flipped != images).any((1, 2, 3))
    assert 400 < mirrored.sum() < 600
    np.testing.assert_array_equal(flipped[mirrored], images[mirrored, :, ::-1])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20))
def test_alternating_flips_show_each_image_both_ways_in_any_two_epochs(epoch: int) -> None:
    images, first = pictures(), np.array([True, False, False, True, True, False])
    one, two = (augmentation.alternating_flip(images, first, e) for e in (epoch, epoch + 1))
    np.testing.assert_array_equal(one, np.asarray(two)[:, :, ::-1])


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 100))
def test_a_crop_is_a_part_of_its_image(height: int, width: int, seed: int) -> None:
    images = pictures()
    parts = np.asarray(augmentation.random_crop(jax.random.key(seed), images, (height, width)))
    for image, part in zip(images, parts, strict=True):
        (row,), (column,) = np.nonzero((image == part[0, 0]).all(-1))
        np.testing.assert_array_equal(part, image[row : row + height, column : column + width])


@pytest.mark.parametrize(("padding", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_translations_reach_every_place_and_pad_as_told(padding: Any, mode: Any) -> None:
    images = np.repeat(pictures(1), 400, 0)
    moved = np.asarray(augmentation.translate(jax.random.key(0), images, 2, padding))
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)), mode)
    places = {(i, j): padded[i : i + 5, j : j + 7] for i in range(5) for j in range(5)}
    found = [next(at for at, part in places.items() if (part == m).all()) for m in moved]
    assert set(found) == set(places)


def test_a_cutout_blanks_one_square_within_each_image() -> None:
    images = pictures(50, np.float32)
    holes = np.asarray(augmentation.cutout(jax.random.key(0), images, 3)) == 0
    assert (holes.sum((1, 2, 3)) == 3 * 3 * 2).all()
    for hole in holes[..., 0]:
        rows, columns = np.nonzero(hole)
        assert [int(np.ptp(places)) for places in (rows, columns)] == [2, 2]
    assert len({hole.tobytes() for hole in holes}) > 5


WRAP: Any = "wrap"
AUGMENTATION = augmentation.Augmentation("alternating", 2, "reflect", 3)
draw = jax.jit(AUGMENTATION.draw, static_argnums=2)
apply = jax.jit(AUGMENTATION.apply)


def test_what_is_drawn_for_an_epoch_differs_from_epoch_to_epoch_but_for_the_alternation() -> None:
    shape = (200, 5, 7, 2)
    first, second, third = (draw(jax.random.key(0), e, shape) for e in range(3))
    np.testing.assert_array_equal(first.mirrored, ~np.asarray(second.mirrored))
    np.testing.assert_array_equal(first.mirrored, third.mirrored)
    assert (np.asarray(first.shifted) != np.asarray(third.shifted)).any()
    assert (np.asarray(first.erased) != np.asarray(third.erased)).any()
    assert (np.asarray(first.shifted).min(), np.asarray(first.shifted).max()) == (0, 4)


def test_a_part_of_the_images_is_changed_as_all_of_them_are() -> None:
    images = pictures(20, np.float32)
    changes = draw(jax.random.key(0), 3, images.shape)
    whole = np.asarray(apply(images, changes))
    some = jax.tree.map(lambda array: np.asarray(array)[5:9], changes)
    np.testing.assert_array_equal(apply(images[5:9], some), whole[5:9])


def test_without_anything_to_do_images_are_left_as_they_are() -> None:
    nothing = augmentation.Augmentation()
    changes = nothing.draw(jax.random.key(0), 1, pictures().shape)
    np.testing.assert_array_equal(nothing.apply(pictures(), changes), pictures())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: augmentation.random_crop(jax.random.key(0), x, (6, 7)), "6x7.*5x7"),
        (lambda x: augmentation.cutout(jax.random.key(0), x, 6), "6 pixels.*5x7"),
        (
            lambda x: augmentation.translate(jax.random.key(0), x, 1, WRAP),
            "'wrap'.*zero or reflect",
        ),
    ],
)
def test_what_does_not_fit_the_images_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(pictures())


@pytest.mark.parametrize("corner", [[3, 0], [0, 4], [-1, 0]])
def test_a_part_that_reaches_outside_its_image_is_named(corner: list[int]) -> None:
    images = np.zeros((2, 5, 6, 1), np.float32)
    with pytest.raises(InputError, match=rf"image 1 at \[{corner[0]}, {corner[1]}\].*\[2, 3\]"):
        augmentation.crop(images, np.array([[2, 3], corner]), (3, 3))
