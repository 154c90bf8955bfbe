"""Number of parameters, multiply-adds, depth and layers of a network.

All are computed from the network's jaxpr, without running the network.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Jaxpr, Literal, Var

from dlc_jax import models
from dlc_jax.models.network import Network


@dataclass(frozen=True)
class Layer:
    """A layer with parameters, or a stage without parameters.

    Attributes:
      name: Path of the module in the network, or name of the stage.
      kind: Type of the layer, such as "3x3 convolution".
      shape: Shape of its output for one image.
      parameters: Number of trainable parameters.
      multiply_adds: Multiply-adds per image in convolutions and matrix products.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Summary:
    """Size of a network.

    Attributes:
      parameters: Number of trainable parameters.
      multiply_adds: Multiply-adds per image to compute the logits.
      depth: Convolutions and matrix products on the longest path from the image to the logits.
      layers: Layers in the order in which they are first used.
    """

    parameters: int
    multiply_adds: int
    depth: int
    layers: tuple[Layer, ...]


def describe(
    name: str,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Returns the catalog entry and the summary of a network as a dictionary.

    Args:
      name: One of `dlc_jax.models.names()`.
      image_shape: Height, width and channels; by default, those of the paper.
      num_classes: Number of classes; by default, that of the paper.
      **options: Further arguments of the network.

    Raises:
      InputError: See `dlc_jax.models.create`.

    Example:
      >>> describe("tc")["parameters"]
      23
    """
    entry = models.find(name)
    shape = image_shape or entry.image_shape
    classes = num_classes or entry.num_classes
    model = models.create_abstract(name, image_shape=shape, num_classes=classes, **options)
    return {
        "name": name,
        "year": entry.year,
        "source": entry.source,
        "image_shape": list(shape),
        "num_classes": classes,
        "options": options,
        **asdict(summarize(model, shape)),
    }


def summarize(model: Network, image_shape: tuple[int, int, int]) -> Summary:
    """Counts the parameters and multiply-adds of a network, in total and by layer.

    Args:
      model: The network, which may be abstract (see `dlc_jax.models.create_abstract`).
      image_shape: Height, width and channels of the images.

    Example:
      >>> summary = summarize(models.create_abstract("tc"), (6, 6, 1))
      >>> summary.parameters, summary.multiply_adds, summary.depth
      (23, 1154, 2)
    """
    graphdef, state = nnx.split(model)
    names: list[str] = []

    def stages(state: Any, image: jax.Array) -> list[jax.Array]:
        network = nnx.merge(graphdef, state)
        network.eval()
        named = network.stages(image)
        names[:] = named
        return list(named.values())

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jaxpr: Any = jax.make_jaxpr(stages)(state, image).jaxpr
    owners = [_Value(_module(path)) for path, _ in nnx.to_flat_state(state)]
    walk = _Walk()
    results = dict(zip(names, walk.run(jaxpr, [*owners, _Value(None)]), strict=True))
    shapes = {name: v.aval.shape[1:] for name, v in zip(names, jaxpr.outvars, strict=True)}
    parameters = _parameters(model)
    kinds = {".".join(map(str, path)): type(m).__name__ for path, m in nnx.iter_modules(model)}
    rows = [
        (
            use.time,
            Layer(
                name,
                use.kind or kinds.get(name, ""),
                use.shape,
                parameters.get(name, 0),
                use.multiply_adds,
            ),
        )
        for name, use in walk.uses.items()
    ]
    rows += [
        (value.time, Layer(name, "", shapes[name], 0, 0))
        for name, value in results.items()
        if name not in walk.uses
    ]
    logits = jaxpr.outvars[names.index("logits")]
    return Summary(
        parameters=sum(parameters.values()),
        multiply_adds=sum(walk.costs[id(equation)] for equation in _needed(jaxpr, logits)),
        depth=results["logits"].depth,
        layers=tuple(layer for _, layer in sorted(rows, key=lambda row: row[0])),
    )


def _module(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path[:-1])) or str(path[-1])


def _parameters(model: Network) -> dict[str, int]:
    """Number of parameters of each module, without those of its submodules."""
    counts: dict[str, int] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        counts[_module(path)] = counts.get(_module(path), 0) + math.prod(variable.shape)
    return counts


def _needed(jaxpr: Jaxpr, result: Any) -> list[Any]:
    """Returns the equations on which a result depends."""
    wanted, needed = {result}, []
    for equation in reversed(jaxpr.eqns):
        if wanted & set(equation.outvars):
            needed.append(equation)
            wanted |= {v for v in equation.invars if not isinstance(v, Literal)}
    return needed


class _Value(NamedTuple):
    """Properties of an intermediate result.

    Attributes:
      owner: The module whose variables it is computed from; "" for constants, None if it depends
        on the image.
      depth: Convolutions and matrix products before it.
      time: Number of operations before it.
    """

    owner: str | None = ""
    depth: int = 0
    time: int = 0


@dataclass
class _Use:
    """The operation in which a module's variables are applied to the image."""

    time: int
    kind: str
    shape: tuple[int, ...]
    multiply_adds: int = 0


# Operations that call another jaxpr, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "cond": "branches",
}


