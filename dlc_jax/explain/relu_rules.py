"""Rules for the backward pass of rectifiers (ReLU and GELU).

The gradient, the deconvnet and guided backpropagation differ only in what passes back through a
rectifier (Springenberg et al. 2015, "Striving for simplicity: the all convolutional net", section
3.4 and figure 1):

- "gradient": the gradient where the input is positive;
- "deconvnet": the positive part of the gradient (Zeiler and Fergus 2014, "Visualizing and
  understanding convolutional networks", section 2.1);
- "guided": the positive part of the gradient where the input is positive.
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
from dlc_jax.explain import jaxpr_interpreter
from dlc_jax.explain.jaxpr_interpreter import ClosedJaxpr

ReluRule: TypeAlias = Literal["gradient", "deconvnet", "guided"]
RELU_RULES: tuple[ReluRule, ...] = ("gradient", "deconvnet", "guided")

_RECTIFIERS = ("relu", "gelu")
_JIT = ("jit", "pjit")


def override_relu_gradient(function: Callable[..., Any], rule: ReluRule) -> Callable[..., Any]:
    """Changes the backward pass of the rectifiers in a function.

    Rectifiers are `jax.nn.relu`, `jax.nn.gelu` and `dlc_jax.nn.layers.gelu`, also inside `jax.jit`,
    `jax.checkpoint`, `lax.cond`, `lax.switch` and `lax.scan`. Functions with custom derivatives
    (`jax.custom_vjp`, `jax.custom_jvp`) and other activations, such as sigmoid and PReLU, keep
    their gradients. The rules "deconvnet" and "guided" treat GELU as ReLU.

    Args:
      function: A function of pytrees of arrays, given by position.
      rule: "gradient", "deconvnet" or "guided"; see the module's description.

    Returns:
      A function with the same values, which can be differentiated once, in reverse mode.

    Raises:
      InputError: There is no such rule.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> def f(x):
      ...     return (jnp.array([3.0, 4.0, -5.0]) * jax.nn.relu(x)).sum()
      >>> x = jnp.array([1.0, -1.0, 2.0])
      >>> for rule in RELU_RULES:
      ...     print(rule, jax.grad(override_relu_gradient(f, rule))(x))
      gradient [ 3.  0. -5.]
      deconvnet [3. 4. 0.]
      guided [3. 0. 0.]
    """
    check_relu_rule(rule)
    if rule == "gradient":
        return function

    @wraps(function)
    def overridden(*args: Any) -> Any:
        closed, leaves, structure = jaxpr_interpreter.trace(function, *args)
        return jax.tree.unflatten(structure, _evaluate(rule, closed, *leaves))

    return overridden


def check_relu_rule(rule: ReluRule) -> None:
    """Raises an InputError if there is no such rule."""
    if rule not in RELU_RULES:
        raise InputError(f"there is no rule {rule!r}; choose from {', '.join(RELU_RULES)}")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rectified(
    rule: ReluRule, x: Float[Array, "..."], activations: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The activations of x, with a gradient by the rule."""
    del rule, x
    return activations


def _rectified_forward(rule: ReluRule, x: Array, activations: Array) -> tuple[Array, Array]:
    del rule
    return activations, x


def _rectified_backward(rule: ReluRule, x: Array, grad: Array) -> tuple[Array, None]:
    passes = grad > 0
    if rule == "guided":
        passes &= x > 0
    return jnp.where(passes, grad, 0), None


_rectified.defvjp(_rectified_forward, _rectified_backward)


def _evaluate(rule: ReluRule, closed: ClosedJaxpr, *args: Any) -> list[Any]:
    inputs = _rectifiers(closed.jaxpr)

    def replace(variable: core.Var, value: Any, read: Callable[[Any], Any]) -> Any:
        if variable not in inputs:
            return value
        # Without stop_gradient, the rectifier's own gradient would be added.
        return _rectified(rule, read(inputs[variable]), lax.stop_gradient(value))

    return jaxpr_interpreter.eval_jaxpr(
        closed, args, eval_equation=partial(_eval_equation, rule), replace=replace
    )


