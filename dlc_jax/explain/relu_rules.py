"""Rectifiers with another backward pass.

What passes back through a rectifier tells three ways of looking into a network apart
(Springenberg et al. 2015, "Striving for simplicity", section 3.4 and figure 1): the gradient
passes where the input was positive; the deconvnet's signal passes where it is itself positive
(Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks", section 2.1);
guided backpropagation asks for both.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial, wraps
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core
from jaxtyping import Float

from dlc_jax.errors import InputError
from dlc_jax.explain import jaxprs

Rule: TypeAlias = Literal["gradient", "deconvnet", "guided"]
RULES: tuple[Rule, ...] = ("gradient", "deconvnet", "guided")

_RECTIFIERS = ("relu", "gelu")
_JIT = ("jit", "pjit")


def with_rectifiers(function: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
    """A function with the same values, whose rectifiers have another backward pass.

    Rectifiers are `jax.nn.relu`, `jax.nn.gelu` and `dlc_jax.nn.layers.gelu`, also inside `jax.jit`,
    `jax.checkpoint`, `lax.cond`, `lax.switch` and `lax.scan`. Functions with derivatives of their
    own (`jax.custom_vjp`, `jax.custom_jvp`) keep these, and so do other activations, such as
    sigmoids and PReLU. The new function is differentiated in reverse mode, once.

    Args:
      function: of pytrees of arrays, given by position.
      rule: what passes back: "gradient", as it is; "deconvnet", what is positive; or "guided",
        what is positive where the rectifier's input was, too. The latter two take GELU for a
        rectifier, and leave its slope out.

    Raises:
      InputError: there is no such rule.
    """
    check_rule(rule)
    if rule == "gradient":
        return function

    @wraps(function)
    def changed(*args: Any) -> Any:
        closed, leaves, structure = jaxprs.trace(function, *args)
        return jax.tree.unflatten(structure, _evaluate(rule, closed, *leaves))

    return changed


def check_rule(rule: Rule) -> None:
    """Raises an InputError unless there is such a rule."""
    if rule not in RULES:
        raise InputError(f"there is no rule {rule!r}; choose from {', '.join(RULES)}")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rectified(
    rule: Rule, x: Float[Array, "..."], activations: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The activations, whose gradient goes by the rule to x, of which they were made."""
    del rule, x
    return activations


def _rectified_forward(rule: Rule, x: Array, activations: Array) -> tuple[Array, Array]:
    del rule
    return activations, x


def _rectified_backward(rule: Rule, x: Array, grad: Array) -> tuple[Array, None]:
    passes = grad > 0
    if rule == "guided":
        passes &= x > 0
    return jnp.where(passes, grad, 0), None


_rectified.defvjp(_rectified_forward, _rectified_backward)


def _evaluate(rule: Rule, closed: jaxprs.ClosedJaxpr, *args: Any) -> list[Any]:
    inputs = _rectifiers(closed.jaxpr)

    def change(variable: core.Var, value: Any, read: Callable[[Any], Any]) -> Any:
        if variable not in inputs:
            return value
        # Its own backward pass is left out, so that the rule's is the only one.
        return _rectified(rule, read(inputs[variable]), lax.stop_gradient(value))

    return jaxprs.evaluate(closed, args, call=partial(_call, rule), change=change)


def _call(rule: Rule, equation: core.JaxprEqn, args: list[Any]) -> list[Any]:
    """The results of an equation, by the rule where there are rectifiers inside it."""
    inner = _inner(equation)
    if not any(_has_rectifiers(closed.jaxpr) for closed in inner):
        return jaxprs.call_as_is(equation, args)
    functions = [partial(_evaluate, rule, closed) for closed in inner]
    match equation.primitive.name:
        case "cond":
            index, *operands = args
            return lax.switch(index, functions, *operands)
        case "scan":
            return _scan(functions[0], equation.params, args)
        case _:
            return functions[0](*args)


def _inner(equation: core.JaxprEqn) -> Sequence[jaxprs.ClosedJaxpr]:
    """What the rules reach inside an equation; not what has derivatives of its own."""
    params = equation.params
    match equation.primitive.name:
        case "cond":
            return params["branches"]
        case "checkpoint" | "remat2":
            return [jaxprs.ClosedJaxpr(params["jaxpr"], [])]
        case "jit" | "pjit" | "scan":
            return [params["jaxpr"]]
        case _:
            return []


def _scan(function: Callable[..., list[Any]], params: dict[str, Any], args: list[Any]) -> list[Any]:
    if "ft_in" in params:  # JAX 0.12
        consts, init, xs = map(list, params["ft_in"].update(args).unpack())
    else:
        first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
        consts, init, xs = args[:first], args[first:last], args[last:]

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        results = function(*consts, *carry, *x)
        return results[: len(init)], results[len(init) :]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(step, init, xs, **options)
    return [*carry, *ys]


def _has_rectifiers(jaxpr: core.Jaxpr) -> bool:
    return bool(_rectifiers(jaxpr)) or any(
        _has_rectifiers(closed.jaxpr) for equation in jaxpr.eqns for closed in _inner(equation)
    )


def _rectifiers(jaxpr: core.Jaxpr) -> dict[core.Var, Any]:
    """The output of each rectifier among the equations, and its input."""
    found = {}
    for place, equation in enumerate(jaxpr.eqns):
        if _called(equation) in _RECTIFIERS:
            found[equation.outvars[0]] = equation.invars[0]
        else:
            found |= _inlined_gelu(jaxpr.eqns[place:])
    return found


def _called(equation: core.JaxprEqn) -> str | None:
    """The name of the function that an equation calls, if it is jitted."""
    if equation.primitive.name == "custom_jvp_call":
        equations = equation.params["call_jaxpr"].jaxpr.eqns
        return _called(equations[0]) if len(equations) == 1 else None
    return equation.params["name"] if equation.primitive.name in _JIT else None


def _inlined_gelu(equations: Sequence[core.JaxprEqn]) -> dict[core.Var, Any]:
    """The output and the input of a GELU with which the equations begin, if they do.

    Not every release of JAX jits it. It is then known by its equations, which follow each
    other as they do where it is traced alone.
    """
    for x in equations[0].invars:
        aval = x.aval
        if not (
            isinstance(aval, jax.core.ShapedArray) and jnp.issubdtype(aval.dtype, jnp.floating)
        ):
            continue
        for approximate in (False, True):
            template = _gelu(aval.shape, aval.dtype, approximate)
            last = _output_like(template, equations, x)
            if last is not None:
                return {last: x}
    return {}


@lru_cache(maxsize=256)
def _gelu(shape: tuple[int, ...], dtype: Any, approximate: bool) -> core.Jaxpr:
    function = partial(jax.nn.gelu, approximate=approximate)
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, dtype)).jaxpr


def _output_like(
    template: core.Jaxpr, equations: Sequence[core.JaxprEqn], x: Any
) -> core.Var | None:
    """The variable that stands for the template's output where the equations begin like it."""
    if len(equations) < len(template.eqns):
        return None
    ours: dict[Any, Any] = {template.invars[0]: x}
    for equation, model in zip(equations, template.eqns, strict=False):
        if equation.primitive is not model.primitive or equation.params != model.params:
            return None
        for atom, its in zip(equation.invars, model.invars, strict=True):
            if isinstance(its, core.Literal):
                if not isinstance(atom, core.Literal) or atom.val != its.val:
                    return None
            elif ours[its] is not atom:
                return None
        ours |= zip(model.outvars, equation.outvars, strict=True)
    return ours[template.outvars[0]]
