"""Functions as their equations, evaluated with something changed on the way.

A network is a function of pixels, without hooks. What an explanation changes inside it (the
backward pass of its rectifiers, the value of a stage) is changed in its jaxpr, the list of
equations that JAX makes of it, so that no network has to provide for it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
from jax.extend.core import JaxprEqn, Literal, Var

if TYPE_CHECKING:
    ClosedJaxpr: TypeAlias = Any  # JAX 0.12 has it, but not for type checkers
else:
    from jax.extend.core import ClosedJaxpr

# What computes the results of an equation from its arguments.
Call: TypeAlias = Callable[[JaxprEqn, list[Any]], list[Any]]
# What to make of a variable's value; its third argument reads the variables before it.
Change: TypeAlias = Callable[[Var, Any, Callable[[Any], Any]], Any]


def trace(function: Callable[..., Any], *args: Any) -> tuple[ClosedJaxpr, list[Any], Any]:
    """A function's equations, the leaves of its arguments, and the structure of its result.

    Args:
      function: of pytrees of arrays.
      *args: for the shapes and dtypes of their leaves.
    """
    closed, result = jax.make_jaxpr(function, return_shape=True)(*args)
    return closed, jax.tree.leaves(args), jax.tree.structure(result)


def call_as_is(equation: JaxprEqn, args: list[Any]) -> list[Any]:
    """What the equation's own primitive makes of its arguments.

    Its rules of differentiation, and those of functions called within, hold as ever.
    """
    primitive = equation.primitive
    results = primitive.bind(*args, **primitive.get_bind_params(equation.params))
    return list(results) if primitive.multiple_results else [results]


def keep(variable: Var, value: Any, read: Callable[[Any], Any]) -> Any:
    """The value as it is."""
    del variable, read
    return value


def evaluate(
    closed: ClosedJaxpr, args: Sequence[Any], *, call: Call = call_as_is, change: Change = keep
) -> list[Any]:
    """Evaluates equations one after the other.

    Args:
      closed: the equations.
      args: a value for each of their inputs.
      call: see `Call`.
      change: see `Change`.

    Returns:
      A value for each of their outputs.
    """
    values: dict[Var, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    def write(variables: Sequence[Var], results: Sequence[Any]) -> None:
        for variable, result in zip(variables, results, strict=True):
            values[variable] = change(variable, result, read)

    write(closed.jaxpr.constvars, closed.consts)
    write(closed.jaxpr.invars, args)
    for equation in closed.jaxpr.eqns:
        write(equation.outvars, call(equation, [read(atom) for atom in equation.invars]))
    return [read(atom) for atom in closed.jaxpr.outvars]
