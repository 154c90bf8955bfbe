"""The derivatives of a convolution, of any order and in both modes.

A convolution is linear in the images and in the kernel, and so are its two gradients: with
`<a, b>` for the sum of products, all three are parts of one trilinear form,

    <grad, convolution(x, kernel)> = <x, input_gradient(kernel, grad)>
                                   = <kernel, kernel_gradient(x, grad)>

Two primitives are closed under differentiation. "conv2d" is a sum of convolutions: that of
tangents is convolution(dx, kernel) + convolution(x, dkernel). "conv2d_gradients" is one of the
two gradients or both, as many as are asked for; both at once share what they make of the
gradient of the result.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad

from dlc_jax.ops.patches import out_shape
from dlc_jax.ops.primitives import Mapped, add, bind, is_zero, primitive, select, summed, zero_like
from dlc_jax.ops.windows import Pads


class Parts(NamedTuple):
    """The three parts of the form; all take strides and padding as keywords, and `apart`.

    The latter tells whether there are several networks, each with operands of its own.

    Attributes:
      convolve: (x, kernel).
      input_gradient: (kernel, grad, x_shape).
      kernel_gradient: (x, grad, kernel_shape).
      gradients: (x, kernel, grad), the latter two at once.
    """

    convolve: Callable[..., Array]
    input_gradient: Callable[..., Array]
    kernel_gradient: Callable[..., Array]
    gradients: Callable[..., tuple[Array, Array]]


def differentiable(cpu: Parts, gpu: Parts, elsewhere: Parts) -> Callable[..., Array]:
    """A convolution (x, kernel, strides, padding) with the parts given for each platform."""
    conv2d = primitive("conv2d", _conv2d_shapes, *map(_sum, (cpu, gpu, elsewhere)))
    gradients = primitive(
        "conv2d_gradients", _gradients_shapes, *map(_asked, (cpu, gpu, elsewhere))
    )
    rules = _Rules(conv2d, gradients)
    ad.primitive_jvps[conv2d] = rules.conv2d_jvp
    ad.primitive_transposes[conv2d] = rules.conv2d_transpose
    ad.primitive_jvps[gradients] = rules.gradients_jvp
    ad.primitive_transposes[gradients] = rules.gradients_transpose

    def convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Pads) -> Array:
        return bind(conv2d, x, kernel, strides=strides, padding=padding)[0]

    return convolve


def _conv2d_shapes(*shapes: Any, strides: Any, padding: Pads) -> list[tuple[int, ...]]:
    return [out_shape(shapes[0], shapes[1], strides, padding)]


def _gradients_shapes(
    *shapes: Any, x_shape: Any, kernel_shape: Any, asked: Any, **params: Any
) -> list[tuple[int, ...]]:
    del shapes, params
    return [shape for shape, wanted in zip((x_shape, kernel_shape), asked, strict=True) if wanted]


def _sum(parts: Parts) -> Callable[..., list[Array]]:
    def conv2d(*operands: Array, strides: Any, padding: Pads, apart: bool) -> list[Array]:
        pairs = zip(operands[::2], operands[1::2], strict=True)
        window = {"strides": strides, "pads": padding, "apart": apart}
        terms = [parts.convolve(*pair, **window) for pair in pairs]
        return [add(*terms)]

    return conv2d


def _asked(parts: Parts) -> Callable[..., list[Array]]:
    def gradients(
        *operands: Array,
        x_shape: Any,
        kernel_shape: Any,
        asked: Any,
        strides: Any,
        padding: Pads,
        apart: bool,
    ) -> list[Array]:
        window = {"strides": strides, "pads": padding, "apart": apart}
        if all(asked):
            return list(parts.gradients(*operands, **window))
        if asked[0]:
            return [parts.input_gradient(*operands, x_shape=x_shape, **window)]
        return [parts.kernel_gradient(*operands, kernel_shape=kernel_shape, **window)]

    return gradients


class _Rules(NamedTuple):
    """The rules of differentiation of the two primitives, each of which needs the other.

    The operands of "conv2d" are pairs of images and kernels. Those of "conv2d_gradients" are
    the images if the kernel's gradient is asked for, the kernel if that of the images is, and
    the gradient of the result.
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
            # One of each is computed together.
            image, kernel = (some.pop() if some else None for some in (images, kernels))
            ours = _given(image, kernel)
            given = [operands[i] for i in ours]
            shapes = _shapes(operands, mapped, image, kernel)
            asked = image is not None, kernel is not None
            found = self.gradients.bind(
                *given, grad, mapped=select(mapped, [*ours, None]), asked=asked, **shapes, **params
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
        asked: tuple[bool, bool],
        **params: Any,
    ) -> tuple[list[Any], list[Any]]:
        results = self.gradients.bind(*primals, mapped=mapped, asked=asked, **params)
        totals = [zero_like(result) for result in results]
        places = _places(asked)
        last = len(primals) - 1
        if not is_zero(tangents[last]):
            totals = self.gradients.bind(
                *primals[:last], tangents[last], mapped=mapped, asked=asked, **params
            )
        for name, place in places.items():
            if not is_zero(tangents[place]):
                alone = (name == "kernel", name == "x")
                (found,) = self.gradients.bind(
                    tangents[place],
                    primals[last],
                    mapped=select(mapped, [place, last]),
                    asked=alone,
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
        asked: tuple[bool, bool],
        x_shape: Any,
        kernel_shape: Any,
        **params: Any,
    ) -> list[Any]:
        of_input = cotangents[0] if asked[0] else None
        of_kernel = cotangents[-1] if asked[1] else None
        places = _places(asked)
        last = len(operands) - 1
        results: list[Any] = [None] * len(operands)

        def undefined(place: int) -> bool:
            return ad.is_undefined_primal(operands[place])

        def put(place: int, cotangent: Any) -> None:
            results[place] = summed(cotangent, mapped, place)

        if undefined(last):
            pairs: list[Any] = []
            chosen: list[int | None] = []
            if asked[0] and not is_zero(of_input):
                pairs += [of_input, operands[places["kernel"]]]
                chosen += [None, places["kernel"]]
            if asked[1] and not is_zero(of_kernel):
                pairs += [operands[places["x"]], of_kernel]
                chosen += [places["x"], None]
            if pairs:
                put(last, self.conv2d.bind(*pairs, mapped=select(mapped, chosen), **params)[0])
            else:
                results[last] = ad.Zero(operands[last].aval)
        # In images or kernel alone each gradient is linear by itself.
        for name, cotangent in (("kernel", of_input), ("x", of_kernel)):
            place = places.get(name)
            if place is None or not undefined(place):
                continue
            if is_zero(cotangent):
                results[place] = ad.Zero(operands[place].aval)
                continue
            put(
                place,
                self.gradients.bind(
                    cotangent,
                    operands[last],
                    mapped=select(mapped, [None, last]),
                    asked=(name == "x", name == "kernel"),
                    x_shape=x_shape,
                    kernel_shape=kernel_shape,
                    **params,
                )[0],
            )
        return results


def _places(asked: tuple[bool, bool]) -> dict[str, int]:
    """Where the images and the kernel are among the operands of "conv2d_gradients"."""
    names = [name for name, there in (("x", asked[1]), ("kernel", asked[0])) if there]
    return {name: place for place, name in enumerate(names)}


def _given(image: int | None, kernel: int | None) -> list[int]:
    """The images beside a kernel, and the kernel beside images, of the pairs of "conv2d"."""
    images = [] if kernel is None else [kernel - 1]
    return images + ([] if image is None else [image + 1])


def _shapes(
    operands: Sequence[Any], mapped: Mapped, image: int | None, kernel: int | None
) -> dict[str, tuple[int, ...]]:
    """The shapes of images and kernel without the axes of `jax.vmap`."""

    def shape(place: int) -> tuple[int, ...]:
        operand = operands[place]
        aval = operand.aval if ad.is_undefined_primal(operand) else operand
        return tuple(aval.shape[sum(flags[place] for _, flags in mapped) :])

    pair = image if image is not None else (kernel or 1) - 1
    return {"x_shape": shape(pair), "kernel_shape": shape(pair + 1)}
