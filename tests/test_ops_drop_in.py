"""`ops.conv_general_dilated` in the place of JAX's own: whatever that takes or refuses."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal
from flax import linen, nnx
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jax import lax

from dlc_jax import ops

NHWC = ("NHWC", "HWIO", "NHWC")
FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]
OTHERS = [jnp.int8, jnp.int32, jnp.uint8, jnp.bool_, jnp.complex64]


def numbers(seed: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.inexact):
        return normal(seed, shape, dtype)
    whole = np.random.default_rng(seed).integers(-9, 10, shape)
    return jnp.asarray(whole.astype(dtype))


def result_of(convolution: Any, *args: Any, **options: Any) -> Any:
    """The result, or the kind of error and its first line."""
    try:
        return convolution(*args, **options)
    except Exception as error:
        # What a compiler says also tells where in a program it was.
        return type(error), str(error).split("\n")[0]


def assert_like_jaxs(*args: Any, **options: Any) -> None:
    """The same result as JAX's, up to rounding, or the same error."""
    theirs = result_of(lax.conv_general_dilated, *args, **options)
    ours = result_of(ops.conv_general_dilated, *args, **options)
    if isinstance(theirs, tuple):
        assert ours == theirs
        return
    assert not isinstance(ours, tuple), ours
    assert (ours.shape, ours.dtype, ours.weak_type) == (
        theirs.shape,
        theirs.dtype,
        theirs.weak_type,
    )
    if not jnp.issubdtype(ours.dtype, jnp.floating):
        np.testing.assert_array_equal(ours, theirs)
        return
    a, b = (np.asarray(result, np.float64) for result in (ours, theirs))
    unit = float(jnp.finfo(ours.dtype).eps)
    np.testing.assert_allclose(a, b, rtol=4 * unit, atol=16 * unit * np.abs(b).max(initial=1))


@st.composite
def calls(draw: st.DrawFn) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that JAX's convolution takes, mostly, and some that it refuses."""
    size, small = st.integers(0, 9), st.integers(1, 3)
    groups = draw(st.sampled_from([1, 1, 1, 2, 4]))
    channels, features = (groups * draw(small) for _ in range(2))
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dtype = draw(st.sampled_from([*FLOATS, *FLOATS, *OTHERS]))
    x = numbers(0, (draw(st.integers(0, 3)), draw(size), draw(size), channels), dtype)
    kernel_dtype = draw(st.sampled_from([dtype, dtype, dtype, jnp.float32]))
    kernel = numbers(1, (*window, channels // groups, features), kernel_dtype)
    pair = st.tuples(st.integers(-2, 4), st.integers(-2, 4))
    padding = draw(
        st.one_of(
            st.sampled_from(["SAME", "VALID", "same", "Valid", "SAME_LOWER", "same_lower", "FULL"]),
            st.tuples(pair, pair),
            st.lists(pair, min_size=2, max_size=2),
            st.tuples(pair, pair).map(np.array),
            st.just(((1, 1),)),
        )
    )
    strides = draw(
        st.one_of(
            st.tuples(small, small),
            st.lists(small, min_size=2, max_size=2),
            st.tuples(small, small).map(np.array),
            st.sampled_from([(1,), (1.0, 1.0), (True, True)]),
        )
    )
    layout: Any = draw(st.sampled_from([NHWC, NHWC, NHWC, list(NHWC), "numbers", "NCHW", None]))
    if layout == "numbers":
        layout = lax.conv_dimension_numbers(x.shape, kernel.shape, NHWC)
    elif layout in ("NCHW", None):
        x, kernel = x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)
        layout = layout and ("NCHW", "OIHW", "NCHW")
    options = {
        "lhs_dilation": draw(st.sampled_from([None, None, (1, 1), [1, 1], (1, 2)])),
        "rhs_dilation": draw(st.sampled_from([None, None, (1, 1), np.array([1, 1]), (2, 1)])),
        "dimension_numbers": layout,
        "feature_group_count": draw(st.sampled_from([groups, groups, np.int64(groups), 3])),
        "batch_group_count": draw(st.sampled_from([1, 1, 1, 2])),
        "precision": draw(st.sampled_from([None, None, "highest"])),
        "preferred_element_type": draw(st.sampled_from([None, None, x.dtype, "float32"])),
    }
    arrays: tuple[Any, ...] = (x, kernel)
    if draw(st.integers(0, 4)) == 0:
        arrays = tuple(np.asarray(a) for a in arrays)
    if draw(st.booleans()):
        return (*arrays, strides, padding, *options.values()), {}
    return arrays, {"window_strides": strides, "padding": padding, **options}


def plain(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], dtype: Any, padding: Any) -> Any:
    arrays = numbers(0, x_shape, dtype), numbers(1, kernel_shape, dtype)
    return (*arrays, (1, 1), padding), {"dimension_numbers": NHWC}


