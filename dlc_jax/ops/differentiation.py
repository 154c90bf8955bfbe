"""The derivatives of a convolution, of any order and in both modes.

A convolution is linear in the images and in the kernel, and so are its two gradients: with
`<a, b>` for the sum of products, all three are parts of one trilinear form,

    <grad, convolution(x, kernel)> = <x, input_gradient(kernel, grad)>
                                   = <kernel, kernel_gradient(x, grad)>

Two primitives are closed under differentiation. "conv2d" is a sum of convolutions: that of
tangents is convolution(dx, kernel) + convolution(x, dkernel). "conv2d_gradients" is one of the
two gradients or both.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad

from dlc_jax.ops.primitives import Mapped, add, bind, is_zero, primitive, select, summed, zero_like
from dlc_jax.ops.windows import Pads, out_shape


class Formulation(NamedTuple):
    """A way to compute a convolution and its gradients.

    All functions take the keywords `strides`, `pads`, `groups` and `jointly_mapped` (see
    `primitive`).

    Attributes:
      convolve: Function of (x, kernel).
      input_gradient: Function of (kernel, grad, x_shape).
      kernel_gradient: Function of (x, grad, kernel_shape).
    """

    convolve: Callable[..., Array]
    input_gradient: Callable[..., Array]
    kernel_gradient: Callable[..., Array]


class Operations(NamedTuple):
    """Differentiable operations.

    Both take the keywords `strides`, `padding` and `groups`.

    Attributes:
      convolve: Function of (x, kernel).
      input_gradient: Function of (kernel, grad, x_shape).
    """

    convolve: Callable[..., Array]
    input_gradient: Callable[..., Array]


def differentiable(cpu: Formulation, gpu: Formulation, default: Formulation) -> Operations:
    """Makes differentiable operations of formulations.

    Args:
      cpu: Formulation on CPUs.
      gpu: Formulation on GPUs.
      default: Formulation on other platforms, and in programs that are exported or that XLA
        divides among CPUs.
    """
    formulations = cpu, gpu, default, default
    conv2d = primitive("conv2d", _conv2d_shapes, *map(_sum_of_convolutions, formulations))
    gradients = primitive(
        "conv2d_gradients", _gradients_shapes, *map(_requested_gradients, formulations)
    )
    rules = _Rules(conv2d, gradients)
    ad.primitive_jvps[conv2d] = rules.conv2d_jvp
    ad.primitive_transposes[conv2d] = rules.conv2d_transpose
    ad.primitive_jvps[gradients] = rules.gradients_jvp
    ad.primitive_transposes[gradients] = rules.gradients_transpose

    def convolve(x: Array, kernel: Array, **window: Any) -> Array:
        return bind(conv2d, x, kernel, **window)[0]

    def input_gradient(
        kernel: Array, grad: Array, x_shape: tuple[int, ...], **window: Any
    ) -> Array:
        shapes = {"x_shape": x_shape, "kernel_shape": kernel.shape}
        return bind(gradients, kernel, grad, requested=(True, False), **shapes, **window)[0]

    return Operations(convolve, input_gradient)


def _conv2d_shapes(*shapes: Any, strides: Any, padding: Pads, groups: int) -> list[tuple[int, ...]]:
    del groups
    return [out_shape(shapes[0], shapes[1], strides, padding)]


def _gradients_shapes(
    *shapes: Any, x_shape: Any, kernel_shape: Any, requested: Any, **params: Any
) -> list[tuple[int, ...]]:
    del shapes, params
    return [
        shape for shape, wanted in zip((x_shape, kernel_shape), requested, strict=True) if wanted
    ]


def _sum_of_convolutions(parts: Formulation) -> Callable[..., list[Array]]:
    def conv2d(*operands: Array, padding: Pads, **window: Any) -> list[Array]:
        pairs = zip(operands[::2], operands[1::2], strict=True)
        return [add(*(parts.convolve(*pair, pads=padding, **window) for pair in pairs))]

    return conv2d


def _requested_gradients(parts: Formulation) -> Callable[..., list[Array]]:
    def gradients(
        *operands: Array,
        x_shape: Any,
        kernel_shape: Any,
        requested: Any,
        padding: Pads,
        **window: Any,
    ) -> list[Array]:
        window["pads"] = padding
        images, kernels = requested
        x, kernel, grad = operands[0], operands[-2], operands[-1]
        results = []
        if images:
            results.append(parts.input_gradient(kernel, grad, x_shape=x_shape, **window))
        if kernels:
            results.append(parts.kernel_gradient(x, grad, kernel_shape=kernel_shape, **window))
        return results

    return gradients


class _Rules(NamedTuple):
    """Differentiation rules of the two primitives, each of which needs the other.

    The operands of "conv2d" are pairs of images and kernels. Those of "conv2d_gradients" are the
    images if the kernel's gradient is requested, the kernel if that of the images is, and the
    gradient of the result.
    """

    conv2d: Primitive
    gradients: Primitive

    def conv2d_jvp(
        self, primals: Sequence[Any], tangents: Sequence[Any], *, mapped: Mapped, **params: Any
    ) -> tuple[list[Any], list[Any]]:
        results = self.conv2d.bind(*primals, mapped=mapped, **params)
        operands: list[Any] = []
        chosen: list[int] = []
        for i, tangent in enumerate(tangents):
            if not is_zero(tangent):
                pair = i - i % 2, i - i % 2 + 1
                operands += [tangent if j == i else primals[j] for j in pair]
                chosen += pair
        if not operands:
            return results, [zero_like(results[0])]
        return results, self.conv2d.bind(*operands, mapped=select(mapped, chosen), **params)

    def conv2d_transpose(
        self, cotangents: Sequence[Any], *operands: Any, mapped: Mapped, **params: Any
    ) -> list[Any]:
        (grad,) = cotangents
        results: list[Any] = [None] * len(operands)
        linear = [i for i, operand in enumerate(operands) if ad.is_undefined_primal(operand)]
        if is_zero(grad):
            return [ad.Zero(x.aval) if i in linear else None for i, x in enumerate(operands)]
        images, kernels = ([i for i in linear if i % 2 == kind] for kind in (0, 1))
        while images or kernels:
            # The gradients of one image and one kernel are computed together.
            image, kernel = (group.pop() if group else None for group in (images, kernels))
            indices = _given_operands(image, kernel)
            given = [operands[i] for i in indices]
            shapes = _shapes(operands, mapped, image, kernel)
            requested = image is not None, kernel is not None
            found = self.gradients.bind(
                *given,
                grad,
                mapped=select(mapped, [*indices, None]),
                requested=requested,
                **shapes,
                **params,
            )
            wanted = [i for i in (image, kernel) if i is not None]
            for i, cotangent in zip(wanted, found, strict=True):
                results[i] = summed(cotangent, mapped, i)
        return results

    def gradients_jvp(
        self,
        primals: Sequence[Any],
        tangents: Sequence[Any],
        *,
        mapped: Mapped,
        requested: tuple[bool, bool],
        **params: Any,
    ) -> tuple[list[Any], list[Any]]:
        results = self.gradients.bind(*primals, mapped=mapped, requested=requested, **params)
        totals = [zero_like(result) for result in results]
        positions = _operand_positions(requested)
        last = len(primals) - 1
        if not is_zero(tangents[last]):
            totals = self.gradients.bind(
                *primals[:last], tangents[last], mapped=mapped, requested=requested, **params
            )
        for name, position in positions.items():
            if not is_zero(tangents[position]):
                requested_alone = (name == "kernel", name == "x")
                (found,) = self.gradients.bind(
                    tangents[position],
                    primals[last],
                    mapped=select(mapped, [position, last]),
                    requested=requested_alone,
                    **params,
                )
                result = 0 if name == "kernel" else len(results) - 1
                totals[result] = add(totals[result], found)
        return results, totals

    def gradients_transpose(
        self,
        cotangents: Sequence[Any],
        *operands: Any,
        mapped: Mapped,
        requested: tuple[bool, bool],
        x_shape: Any,
        kernel_shape: Any,
        **params: Any,
    ) -> list[Any]:
        of_input = cotangents[0] if requested[0] else None
        of_kernel = cotangents[-1] if requested[1] else None
        positions = _operand_positions(requested)
        last = len(operands) - 1
        results: list[Any] = [None] * len(operands)

        def undefined(position: int) -> bool:
            return ad.is_undefined_primal(operands[position])

        def put(position: int, cotangent: Any) -> None:
            results[position] = summed(cotangent, mapped, position)

        if undefined(last):
            pairs: list[Any] = []
            chosen: list[int | None] = []
            if requested[0] and not is_zero(of_input):
                pairs += [of_input, operands[positions["kernel"]]]
                chosen += [None, positions["kernel"]]
            if requested[1] and not is_zero(of_kernel):
                pairs += [operands[positions["x"]], of_kernel]
                chosen += [positions["x"], None]
            if pairs:
                put(last, self.conv2d.bind(*pairs, mapped=select(mapped, chosen), **params)[0])
            else:
                results[last] = ad.Zero(operands[last].aval)
        # Each gradient is linear in the images and in the kernel.
        for name, cotangent in (("kernel", of_input), ("x", of_kernel)):
            position = positions.get(name)
            if position is None or not undefined(position):
                continue
            if is_zero(cotangent):
                results[position] = ad.Zero(operands[position].aval)
                continue
            put(
                position,
                self.gradients.bind(
                    cotangent,
                    operands[last],
                    mapped=select(mapped, [None, last]),
                    requested=(name == "x", name == "kernel"),
                    x_shape=x_shape,
                    kernel_shape=kernel_shape,
                    **params,
                )[0],
            )
        return results


def _operand_positions(requested: tuple[bool, bool]) -> dict[str, int]:
    """Positions of the images and the kernel among the operands of "conv2d_gradients"."""
    names = [name for name, present in (("x", requested[1]), ("kernel", requested[0])) if present]
    return {name: position for position, name in enumerate(names)}


def _given_operands(image: int | None, kernel: int | None) -> list[int]:
    """Indices of the other operand in the pairs of an image and of a kernel of "conv2d"."""
    images = [] if kernel is None else [kernel - 1]
    return images + ([] if image is None else [image + 1])


def _shapes(
    operands: Sequence[Any], mapped: Mapped, image: int | None, kernel: int | None
) -> dict[str, tuple[int, ...]]:
    """Shapes of images and kernel without the axes of `jax.vmap`."""

    def shape(index: int) -> tuple[int, ...]:
        operand = operands[index]
        aval = operand.aval if ad.is_undefined_primal(operand) else operand
        return tuple(aval.shape[sum(flags[index] for _, flags in mapped) :])

    pair = image if image is not None else (kernel or 1) - 1
    return {"x_shape": shape(pair), "kernel_shape": shape(pair + 1)}