class _Walk:
    """Interpreter of a jaxpr that counts multiply-adds and depth."""

    def __init__(self) -> None:
        self.uses: dict[str, _Use] = {}
        self.costs: dict[int, int] = {}
        self.time = self.multiply_adds = 0

    def run(self, jaxpr: Jaxpr, inputs: Sequence[_Value]) -> list[_Value]:
        """Returns the properties of a jaxpr's results."""
        known = dict(zip(jaxpr.invars, inputs, strict=True))

        def lookup(variables: Sequence[Any]) -> list[_Value]:
            return [known.get(v, _Value()) for v in variables if not isinstance(v, Literal)]

        for equation in jaxpr.eqns:
            before = self.multiply_adds
            call = _CALLS.get(equation.primitive.name)
            if call is None:
                value = self._apply(equation, lookup(equation.invars))
                results = [value] * len(equation.outvars)
            else:
                results = self._call(equation.params[call], equation, known)
            known |= zip(equation.outvars, results, strict=True)
            self.costs[id(equation)] = self.multiply_adds - before
        return [known.get(v, _Value()) if isinstance(v, Var) else _Value() for v in jaxpr.outvars]

    def _call(self, inner: Any, equation: Any, known: dict[Any, _Value]) -> list[_Value]:
        # The last branch is the one for any platform, which uses XLA's own operations.
        inner = inner[-1] if isinstance(inner, tuple) else inner
        jaxpr = getattr(inner, "jaxpr", inner)  # closed or not
        variables = equation.invars[len(equation.invars) - len(jaxpr.invars) :]
        inputs = [known.get(v, _Value()) if isinstance(v, Var) else _Value() for v in variables]
        return self.run(jaxpr, inputs)

    def _apply(self, equation: Any, arguments: list[_Value]) -> _Value:
        self.time += 1
        owners = {argument.owner for argument in arguments if argument.owner != ""}
        if None not in owners:
            return _Value(min(filter(None, owners), default=""))
        kind, cost = _kind_and_cost(equation)
        self.multiply_adds += cost
        shape = equation.outvars[0].aval.shape[1:]
        for owner in filter(None, owners):
            use = self.uses.setdefault(owner, _Use(self.time, kind, shape))
            use.multiply_adds += cost
            if cost:
                use.kind, use.shape = kind, shape
        depth = max((argument.depth for argument in arguments), default=0)
        return _Value(None, depth + (kind != ""), self.time)


def _kind_and_cost(equation: Any) -> tuple[str, int]:
    """Name and multiply-adds of a convolution or matrix product; "" and 0 for other operations."""
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "conv_general_dilated":
        kernel, layout = equation.invars[1].aval, equation.params["dimension_numbers"].rhs_spec
        height, width = (kernel.shape[axis] for axis in layout[2:])
        strides = equation.params["window_strides"]
        stride = f" / {max(strides)}" if max(strides) > 1 else ""
        cost = out * height * width * kernel.shape[layout[1]]
        return f"{height}x{width} convolution{stride}", cost
    if equation.primitive.name == "conv2d":
        height, width, channels, _ = equation.invars[1].aval.shape
        stride = max(equation.params["strides"])
        kind = f"{height}x{width} convolution" + (f" / {stride}" if stride > 1 else "")
        return kind, out * height * width * channels
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        image = equation.invars[0].aval
        return "linear", out * math.prod(image.shape[axis] for axis in contracted)
    return "", 0