def _eval_equation(rule: ReluRule, equation: core.JaxprEqn, args: list[Any]) -> list[Any]:
    """Evaluates an equation, with the rule for rectifiers inside it."""
    inner = _inner_jaxprs(equation)
    if not any(_has_rectifiers(closed.jaxpr) for closed in inner):
        return jaxpr_interpreter.bind_primitive(equation, args)
    functions = [partial(_evaluate, rule, closed) for closed in inner]
    match equation.primitive.name:
        case "cond":
            index, *operands = args
            return lax.switch(index, functions, *operands)
        case "scan":
            return _scan(functions[0], equation.params, args)
        case _:
            return functions[0](*args)


def _inner_jaxprs(equation: core.JaxprEqn) -> Sequence[ClosedJaxpr]:
    """Jaxprs inside an equation, except those with custom derivatives."""
    params = equation.params
    match equation.primitive.name:
        case "cond":
            return params["branches"]
        case "checkpoint" | "remat2":
            return [ClosedJaxpr(params["jaxpr"], [])]
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
        _has_rectifiers(closed.jaxpr)
        for equation in jaxpr.eqns
        for closed in _inner_jaxprs(equation)
    )


def _rectifiers(jaxpr: core.Jaxpr) -> dict[core.Var, Any]:
    """Maps the output of each rectifier to its input."""
    found = {}
    for index, equation in enumerate(jaxpr.eqns):
        if _called_function(equation) in _RECTIFIERS:
            found[equation.outvars[0]] = equation.invars[0]
        else:
            found |= _inlined_gelu(jaxpr.eqns[index:])
    return found


def _called_function(equation: core.JaxprEqn) -> str | None:
    """Name of the jitted function that an equation calls, or None."""
    if equation.primitive.name == "custom_jvp_call":
        equations = equation.params["call_jaxpr"].jaxpr.eqns
        return _called_function(equations[0]) if len(equations) == 1 else None
    return equation.params["name"] if equation.primitive.name in _JIT else None


def _inlined_gelu(equations: Sequence[core.JaxprEqn]) -> dict[core.Var, Any]:
    """Maps the output to the input of a GELU that the first equations compute, if they do.

    Some releases of JAX do not jit GELU. It is then found by comparing the equations with those
    of a GELU that is traced alone.
    """
    for x in equations[0].invars:
        aval = x.aval
        if not (
            isinstance(aval, jax.core.ShapedArray) and jnp.issubdtype(aval.dtype, jnp.floating)
        ):
            continue
        for approximate in (False, True):
            template = _gelu_jaxpr(aval.shape, aval.dtype, approximate)
            output = _matching_output(template, equations, x)
            if output is not None:
                return {output: x}
    return {}


@lru_cache(maxsize=256)
def _gelu_jaxpr(shape: tuple[int, ...], dtype: Any, approximate: bool) -> core.Jaxpr:
    function = partial(jax.nn.gelu, approximate=approximate)
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, dtype)).jaxpr


def _matching_output(
    template: core.Jaxpr, equations: Sequence[core.JaxprEqn], x: Any
) -> core.Var | None:
    """The variable that matches the template's output if the first equations match it."""
    if len(equations) < len(template.eqns):
        return None
    matched: dict[Any, Any] = {template.invars[0]: x}
    for equation, expected in zip(equations, template.eqns, strict=False):
        if equation.primitive is not expected.primitive or equation.params != expected.params:
            return None
        for atom, wanted in zip(equation.invars, expected.invars, strict=True):
            if isinstance(wanted, core.Literal):
                if not isinstance(atom, core.Literal) or atom.val != wanted.val:
                    return None
            elif matched[wanted] is not atom:
                return None
        matched |= zip(expected.outvars, equation.outvars, strict=True)
    return matched[template.outvars[0]]