@pytest.mark.versions
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(plain((8, 16, 16, 16), (3, 3, 16, 16), jnp.int8, "SAME"))
@example(plain((4, 2, 2, 3), (3, 3, 3, 8), jnp.float32, "VALID"))
@example(plain((1, 2, 2, 3), (5, 5, 3, 8), jnp.float32, ((2, 2), [2, 2])))
@given(calls())
def test_conv_general_dilated_accepts_and_rejects_like_jax(call: Any) -> None:
    args, options = call
    assert_like_jaxs(*args, **options)


def test_iterators_and_other_ranks() -> None:
    x, kernel = normal(0, (2, 5, 5, 3)), normal(1, (3, 3, 3, 4))

    def of_iterators(convolution: Any) -> jax.Array:
        padding = (pair for pair in ((1, 1), (0, 2)))
        return convolution(x, kernel, iter((1, 2)), padding, dimension_numbers=NHWC)

    ours, theirs = (of_iterators(f) for f in (ops.conv_general_dilated, lax.conv_general_dilated))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_like_jaxs(x[0], kernel[0], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    assert_like_jaxs(x[0], kernel, (1, 1), "SAME", dimension_numbers=NHWC)
    assert_like_jaxs(x.tolist(), kernel, (1, 1), "SAME", dimension_numbers=NHWC)
    assert_like_jaxs(jnp.full(x.shape, 2.0), jnp.full(kernel.shape, 2.0), (1, 1), "SAME")


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "CIRCULAR", "strides": 2},
        {"padding": "REFLECT", "feature_group_count": 2},
        {"padding": "same", "dtype": jnp.bfloat16},
        {"padding": ((1, 0), (2, 1)), "kernel_dilation": (1, 2)},
    ],
)
def test_flax_conv_with_all_options(options: Any) -> None:
    x = normal(0, (2, 9, 9, 4))

    def results(**convolution: Any) -> Any:
        layer = nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0), **options, **convolution)
        older = linen.Conv(8, (3, 3), **options, **convolution)

        @nnx.jit
        def both(layer: nnx.Conv) -> Any:
            grad = nnx.grad(lambda layer: (layer(x).astype(jnp.float32) ** 2).sum())(layer)
            variables = {"params": {"kernel": layer.kernel[...], "bias": jnp.ones(8)}}
            return grad, older.apply(variables, x)

        return both(layer)

    ours = results(conv_general_dilated=ops.conv_general_dilated)
    allowed = 0.02 if "dtype" in options else 1e-4
    for a, b in zip(*map(jax.tree.leaves, (ours, results())), strict=True):
        np.testing.assert_allclose(
            a.astype(jnp.float32), b.astype(jnp.float32), rtol=allowed, atol=allowed * abs(b).max()
        )


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.uint8, jnp.complex64])
def test_integers_and_complex_numbers_equal_xla(dtype: Any) -> None:
    x, kernel = numbers(0, (8, 16, 16, 16), dtype), numbers(1, (3, 3, 16, 16), dtype)
    xla = partial(lax.conv_general_dilated, dimension_numbers=NHWC)
    np.testing.assert_array_equal(ops.conv2d(x, kernel), xla(x, kernel, (1, 1), "SAME"))
    for pool, theirs in ((ops.max_pool, nnx.max_pool), (ops.avg_pool, nnx.avg_pool)):
        for window, strides, padding in (((2, 2), None, "valid"), ((3, 2), (2, 1), "Same")):
            expected = theirs(x, window, strides or window, padding.upper())
            result = pool(x, window, strides, padding)
            assert result.dtype == expected.dtype
            np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("padding", ["same_lower", [[1, 0], [0, 1]], np.array([[0, 0], [-1, 1]])])
def test_padding_in_all_forms(padding: Any) -> None:
    x, kernel = normal(0, (2, 7, 8, 3)), normal(1, (2, 3, 3, 4))
    pads = padding if isinstance(padding, str) else tuple(map(tuple, np.asarray(padding).tolist()))
    xla = partial(lax.conv_general_dilated, dimension_numbers=NHWC)
    convolved = xla(x, kernel, (2, 1), pads)
    np.testing.assert_allclose(ops.conv2d(x, kernel, [2, 1], padding), convolved, atol=1e-5)
    pooled = nnx.max_pool(x, (2, 3), (2, 1), pads)
    np.testing.assert_array_equal(ops.max_pool(x, [2, 3], (2, 1), padding), pooled)
    means = nnx.avg_pool(x, (2, 3), (2, 1), pads)
    strides: Any = np.array([2, 1])
    np.testing.assert_allclose(ops.avg_pool(x, [2, 3], strides, padding), means, atol=1e-6)


def test_max_pool_of_nan_and_infinity_equals_flax() -> None:
    x = np.array(normal(0, (2, 8, 8, 2)))
    x[0, 2:6, 2:6], x[1, 3, 3], x[1, 6, 0, 1] = -math.inf, math.nan, math.inf
    for window, strides in (((2, 2), (2, 2)), ((3, 3), (1, 1))):
        expected = nnx.max_pool(jnp.asarray(x), window, strides, "SAME")
        result = ops.max_pool(jnp.asarray(x), window, strides, "SAME")
        np.testing.assert_array_equal(result, expected)
