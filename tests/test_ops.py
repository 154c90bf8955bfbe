import json
import platform
import re
import unittest.mock
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import normal
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dlc_jax import ops
from dlc_jax.ops import choice, im2col, onednn, winograd
from dlc_jax.ops.windows import explicit_padding

Shape = tuple[int, ...]


@st.composite
def windows(draw: st.DrawFn) -> tuple[Shape, tuple[int, int], tuple[int, int], Any]:
    """An image's shape, and a window, strides and padding that fit it."""
    size = st.integers(1, 3)
    window = draw(st.tuples(size, size))
    strides = draw(st.tuples(size, size))
    # Within the window, so that every window holds a pixel.
    pads = st.tuples(*(st.tuples(*[st.integers(0, w - 1)] * 2) for w in window))
    padding = draw(st.one_of(st.sampled_from(["SAME", "VALID"]), pads))
    height, width = (draw(st.integers(w, w + 7)) for w in window)
    return (draw(st.integers(1, 3)), height, width, draw(size)), window, strides, padding


# Compiled as a whole, which takes far less time than to compile values and gradients apart.
@partial(jax.jit, static_argnums=0)
def both_gradients(function: Any, *arguments: Any, cotangent: Any) -> Any:
    values, vjp = jax.vjp(function, *arguments)
    return values, *vjp(cotangent.astype(values.dtype))


def xla_conv2d(strides: Any, padding: Any, **options: Any) -> Any:
    return partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **options,
    )


def compare_convolutions(
    ours: Any, x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, units: float = 1
) -> None:
    """Values and both gradients are within rounding of float64's, or as near as XLA's own.

    `ours` computes these from images, kernel and the gradient of the result. Rounding is that of
    sums of terms: some units in the last place of the sum of the terms' absolute values.
    """
    xla = xla_conv2d(strides, padding)
    cotangent = normal(2, jax.eval_shape(xla, x, kernel).shape, x.dtype)
    arrays = [np.asarray(a, np.float64) for a in (x, kernel, cotangent)]
    exact, sizes = (
        oracle.convolved(images, weights, strides, padding, gradient)
        for images, weights, gradient in (arrays, [abs(array) for array in arrays])
    )
    rivals = None
    unit = float(jnp.finfo(x.dtype).eps)
    for part, result in enumerate(jax.jit(ours)(x, kernel, cotangent)):
        assert (result.shape, result.dtype) == (exact[part].shape, x.dtype)
        error = np.abs(np.asarray(result, np.float64) - exact[part]).max()
        if error > units * unit * sizes[part].max():
            # XLA's own is compiled only where it is needed, which is seldom.
            rivals = rivals or both_gradients(xla, x, kernel, cotangent=cotangent)
            bound = np.abs(np.asarray(rivals[part], np.float64) - exact[part]).max()
            assert error <= 2 * bound


