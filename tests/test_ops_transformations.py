"""JAX's transformations of the operations: what they give for XLA's own, they give for ours."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dlc_jax import ops

Loss = Callable[[Any, Any], jax.Array]

NHWC = ("NHWC", "HWIO", "NHWC")
# A small window, since each of its places is an operation of its own in many programs.
X, KERNEL = normal(0, (2, 7, 6, 3)), normal(1, (2, 3, 3, 4))
DX, DKERNEL = normal(2, X.shape), normal(3, KERNEL.shape)

# Window, strides and padding. The last window is too large for a gradient of our own.
WINDOWS: dict[str, tuple[Any, Any, str]] = {
    "max_pool": ((2, 2), (2, 2), "VALID"),
    "overlapping max_pool": ((3, 2), (2, 1), "SAME"),
    "large max_pool": ((6, 6), (1, 1), "SAME"),
    "avg_pool": ((2, 2), (2, 1), "SAME"),
}


def xlas_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)


def losses(*pools: str) -> tuple[Loss, Loss]:
    """A smooth function of images and kernel by our operations, and by XLA's own.

    It convolves, then pools by any of `WINDOWS`.
    """

    def loss(library: Any, convolve: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(pooled(library, convolve(x, kernel), *pools)))

    return partial(loss, ops, ops.conv2d), partial(loss, nnx, xlas_convolution)


def pooled(library: Any, x: jax.Array, *pools: str) -> jax.Array:
    for name in pools:
        x = getattr(library, name.split()[-1])(x, *WINDOWS[name])
    return x


def pooling_losses(name: str) -> tuple[Loss, Loss]:
    """The same without a convolution: a function of images and of what they are multiplied by."""

    def loss(library: Any, x: jax.Array, factors: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(pooled(library, x * factors, name)))

    return partial(loss, ops), partial(loss, nnx)


def assert_same(ours: Any, expected: Any) -> None:
    for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1, np.abs(b).max()))


def exactly(transformed: Any, *arguments: jax.Array) -> Any:
    """In float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(argument, np.float64)) for argument in arguments]
        return jax.tree.map(np.asarray, jax.jit(transformed)(*wide))


def derivatives(f: Loss, x: Any, kernel: Any, dx: Any, dkernel: Any) -> dict[str, Any]:
    """Of first to third order, by the forward mode, the reverse mode, and both."""
    point, direction, both = (x, kernel), (dx, dkernel), (0, 1)

    def along(f: Loss) -> Loss:
        return lambda x, kernel: jax.jvp(f, (x, kernel), direction)[1]

    def on_line(steps: jax.Array) -> jax.Array:
        return f(x + steps[0] * dx, kernel + steps[1] * dkernel)

    def projected(x: Any, kernel: Any) -> jax.Array:
        grad_x, grad_kernel = jax.grad(f, both)(x, kernel)
        return jnp.vdot(grad_x, dx) + jnp.vdot(grad_kernel, dkernel)

    origin = jnp.zeros(2, x.dtype)
    return {
        "jvp": jax.jvp(f, point, direction),
        "of the images alone": jax.jvp(lambda x: f(x, kernel), (x,), (dx,)),
        "linearize": jax.linearize(f, *point)[1](*direction),
        "jacfwd": jax.jacfwd(on_line)(origin),
        "hessian": jax.hessian(on_line)(origin),
        "forward over reverse": jax.jvp(jax.grad(f, both), point, direction)[1],
        "reverse over forward": jax.grad(along(f), both)(*point),
        "reverse over reverse": jax.grad(projected, both)(*point),
        "third order": jax.grad(along(along(f)), both)(*point),
    }


@pytest.mark.parametrize("name", ["conv2d", *WINDOWS])
def test_derivatives_equal_xla(name: str) -> None:
    ours, xlas = pooling_losses(name) if name in WINDOWS else losses()
    arguments = (X, X + 1, DX, DX - 1) if name in WINDOWS else (X, KERNEL, DX, DKERNEL)
    assert_same(
        jax.jit(partial(derivatives, ours))(*arguments),
        exactly(partial(derivatives, xlas), *arguments),
    )


