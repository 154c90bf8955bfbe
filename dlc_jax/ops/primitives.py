"""JAX primitives with an implementation per platform.

A primitive is one equation of a jaxpr; an eager call compiles a single program. `jax.vmap` of a
primitive is the same primitive, with a parameter that records which operands have an additional
axis, so its differentiation rules still apply.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import NamedSharding, PartitionSpec

# For each `jax.vmap` around a primitive, the outermost first: the size of the mapped axis, and
# which operands have it. It is the first axis of these operands and of every result.
Mapped: TypeAlias = tuple[tuple[int, tuple[bool, ...]], ...]


def primitive(
    name: str,
    shapes: Callable[..., Sequence[tuple[int, ...]]],
    cpu: Callable[..., Sequence[Array]],
    gpu: Callable[..., Sequence[Array]],
    default: Callable[..., Sequence[Array]],
    portable: Callable[..., Sequence[Array]] | None = None,
) -> Primitive:
    """Defines a primitive without differentiation rules. Apply it with `bind`.

    The functions take the operands, and the parameters of the primitive as keywords.
    Implementations also take `jointly_mapped`: whether a `jax.vmap` maps over several operands, as
    over the images and kernels of several networks.

    Args:
      name: Name in a jaxpr.
      shapes: Shapes of the results, from those of the operands.
      cpu: Implementation on CPUs.
      gpu: Implementation on GPUs.
      default: Implementation on other platforms.
      portable: Implementation on CPUs in programs that are exported, or that XLA divides among
        devices; by default `cpu`.
    """
    new = Primitive(name)
    new.multiple_results = True

    def abstract(*operands: Any, mapped: Mapped, precision: Any, **params: Any) -> list[Any]:
        del precision
        flags = list(zip(*(flags for _, flags in mapped), strict=True)) or [()] * len(operands)
        inner = [x.shape[sum(flag) :] for x, flag in zip(operands, flags, strict=True)]
        sizes = tuple(size for size, _ in mapped)
        first = operands[0]
        return [
            first.update(
                shape=(*sizes, *shape),
                weak_type=all(x.weak_type for x in operands),
                sharding=NamedSharding(first.sharding.mesh, PartitionSpec()),
            )
            for shape in shapes(*inner, **params)
        ]

    def lowered(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*operands: Array, mapped: Mapped, precision: Any, **params: Any) -> list[Array]:
            jointly_mapped = any(sum(flags) > 1 for _, flags in mapped)
            with jax.default_matmul_precision(precision):
                return _over_examples(
                    partial(function, jointly_mapped=jointly_mapped, **params), mapped
                )(*operands)

        return mlir.lower_fun(run, multiple_results=True)

    def lowered_on_cpu(context: Any, *operands: Any, **params: Any) -> Any:
        function = portable if portable is not None and _is_portable(context) else cpu
        return lowered(function)(context, *operands, **params)

    new.def_impl(partial(xla.apply_primitive, new))
    new.def_abstract_eval(abstract)
    mlir.register_lowering(new, lowered(default))
    mlir.register_lowering(new, lowered_on_cpu, platform="cpu")
    mlir.register_lowering(new, lowered(gpu), platform="gpu")
    batching.primitive_batchers[new] = partial(_batched, new)
    return new


def bind(new: Primitive, *operands: Any, **params: Any) -> list[Array]:
    """Applies a primitive.

    It uses `jax_default_matmul_precision` as set now, not as set when it is compiled.
    """
    precision = jax.config.jax_default_matmul_precision
    return new.bind(*operands, mapped=(), precision=precision, **params)


def select(mapped: Mapped, chosen: Sequence[int | None]) -> Mapped:
    """The parameter `mapped` of another list of operands.

    Args:
      mapped: That of the operands of a primitive.
      chosen: For each new operand, the index of an operand with the same mapped axes, or None if
        it has all of them, as results have.
    """
    return tuple((size, tuple(i is None or flags[i] for i in chosen)) for size, flags in mapped)


def summed(x: Any, mapped: Mapped, operand: int) -> Any:
    """Sums a result over the mapped axes that an operand does not have."""
    axes = tuple(i for i, (_, flags) in enumerate(mapped) if not flags[operand])
    return x.sum(axes) if axes else x


def add(*terms: Any) -> Any:
    """The sum of tangents or cotangents, which may be symbolic zeros."""
    total = terms[0]
    for term in terms[1:]:
        total = ad.add_tangents(total, term)
    return total


def is_zero(x: Any) -> bool:
    """Whether a tangent or cotangent is a symbolic zero."""
    return type(x) is ad.Zero


def zero_like(x: Any) -> ad.Zero:
    """The symbolic zero that is the tangent of a constant."""
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def _is_portable(context: Any) -> bool:
    """Whether a program is exported, or divided among devices by XLA rather than `shard_map`."""
    module = context.module_context
    if module.lowering_parameters.for_export:
        return True
    axes = module.axis_context
    if hasattr(axes, "manual_axes"):
        return frozenset(axes.manual_axes) != frozenset(axes.mesh.axis_names)
    return (getattr(axes, "num_devices", None) or 1) > 1


def _over_examples(function: Callable[..., Any], mapped: Mapped) -> Callable[..., Any]:
    for size, flags in reversed(mapped):
        if any(flags):
            axes = tuple(0 if flag else None for flag in flags)
            function = jax.vmap(function, in_axes=axes, axis_size=size)
        else:
            function = partial(_repeated, function, size)
    return function


def _repeated(function: Callable[..., Any], size: int, *operands: Array) -> list[Array]:
    return [jnp.broadcast_to(x, (size, *x.shape)) for x in function(*operands)]


def _batched(
    new: Primitive, operands: Sequence[Any], axes: Sequence[Any], *, mapped: Mapped, **params: Any
) -> tuple[list[Array], list[int]]:
    flags = tuple(axis is not None for axis in axes)
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    moved = [
        x if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    ]
    results = new.bind(*moved, mapped=((size, flags), *mapped), **params)
    return results, [0] * len(results)
