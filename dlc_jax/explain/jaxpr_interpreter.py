"""An interpreter of jaxprs that can change equations and values.

Networks have no hooks. Explanations that change something inside a network, such as the backward
pass of its ReLUs or the activations of a stage, interpret its jaxpr, the list of equations that
JAX traces, and change it there. (See "Writing custom Jaxpr interpreters in JAX" in JAX's
documentation.)
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
from jax.extend.core import JaxprEqn, Literal, Var

if TYPE_CHECKING:
    ClosedJaxpr: TypeAlias = Any  # JAX 0.12 has it, but not for type checkers
else:
    from jax.extend.core import ClosedJaxpr

# Computes the outputs of an equation from the values of its inputs.
EvalEquation: TypeAlias = Callable[[JaxprEqn, list[Any]], list[Any]]
# Replaces a variable's value; the third argument returns the values of earlier variables.
Replace: TypeAlias = Callable[[Var, Any, Callable[[Any], Any]], Any]


def trace(function: Callable[..., Any], *args: Any) -> tuple[ClosedJaxpr, list[Any], Any]:
    """Traces a function to a jaxpr.

    Args:
      function: A function of pytrees of arrays.
      *args: Its arguments, or their shapes and dtypes.

    Returns:
      The jaxpr, the leaves of the arguments, and the tree structure of the result.
    """
    closed, result = jax.make_jaxpr(function, return_shape=True)(*args)
    return closed, jax.tree.leaves(args), jax.tree.structure(result)


def bind_primitive(equation: JaxprEqn, args: list[Any]) -> list[Any]:
    """Evaluates an equation unchanged, with the differentiation rules of its primitive."""
    primitive = equation.primitive
    results = primitive.bind(*args, **primitive.get_bind_params(equation.params))
    return list(results) if primitive.multiple_results else [results]


def keep_value(variable: Var, value: Any, read: Callable[[Any], Any]) -> Any:
    """Returns the value unchanged."""
    del variable, read
    return value


def eval_jaxpr(
    closed: ClosedJaxpr,
    args: Sequence[Any],
    *,
    eval_equation: EvalEquation = bind_primitive,
    replace: Replace = keep_value,
) -> list[Any]:
    """Evaluates a jaxpr, equation by equation.

    Args:
      closed: The jaxpr.
      args: Values of its inputs.
      eval_equation: Evaluates an equation.
      replace: Replaces the value of each variable.

    Returns:
      Values of its outputs.

    Example:
      >>> import jax.numpy as jnp
      >>> jaxpr, args, _ = trace(lambda x: jnp.sin(x) + 1, 0.0)
      >>> def double(variable, value, read):
      ...     return 2 * value
      >>> [float(value) for value in eval_jaxpr(jaxpr, args, replace=double)]
      [2.0]
    """
    values: dict[Var, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    def write(variables: Sequence[Var], results: Sequence[Any]) -> None:
        for variable, result in zip(variables, results, strict=True):
            values[variable] = replace(variable, result, read)

    write(closed.jaxpr.constvars, closed.consts)
    write(closed.jaxpr.invars, args)
    for equation in closed.jaxpr.eqns:
        write(equation.outvars, eval_equation(equation, [read(atom) for atom in equation.invars]))
    return [read(atom) for atom in closed.jaxpr.outvars]