def mapped(f: Loss, x: Any, kernel: Any, dx: Any, dkernel: Any) -> dict[str, Any]:
    """`jax.vmap` over any of the arguments, of gradients and within them."""
    xs, kernels = jnp.stack([x, 2 * x]), jnp.stack([kernel, -kernel, kernel / 2], 3)
    grad = jax.grad(f, (0, 1))

    def product(x: Any, kernel: Any) -> Any:
        return jax.jvp(grad, (x, kernel), (dx, dkernel))[1]

    def sum_over_all(x: Any, kernels: Any) -> jax.Array:
        inner = jax.vmap(jax.vmap(f, (None, 3)), (0, None))
        return jnp.sum(inner(jnp.stack([x, x + dx]), kernels) ** 2)

    return {
        "images": jax.vmap(grad, (0, None))(xs, kernel),
        "kernels": jax.vmap(grad, (None, 3), 1)(x, kernels),
        "both": jax.vmap(grad, (0, 3))(xs, kernels[..., :2, :]),
        "one in another": jax.vmap(jax.vmap(product, (0, None)), (None, 3))(xs, kernels),
        "gradient of it, and second order": jax.jvp(
            jax.grad(sum_over_all, (0, 1)), (x, kernels), (dx, jnp.flip(kernels, 0))
        ),
    }


def test_vmap_over_any_argument_equals_xla() -> None:
    ours, xlas = losses("overlapping max_pool")
    arguments = X, KERNEL, DX, DKERNEL
    assert_same(
        jax.jit(partial(mapped, ours))(*arguments), exactly(partial(mapped, xlas), *arguments)
    )


def eager(f: Loss, x: Any, kernel: Any) -> Any:
    """Without `jax.jit` around it."""
    direction = DX.astype(x.dtype), DKERNEL.astype(x.dtype)
    product = jax.jvp(jax.grad(f, (0, 1)), (x, kernel), direction)[1]
    rows = lax.scan(lambda total, x: (total + f(x[None], kernel), None), 0.0 * f(x, kernel), x)[0]
    return product, rows


def test_eager_calls_equal_jit() -> None:
    ours, xlas = losses("max_pool", "avg_pool")
    expected = exactly(partial(eager, xlas), X, KERNEL)
    assert_same(eager(ours, X, KERNEL), expected)
    with jax.disable_jit():
        assert_same(eager(ours, X, KERNEL), expected)


@pytest.mark.parametrize("argument", [0, 1])
def test_linear_transpose_of_conv2d(argument: int) -> None:
    def there_and_back(convolve: Any, x: Any, kernel: Any, grad: Any) -> Any:
        arguments = [x, kernel]

        def linear(array: Any) -> jax.Array:
            return convolve(*arguments[:argument], array, *arguments[argument + 1 :])

        def transposed(grad: Any) -> Any:
            return jax.linear_transpose(linear, arguments[argument])(grad)[0]

        back = jax.linear_transpose(transposed, grad)(arguments[argument])
        return transposed(grad), back

    arrays = X, KERNEL, normal(4, (2, 7, 6, 4))
    ours = jax.jit(partial(there_and_back, ops.conv2d))(*arrays)
    assert_same(ours, exactly(partial(there_and_back, xlas_convolution), *arrays))


def at_once(f: Loss, x: Any, kernel: Any, dx: Any, dkernel: Any) -> Any:
    """Gradients, a tangent and a product with the Hessian."""
    grad = jax.grad(f, (0, 1))
    point, direction = (x, kernel), (dx, dkernel)
    return grad(*point), jax.jvp(f, point, direction)[1], jax.jvp(grad, point, direction)[1]