def by_conv2d(strides: Any, padding: Any) -> Any:
    conv2d = partial(ops.conv2d, strides=strides, padding=padding)

    def values_and_gradients(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
        values, vjp = jax.vjp(conv2d, x, kernel)
        return values, *vjp(cotangent)

    return values_and_gradients


def by_algorithm(algorithm: Any, strides: Any, pads: Any) -> Any:
    """The parts that an algorithm has, and XLA's others."""

    def part(name: str) -> Any:
        return getattr(algorithm, name, None) or getattr(choice.xla, name)

    def values_and_gradients(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
        return (
            part("convolve")(x, kernel, strides, pads),
            part("input_gradient")(kernel, cotangent, x.shape, strides, pads),
            part("kernel_gradient")(x, cotangent, kernel.shape, strides, pads),
        )

    return values_and_gradients


def random_images_and_kernel(
    shape: Shape, window: tuple[int, int], features: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    return normal(0, shape, dtype), normal(1, (*window, shape[3], features), dtype)


@pytest.mark.versions
@settings(max_examples=6, deadline=None)
@given(windows(), st.integers(1, 3), st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_conv2d_is_as_accurate_as_xla(
    case: tuple[Shape, tuple[int, int], tuple[int, int], Any], features: int, dtype: Any
) -> None:
    shape, window, strides, padding = case
    x, kernel = random_images_and_kernel(shape, window, features, dtype)
    compare_convolutions(by_conv2d(strides, padding), x, kernel, strides, padding)


needs_onednn = pytest.mark.skipif(not onednn.is_available(), reason="JAX without oneDNN")


@pytest.mark.versions
@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="JAX without oneDNN"
)
def test_onednn_is_available_on_linux() -> None:
    assert onednn.is_available()


# Every algorithm on shapes of its own, whether `conv2d` would choose it there or not.
@pytest.mark.versions
@settings(max_examples=18, deadline=None)
@given(
    st.sampled_from([name for name in choice.ALGORITHMS if name != "xla"]),
    windows(),
    st.integers(1, 3),
    st.sampled_from([jnp.float32, jnp.bfloat16]),
    st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2),
    st.booleans(),
)
def test_algorithms_are_as_accurate_as_xla(
    name: str,
    case: tuple[Shape, tuple[int, int], tuple[int, int], Any],
    features: int,
    dtype: Any,
    pads: Any,
    large: bool,
) -> None:
    assume(name not in ("onednn", "space_to_depth") or onednn.is_available())
    shape, window, strides, _ = case
    if name == "fourier":
        strides = (1, 1)
    if name == "winograd":
        window, strides = (3, 3), (1, 1)
        # Large images have the larger tiles.
        more = 8 if large else 2
        shape = (shape[0], shape[1] + more, shape[2] + more, shape[3])
    if name == "space_to_depth":
        window = tuple(max(w, s) for w, s in zip(window, strides, strict=True))
        shape = (shape[0], shape[1] + 2, shape[2] + 2, shape[3])
    x, kernel = random_images_and_kernel(shape, window, features, dtype)
    # Winograd's transforms are sums, also where the kernel is a single pixel.
    units = 4 if name in ("winograd", "fourier") else 1
    ours = by_algorithm(choice.ALGORITHMS[name], strides, pads)
    compare_convolutions(ours, x, kernel, strides, pads, units)


# Wide layers, one of them with large tiles, a strided one, the lecture's first layer, and one in
# which no patch of output columns divides the width.
CASES = [
    pytest.param(onednn, (16, 8, 8, 32), (5, 5, 32, 32), 1, "VALID", marks=needs_onednn),
    (winograd, (8, 9, 10, 16), (3, 3, 16, 16), 1, "SAME"),
    (winograd, (16, 7, 6, 16), (3, 3, 16, 16), 1, "VALID"),
    pytest.param(onednn, (26, 13, 12, 64), (3, 3, 64, 64), 2, ((1, 1), (1, 1)), marks=needs_onednn),
    (im2col, (4, 12, 12, 1), (5, 5, 1, 32), 1, "VALID"),
    (im2col, (2, 9, 9, 3), (3, 3, 3, 8), 1, "SAME"),
]
ONE_OF_EACH = [CASES[i] for i in (1, 3, 4)]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What makes `conv2d` use an algorithm, whatever the shapes."""

    def choose(algorithm: Any) -> None:
        [name] = [name for name, module in choice.ALGORITHMS.items() if module is algorithm]
        monkeypatch.setattr(choice, "fastest", lambda *_, **__: name)

    return choose


@pytest.mark.parametrize(("chosen", "x_shape", "kernel_shape", "stride", "padding"), CASES)
def test_chosen_algorithm_is_as_accurate_as_xla(
    chosen: Any,
    x_shape: Shape,
    kernel_shape: Shape,
    stride: int,
    padding: Any,
    monkeypatch: pytest.MonkeyPatch,
    choose: Any,
) -> None:
    choose(chosen)
    x = normal(0, x_shape)
    kernel = normal(1, kernel_shape)
    called = [unittest.mock.Mock(wraps=getattr(chosen, part)) for part in choice.PARTS]
    for part, mock in zip(choice.PARTS, called, strict=True):
        monkeypatch.setattr(chosen, part, mock)
    strides = (stride, stride)
    compare_convolutions(by_conv2d(strides, padding), x, kernel, strides, padding)
    assert all(mock.called for mock in called)


@pytest.mark.parametrize("with_onednn", [False, pytest.param(True, marks=needs_onednn)])
@pytest.mark.parametrize("shared", [False, True])
def test_choices_are_fast(shared: bool, with_onednn: bool) -> None:
    table = json.loads(Path(choice.__file__).with_name("timings.json").read_text())
    rows = table[choice.section(shared, with_onednn)]
    assert len(rows) >= (60 if with_onednn else 40)
    for name, row in rows.items():
        shapes = choice.from_sizes(name)
        algorithm = choice.fastest("convolve", shapes, shared=shared, with_onednn=with_onednn)
        if algorithm not in choice.SHARING:
            assert row["convolve"].get(algorithm, 1.0) <= 1.05, name
        for part in ("input_gradient", "kernel_gradient"):
            algorithm = choice.fastest(part, shapes, shared=shared, with_onednn=with_onednn)
            assert algorithm not in ("xla", "phases")


def calls_onednn(function: Any, *arguments: Any) -> bool:
    return "__onednn$" in jax.jit(function).lower(*arguments).as_text()


@needs_onednn
def test_onednn_is_called_where_it_is_fastest() -> None:
    x, kernel = normal(0, (64, 32, 32, 64)), normal(1, (3, 3, 64, 128))
    assert calls_onednn(partial(ops.conv2d, strides=(2, 2)), x, kernel)


def test_programs_that_are_exported_or_divided_by_xla_do_not_call_onednn(choose: Any) -> None:
    choose(onednn)
    x, kernel = normal(0, (4, 6, 6, 3)), normal(1, (3, 3, 3, 4))
    exported = jax.export.export(jax.jit(ops.conv2d))(x, kernel)
    assert "__onednn$" not in exported.mlir_module()
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    assert not calls_onednn(ops.conv2d, spread, kernel)


def test_float64_is_not_rounded() -> None:
    with jax.enable_x64(True):
        x, kernel = normal(0, (64, 8, 8, 64), jnp.float64), normal(1, (3, 3, 64, 64), jnp.float64)
        compare_convolutions(by_conv2d((1, 1), "SAME"), x, kernel, (1, 1), "SAME", units=4)


def test_without_onednn_it_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "is_available", onednn.is_available.__wrapped__)
    monkeypatch.setattr(onednn, "_call", onednn._call.__wrapped__)
    monkeypatch.setattr(onednn, "_OPTIONS", {"xla_cpu_no_such_option": True})
    assert not onednn.is_available()
    x, kernel = normal(0, (64, 8, 8, 64)), normal(1, (3, 3, 64, 64))
    assert not calls_onednn(ops.conv2d, x, kernel)
    compare_convolutions(by_conv2d((1, 1), "SAME"), x, kernel, (1, 1), "SAME", units=4)


def test_parts_choose_their_algorithms_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"convolve": "winograd", "input_gradient": "phases", "kernel_gradient": "im2col"}
    monkeypatch.setattr(choice, "fastest", lambda part, *_, **__: names[part])
    called = {}
    for part, name in names.items():
        called[part] = unittest.mock.Mock(wraps=getattr(choice.ALGORITHMS[name], part))
        monkeypatch.setattr(choice.ALGORITHMS[name], part, called[part])
    x, kernel = normal(0, (2, 6, 6, 3)), normal(1, (3, 3, 3, 4))
    compare_convolutions(by_conv2d((1, 1), "SAME"), x, kernel, (1, 1), "SAME")
    assert all(mock.called for mock in called.values())


def mean_square(x: Any, kernel: Any, stride: int, padding: Any) -> Any:
    return (ops.conv2d(x, kernel, (stride, stride), padding) ** 2).mean()


def assert_within_rounding(ours: Any, expected: Any) -> None:
    for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-5 * float(abs(b).max()))


@pytest.mark.parametrize(("chosen", "x_shape", "kernel_shape", "stride", "padding"), ONE_OF_EACH)
def test_vmap_over_images(
    chosen: Any, x_shape: Shape, kernel_shape: Shape, stride: int, padding: Any, choose: Any
) -> None:
    choose(chosen)
    x, kernel = normal(0, (2, *x_shape)), normal(1, kernel_shape)
    grad = jax.grad(partial(mean_square, stride=stride, padding=padding), (0, 1))
    result = jax.jit(jax.vmap(grad, (0, None)))(x, kernel)
    one_by_one = [oracle.convolved(one, kernel, (stride, stride), padding)[1:] for one in x]
    assert_within_rounding(result, [np.stack(some) for some in zip(*one_by_one, strict=True)])


def test_gradients_inside_scan_and_checkpoint() -> None:
    x, kernel = normal(0, (2, 4, 6, 6, 2)), normal(1, (2, 3, 2, 4))
    loss = partial(mean_square, stride=1, padding="SAME")
    grad, remat = (jax.grad(f, (0, 1)) for f in (loss, jax.checkpoint(loss)))

    @jax.jit
    def in_loops(x: jax.Array, kernel: jax.Array) -> Any:
        def over_images(gradients: Any) -> Any:
            return lax.scan(lambda _, one: (None, gradients(one, kernel)), None, x)

        return [over_images(gradients) for gradients in (grad, remat)]

    one_by_one = [oracle.convolved(one, kernel, (1, 1), "SAME")[1:] for one in x]
    expected = [np.stack(some) for some in zip(*one_by_one, strict=True)]
    assert_within_rounding(in_loops(x, kernel), [expected, expected])


@pytest.mark.versions
@settings(max_examples=10, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.one_of(
        st.sampled_from(["SAME", "VALID"]),
        st.tuples(*[st.tuples(st.integers(3, 5), st.integers(3, 5))] * 2),
    ),
)
def test_conv_transpose_and_its_gradients_equal_xla(
    shape: Shape, window: tuple[int, int], strides: tuple[int, int], padding: Any
) -> None:
    x, kernel = random_images_and_kernel(shape, window, 2, jnp.float32)
    options = {"strides": strides, "padding": padding}
    xla = partial(lax.conv_transpose, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)
    ours = partial(ops.conv_transpose, **options)
    cotangent = normal(2, jax.eval_shape(xla, x, kernel).shape)
    results, expected = (both_gradients(f, x, kernel, cotangent=cotangent) for f in (ours, xla))
    for a, b in zip(results, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_conv_transpose_and_groups_call_onednn() -> None:
    x, kernel = normal(0, (32, 14, 14, 128)), normal(1, (5, 5, 128, 64))
    assert calls_onednn(partial(ops.conv_transpose, strides=(2, 2)), x, kernel)
    assert calls_onednn(partial(ops.conv2d, groups=128), x, kernel[:, :, :1, :1].repeat(128, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "FULL"}, "'FULL' is none of"),
        ({"strides": (0, 1)}, r"\(0, 1\)"),
        ({"padding": ((-2, -2), (0, 0))}, "does not fit"),
    ],
)
def test_conv_transpose_names_the_argument_that_is_wrong(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ops.conv_transpose(jnp.ones((1, 2, 2, 3)), jnp.ones((3, 3, 3, 4)), **options)


@pytest.mark.parametrize("groups", [2, 6])
def test_groups_equal_separate_convolutions(groups: int) -> None:
    x, kernel = random_images_and_kernel((3, 5, 5, 6), (3, 2), 12, jnp.float32)
    kernel = kernel[:, :, : 6 // groups]
    cotangent = normal(3, (3, 5, 5, 12))
    results = both_gradients(partial(ops.conv2d, groups=groups), x, kernel, cotangent=cotangent)
    parts = [np.split(np.asarray(array), groups, 3) for array in (x, kernel, cotangent)]
    each = [
        oracle.convolved(images, weights, (1, 1), "SAME", gradient)
        for images, weights, gradient in zip(*parts, strict=True)
    ]
    for result, expected in zip(results, zip(*each, strict=True), strict=True):
        np.testing.assert_allclose(result, np.concatenate(expected, 3), rtol=1e-5, atol=1e-5)


# Within an operation explicit axes are automatic ones.
@pytest.mark.parametrize(
    ("axis_type", "chosen", "x_shape", "kernel_shape", "stride", "padding"),
    [(AxisType.Auto, *ONE_OF_EACH[0]), (AxisType.Explicit, *ONE_OF_EACH[-1])],
)
def test_conv2d_of_a_sharded_batch(
    axis_type: AxisType,
    chosen: Any,
    x_shape: Shape,
    kernel_shape: Shape,
    stride: int,
    padding: Any,
    choose: Any,
) -> None:
    choose(chosen)
    x, kernel = normal(0, x_shape), normal(1, kernel_shape)
    loss = partial(mean_square, stride=stride, padding=padding)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
        whole = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
        result = jax.jit(jax.grad(loss, (0, 1)))(spread, whole)
    if axis_type is AxisType.Explicit:
        assert result[0].sharding.spec[0] == "batch"
    assert_within_rounding(result, oracle.convolved(x, kernel, (stride, stride), padding)[1:])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("window", "strides"), [((2, 2), (2, 2)), ((3, 2), (1, 1))])
def test_max_pool_of_a_sharded_batch(axis_type: AxisType, window: Any, strides: Any) -> None:
    x = normal(0, (4, 6, 6, 3))
    pool = partial(ops.max_pool, window=window, strides=strides)
    shape = jax.eval_shape(pool, x).shape
    cotangent = normal(1, shape)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        arrays = jax.device_put((x, cotangent), NamedSharding(mesh, PartitionSpec("batch")))
        result = both_gradients(pool, arrays[0], cotangent=arrays[1])
    if axis_type is AxisType.Explicit:
        assert result[1].sharding.spec[0] == "batch"
    assert_within_rounding(result, oracle.largest(x, window, strides, "VALID", cotangent))


@pytest.mark.versions
@pytest.mark.parametrize(("chosen", "x_shape", "kernel_shape", "stride", "padding"), ONE_OF_EACH)
def test_kernel_gradient_inside_shard_map_is_summed_over_devices(
    chosen: Any, x_shape: Shape, kernel_shape: Shape, stride: int, padding: Any, choose: Any
) -> None:
    choose(chosen)
    x, kernel = normal(0, x_shape), normal(1, kernel_shape)

    def gradient(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.grad(lambda kernel: mean_square(x, kernel, stride, padding))(kernel)

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    specs = PartitionSpec("batch"), PartitionSpec()
    spread = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    expected = oracle.convolved(x, kernel, (stride, stride), padding)[2]
    # A sum of the means of two halves.
    assert_within_rounding(jax.jit(spread)(x, kernel) / 2, expected)


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([im2col, onednn]), windows(), st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_chunks_are_as_accurate_as_xla(
    algorithm: Any, case: tuple[Shape, tuple[int, int], tuple[int, int], Any], dtype: Any
) -> None:
    assume(algorithm is not onednn or onednn.is_available())
    (_, *shape), window, strides, padding = case
    x, kernel = random_images_and_kernel((6, *shape), window, 3, dtype)
    pads = explicit_padding(x.shape[1:3], window, strides, padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(im2col, "_MAX_BATCH_BYTES", 0)
        patch.setattr(algorithm, "_CHUNK_BYTES", 3000)
        ours = by_algorithm(algorithm, strides, pads)
        # The kernel's gradient is a sum of as many sums as there are parts of the batch.
        compare_convolutions(ours, x, kernel, strides, pads, units=4)


def test_conv2d_with_precision_equals_xla() -> None:
    x, kernel = random_images_and_kernel((4, 8, 8, 32), (5, 5), 64, jnp.float32)
    xla = xla_conv2d((1, 1), "SAME", precision="highest")
    exact = partial(ops.conv2d, precision="highest")
    cotangent = normal(3, (4, 8, 8, 64))
    results = both_gradients(exact, x, kernel, cotangent=cotangent)
    rivals = both_gradients(xla, x, kernel, cotangent=cotangent)
    for result, rival in zip(results, rivals, strict=True):
        np.testing.assert_array_equal(result, rival)
    assert (jax.jit(ops.conv2d)(x, kernel) != results[0]).any()


@pytest.mark.versions
@settings(max_examples=12, deadline=None)
@given(windows(), st.booleans(), st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_max_pool_and_its_gradient_equal_numpy(
    case: tuple[Shape, tuple[int, int], tuple[int, int], Any], tiled: bool, dtype: Any
) -> None:
    shape, window, strides, padding = case
    if tiled:
        strides, padding = window, "VALID"
    # Few different values, exact in bfloat16 and often the largest of a window together.
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, shape).astype(dtype))
    ours = partial(ops.max_pool, window=window, strides=strides, padding=padding)
    cotangent = normal(0, jax.eval_shape(ours, x).shape, dtype)
    result = both_gradients(ours, x, cotangent=cotangent)
    expected = oracle.largest(x, window, strides, padding, cotangent)
    assert result[0].dtype == result[1].dtype == dtype
    np.testing.assert_array_equal(np.asarray(result[0], np.float64), expected[0])
    unit = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(result[1], np.float64), expected[1], unit, unit)


def test_max_pool_gradient_goes_to_the_first_maximum() -> None:
    x = jnp.array([[1.0, 2.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]]).reshape(1, 2, 4, 1)
    grad = jax.grad(lambda x: (ops.max_pool(x, (2, 2)) * jnp.array([3.0, 5.0])[:, None]).sum())(x)
    expected = [[0.0, 3.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(grad[0, :, :, 0], expected)


def network(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.sum(ops.max_pool(ops.conv2d(x, kernel, padding="VALID"), (2, 2)) ** 2)


def test_gradient_formulation_depends_on_the_lowering_platform() -> None:
    arguments = jnp.ones((2, 8, 8, 2)), jnp.ones((3, 3, 2, 4))
    grad = jax.jit(jax.grad(network, (0, 1)))
    lowered = {p: grad.trace(*arguments).lower(lowering_platforms=(p,)) for p in ("cpu", "cuda")}
    assert "select_and_scatter" not in lowered["cpu"].as_text()
    assert "select_and_scatter" in lowered["cuda"].as_text()


def test_forward_and_backward_pass_share_patches(choose: Any) -> None:
    choose(im2col)
    arguments = jnp.ones((4, 12, 12, 16)), jnp.ones((5, 5, 16, 8))
    conv2d = partial(ops.conv2d, padding="VALID")
    grad = jax.jit(jax.grad(lambda *a: (conv2d(*a) ** 2).sum(), (0, 1)))
    program = str(grad.lower(*arguments).compile().as_text())
    assert len(re.findall(r"= f32\[4,8,8,400\]\S* concatenate\(", program)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.conv2d(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 2, 4))), "3 channels"),
        (lambda: ops.conv2d(jnp.ones((8, 8, 3)), jnp.ones((3, 3, 3, 4))), r"\(8, 8, 3\)"),
        (
            lambda: ops.conv2d(jnp.ones((1, 2, 8, 3)), jnp.ones((3, 3, 3, 4)), padding="VALID"),
            "2x8",
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4)), padding="FULL"),
            "'FULL' is none of",
        ),
        (lambda: ops.conv2d(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4)), (0, 1)), r"\(0, 1\)"),
        (
            lambda: ops.conv2d(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4), jnp.bfloat16)),
            "bfloat16",
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 2, 3)), groups=2),
            "2 groups do not divide 4 channels and 3 features",
        ),
        (lambda: ops.max_pool(jnp.ones((1, 8, 8)), (2, 2)), r"\(1, 8, 8\)"),
        (lambda: ops.max_pool(jnp.ones((1, 2, 8, 1)), (3, 3)), "2x8"),
        (lambda: ops.max_pool(jnp.ones((1, 8, 8, 1)), (2, 2), padding=((1, 1),)), r"\(\(1, 1\),\)"),
    ],
)
def test_invalid_arguments_raise(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