@pytest.mark.parametrize("checked", [True, False])
def test_derivatives_inside_shard_map(checked: bool) -> None:
    ours, xlas = losses("max_pool", "avg_pool")
    batch, whole = PartitionSpec("batch"), PartitionSpec()

    def on_each(*arguments: Any) -> Any:
        (grad_x, grad_kernel), tangent, (dgrad_x, dgrad_kernel) = at_once(ours, *arguments)
        tangent = lax.psum(tangent, "batch")
        if not checked:  # then it is not known what has to be summed
            grad_kernel, dgrad_kernel = lax.psum((grad_kernel, dgrad_kernel), "batch")
        return (grad_x, grad_kernel), tangent, (dgrad_x, dgrad_kernel)

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(
        on_each,
        mesh=mesh,
        in_specs=(batch, whole, batch, whole),
        out_specs=((batch, whole), whole, (batch, whole)),
        check_vma=checked,
    )
    arguments = X, KERNEL, DX, DKERNEL
    assert_same(jax.jit(spread)(*arguments), exactly(partial(at_once, xlas), *arguments))


def test_derivatives_on_a_mesh_with_explicit_axes() -> None:
    ours, xlas = losses("max_pool", "avg_pool")
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x, dx = (jax.device_put(a, NamedSharding(mesh, PartitionSpec("batch"))) for a in (X, DX))
        kernel, dkernel = (
            jax.device_put(a, NamedSharding(mesh, PartitionSpec())) for a in (KERNEL, DKERNEL)
        )
        result = jax.jit(partial(at_once, ours))(x, kernel, dx, dkernel)
        assert result[0][0].sharding.spec[0] == "batch"
    assert_same(result, exactly(partial(at_once, xlas), X, KERNEL, DX, DKERNEL))


def test_export_for_several_platforms_and_symbolic_batch() -> None:
    ours, xlas = losses("max_pool")
    grad = jax.jit(jax.grad(ours, (0, 1)))
    exported = jax.export.export(grad, platforms=("cpu", "cuda", "tpu"))(X, KERNEL)
    assert_same(jax.jit(exported.call)(X, KERNEL), exactly(jax.grad(xlas, (0, 1)), X, KERNEL))
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 7, 6, 3"), jnp.float32)
    of_any = jax.export.export(jax.jit(ours))(images, KERNEL)
    assert_same(jax.jit(of_any.call)(X, KERNEL), exactly(xlas, X, KERNEL))


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (ops.conv2d, [(8, 17, 16, 32), (3, 3, 32, 32)]),
        (partial(ops.conv2d, groups=2), [(2, 7, 8, 4), (3, 3, 2, 4)]),
        (partial(ops.max_pool, window=(2, 2)), [(2, 7, 8, 5)]),
        (partial(ops.max_pool, window=(3, 3), strides=(2, 2), padding="SAME"), [(2, 7, 8, 5)]),
        (partial(ops.avg_pool, window=(2, 2), strides=(1, 1), padding="SAME"), [(2, 7, 8, 5)]),
    ],
)
def test_eager_call_compiles_one_program(
    operation: Any, shapes: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    arrays = [normal(seed, shape) for seed, shape in enumerate(shapes)]
    with caplog.at_level(logging.WARNING), jax.log_compiles(True):
        operation(*arrays)
    compiled = [record.getMessage() for record in caplog.records]
    assert sum(message.startswith("Compiling") for message in compiled) == 1


def test_operation_is_one_equation_of_the_jaxpr() -> None:
    def network(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return ops.max_pool(ops.conv2d(x, kernel), (2, 2))

    jaxpr = jax.make_jaxpr(network)(X, KERNEL).jaxpr
    assert [equation.primitive.name for equation in jaxpr.eqns] == ["conv2d", "max_pool"]


def test_only_requested_gradients_are_computed() -> None:
    loss, _ = losses()
    for argnums, asked in ((0, (True, False)), (1, (False, True)), ((0, 1), (True, True))):
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums))(X, KERNEL).jaxpr
        found = [
            e.params["requested"] for e in jaxpr.eqns if e.primitive.name == "conv2d_gradients"
        ]
        assert found == [asked]


def test_default_matmul_precision_is_that_of_the_call() -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return ops.conv2d(x, kernel)

    lowered = jax.jit(convolve).trace(X, KERNEL).lower(lowering_platforms=("cuda",))
    assert "HIGHEST" in lowered.as_text()
