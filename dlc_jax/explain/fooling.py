"""Images that are nothing to a person, and of which a network is sure that it knows their class.

Nguyen et al. 2015, "Deep neural networks are easily fooled: high confidence predictions for
unrecognizable images": by evolution with two encodings of images (section 2), and by gradient
ascent (section 3).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax.data.dataset import AnyArray
from dlc_jax.errors import InputError
from dlc_jax.explain import ascent
from dlc_jax.explain.checks import check_choices, check_counts
from dlc_jax.explain.classifier import Pixels, View
from dlc_jax.nn.losses import log_odds_against

Shape: TypeAlias = tuple[int, int, int]  # height, width and channels

# Of the noise from which gradients ascend, the standard deviation.
_CONTRAST = 0.1
# The paper's rate at which pixels mutate, which halves again and again, and its strength.
_RATE, _HALVED_EVERY, _STRENGTH = 0.1, 1000, 15
# Of a pattern-producing network: nodes a layer, how often a weight and a node's function mutate,
# the standard deviation of the first weights, and the least and the most of a child's mutations.
_NODES, _WEIGHT_RATE, _FUNCTION_RATE, _FIRST, _CHANGES = 8, 0.4, 0.1, 2.0, (0.1, 8.0)


def by_gradient(
    view: View,
    labels: Int[AnyArray, " batch"],
    *,
    key: PRNGKeyArray,
    image_shape: Shape,
    steps: int = 400,
    learning_rate: Float[AnyArray, ""] | float = 0.05,
) -> Float[Array, "batch height width channels"]:
    """Images of which a network is sure, by gradient ascent from almost nothing (section 3).

    Each begins with mid-grey and a little noise, of standard deviation 0.1. Each step adds the
    gradient of its class's log-odds, scaled to a mean absolute value of 1, times a rate that goes
    linearly to zero; and clips the pixels to [0, 1].

    Args:
      view: the network.
      labels: for each image the class that it is to be taken for.
      key: of the noise.
      image_shape: height, width and channels of the images.
      steps: how many, at least one.
      learning_rate: of the first step; by how much a pixel changes on average.

    Returns:
      The images, from 0 to 1.

    Raises:
      InputError: there are no labels or they are no classes of the network, which takes no such
        images, or there are no steps.
    """
    classes = _check(view, image_shape, steps=steps)
    if np.ndim(labels) != 1 or len(labels) == 0:
        raise InputError(f"labels of shape {np.shape(labels)} name no classes; give [batch]")
    check_choices("class", labels, len(labels), classes)
    return _by_gradient(view, labels, key, learning_rate, image_shape=image_shape, steps=steps)


@partial(jax.jit, static_argnames=("image_shape", "steps"))
def _by_gradient(
    view: View, labels: Array, key: PRNGKeyArray, rate: Array, *, image_shape: Shape, steps: int
) -> Array:
    still = jax.random.key(0)  # of images that are not moved

    def odds(pixels: Array) -> Array:
        return -log_odds_against(view.logits(pixels), labels)

    def step(pixels: Array, left: Array) -> tuple[Array, None]:
        _, direction = ascent.slope(odds, pixels, still, jitter=0)
        return (pixels + left * rate * direction).clip(0, 1), None

    noise = jax.random.normal(key, (len(labels), *image_shape), jnp.float32).astype(float)
    start = (0.5 + _CONTRAST * noise).clip(0, 1)
    return lax.scan(step, start, 1 - jnp.arange(steps) / steps)[0]


class Evolved(NamedTuple):
    """For each class the image of which the network is surest.

    Attributes:
      elites: the images, from 0 to 1.
      confidences: the network's probability of each elite's class.
      history: the confidences after each generation.
      genomes: what the elites are made of.
      generation: how many generations there have been.
    """

    elites: Float[Array, "classes height width channels"]
    confidences: Float[Array, " classes"]
    history: Float[Array, "generations classes"]
    genomes: Any
    generation: Int[Array, ""]


def by_evolution(
    view: View,
    *,
    key: PRNGKeyArray,
    image_shape: Shape,
    generations: int = 1000,
    population: int = 100,
    encoding: str = "direct",
    start: Evolved | None = None,
) -> Evolved:
    """Images of which a network is sure, by evolution that sees only its output (section 2).

    The algorithm is MAP-Elites (Mouret and Clune 2015, "Illuminating search spaces by mapping
    elites"): there is one elite for each class, at first the best of a random population. In
    each generation every child is a mutation of a random elite, whatever its class, and the best
    child for a class becomes its elite where the network is surer of it.

    The encoding "direct" is an image's pixels, some of which mutate; see `polynomial_mutation`.
    The paper's rate is 0.1 at first and halves every 1,000 generations. The encoding "cppn" is a
    `PatternNetwork`, which makes images regular.

    Args:
      view: the network.
      key: of the first population and of all mutations.
      image_shape: height, width and channels of the images.
      generations: how many, at least one.
      population: children a generation, at least one.
      encoding: "direct" or "cppn".
      start: what to go on from, made with the same other arguments: the result is then, but for
        the history, that of all generations at once.

    Raises:
      InputError: the network takes no such images, there is no such encoding, or there are no
        generations or children.
    """
    _check(view, image_shape, generations=generations, population=population)
    if encoding not in _ENCODINGS:
        raise InputError(f"there is no encoding {encoding!r}; choose from {', '.join(_ENCODINGS)}")
    evolution = partial(
        _by_evolution,
        view,
        key,
        image_shape=image_shape,
        generations=generations,
        population=population,
        encoding=encoding,
    )
    if start is None:
        # Apart, so that what goes on from it is compiled once, from whatever it goes on.
        first = _first_elites(
            view, key, image_shape=image_shape, population=population, encoding=encoding
        )
        return evolution(first, np.int32(0))
    return evolution((start.genomes, start.confidences), start.generation)


def _best(view: View, images: Array, genomes: Any) -> tuple[Any, Array]:
    """For each class the best genome, and its confidence."""
    probabilities = jax.nn.softmax(view.logits(images).astype(jnp.float32))
    return _take(genomes, probabilities.argmax(0)), probabilities.max(0)


@partial(jax.jit, static_argnames=("image_shape", "population", "encoding"))
def _first_elites(
    view: View, key: PRNGKeyArray, *, image_shape: Shape, population: int, encoding: str
) -> tuple[Any, Array]:
    """Of a random population."""
    draw, _, render = _ENCODINGS[encoding]
    first, _ = jax.random.split(key)
    keys = jax.random.split(first, population)
    genomes = jax.vmap(lambda key: draw(key, image_shape))(keys)
    return _best(view, jax.vmap(lambda genome: render(genome, image_shape))(genomes), genomes)


@partial(jax.jit, static_argnames=("image_shape", "generations", "population", "encoding"))
def _by_evolution(
    view: View,
    key: PRNGKeyArray,
    elites: tuple[Any, Array],
    past: Array,
    *,
    image_shape: Shape,
    generations: int,
    population: int,
    encoding: str,
) -> Evolved:
    _, mutate, render = _ENCODINGS[encoding]
    show = jax.vmap(lambda genome: render(genome, image_shape))
    _, rest = jax.random.split(key)

    def generation(state: tuple[Any, Array], number: Array) -> tuple[tuple[Any, Array], Array]:
        elites, confidences = state
        choosing, mutating = jax.random.split(jax.random.fold_in(rest, number))
        chosen = jax.random.randint(choosing, (population,), 0, len(confidences), jnp.int32)
        keys = jax.random.split(mutating, population)
        children = jax.vmap(mutate, (0, 0, None))(keys, _take(elites, chosen), number)
        rivals, theirs = _best(view, show(children), children)
        better = theirs > confidences
        elites = jax.tree.map(partial(_where, better), rivals, elites)
        confidences = jnp.where(better, theirs, confidences)
        return (elites, confidences), confidences

    numbers = past + jnp.arange(generations)
    (genomes, confidences), history = lax.scan(generation, elites, numbers)
    past = jnp.asarray(past + generations)
    return Evolved(show(genomes), confidences, history, genomes, past)


def _take(genomes: Any, places: Array) -> Any:
    return jax.tree.map(lambda genes: genes[places], genomes)


def _where(condition: Array, genes: Array, others: Array) -> Array:
    return jnp.where(condition.reshape(-1, *[1] * (genes.ndim - 1)), genes, others)


def polynomial_mutation(
    key: PRNGKeyArray,
    pixels: Pixels,
    *,
    rate: Float[AnyArray, ""] | float,
    strength: Float[AnyArray, ""] | float = _STRENGTH,
) -> Float[Array, "..."]:
    """Changes some pixels, most of them a little (Deb 2001).

    A pixel changes by 1 - v^(1 / (strength + 1)), up or down, where v is uniform from 0 to 1, so
    by 1 / (strength + 2) on average; and is clipped to [0, 1].

    Args:
      key: of which pixels change, and of their changes.
      pixels: from 0 to 1, of any shape.
      rate: the probability that a pixel changes.
      strength: the greater, the smaller the changes; the paper's is 15.
    """
    changing, drawing = jax.random.split(key)
    uniform = _uniform(drawing, np.shape(pixels), minval=-1, maxval=1)
    change = jnp.sign(uniform) * (1 - (1 - jnp.abs(uniform)) ** (1 / (strength + 1)))
    changes = jax.random.bernoulli(changing, jnp.asarray(rate, jnp.float32), np.shape(pixels))
    return (jnp.asarray(pixels) + jnp.where(changes, change, 0)).clip(0, 1)


def _mutate_pixels(key: PRNGKeyArray, pixels: Array, generation: Array) -> Array:
    rate = _RATE * 0.5 ** (generation // _HALVED_EVERY)
    return polynomial_mutation(key, pixels, rate=rate)


class PatternNetwork(NamedTuple):
    """A compositional pattern-producing network (Stanley 2007), which draws an image.

    It computes a pixel from its place alone: from x and y, which go from -1 to 1 across the
    image, from the distance to the centre, and from 1. Two layers of nodes follow, each node with
    a function of its own, and a sigmoid for each channel.

    The paper's networks are grown by NEAT (Stanley and Miikkulainen 2002): they begin without
    hidden nodes, mutation adds nodes and connections anywhere, and they are selected alongside
    their kind. Here all have the same nodes, each connected to all of the layer before it; only
    weights and functions mutate.

    Attributes:
      weights: from the four inputs to the first layer, to the second, and to the channels.
      functions: each node's: 0 for the sine, 1 for the sigmoid, 2 for the Gaussian exp(-x²), 3
        for the identity.
    """

    weights: tuple[
        Float[Array, "inputs=4 nodes"], Float[Array, "nodes nodes"], Float[Array, "nodes channels"]
    ]
    functions: Int[Array, "layers=2 nodes"]

    def render(self, height: int, width: int) -> Float[Array, "height width channels"]:
        """The image that it draws, from 0 to 1.

        Args:
          height: in pixels.
          width: likewise.
        """
        y, x = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
        values = jnp.stack([x, y, jnp.sqrt(x**2 + y**2), jnp.ones_like(x)], -1)
        *hidden, last = self.weights
        for weights, functions in zip(hidden, self.functions, strict=True):
            values = _activate(values @ weights, functions)
        return jax.nn.sigmoid(values @ last)


def _activate(x: Array, functions: Array) -> Array:
    """Each node's own function of what it receives, [..., nodes]."""
    of_x = [jnp.sin(x), jax.nn.sigmoid(x), jnp.exp(-jnp.square(x)), x]
    return jnp.select([functions == number for number in range(len(of_x))], of_x)


def _uniform(key: PRNGKeyArray, shape: tuple[int, ...], **bounds: Any) -> Array:
    """Drawn in float32, so that x64 mode gives the same."""
    return jax.random.uniform(key, shape, jnp.float32, **bounds).astype(float)


def _draw_network(key: PRNGKeyArray, image_shape: Shape) -> PatternNetwork:
    drawing, choosing = jax.random.split(key)
    sizes = 4, _NODES, _NODES, image_shape[2]
    weights = [
        _FIRST * jax.random.normal(key, sizes[layer : layer + 2], jnp.float32).astype(float)
        for layer, key in enumerate(jax.random.fold_in(drawing, layer) for layer in range(3))
    ]
    functions = jax.random.randint(choosing, (2, _NODES), 0, 4, jnp.int32)
    return PatternNetwork((weights[0], weights[1], weights[2]), functions)


def _mutate_network(key: PRNGKeyArray, network: PatternNetwork, _: Array) -> PatternNetwork:
    changing, drawing, choosing, scaling = jax.random.split(key, 4)
    # Children of coarse and of fine changes: the former find patterns, the latter tune them.
    least, most = jnp.log(jnp.array(_CHANGES) / _FIRST)
    scale = jnp.exp(_uniform(scaling, (), minval=least, maxval=most))
    other = _draw_network(drawing, (0, 0, network.weights[-1].shape[1]))
    keys = jax.random.split(choosing, len(network.weights))

    def change(key: PRNGKeyArray, weights: Array, noise: Array) -> Array:
        changes = jax.random.bernoulli(key, jnp.float32(_WEIGHT_RATE), weights.shape)
        return weights + jnp.where(changes, scale * noise, 0)

    first, second, last = map(change, keys, network.weights, other.weights)
    changes = jax.random.bernoulli(changing, jnp.float32(_FUNCTION_RATE), network.functions.shape)
    return PatternNetwork(
        (first, second, last), jnp.where(changes, other.functions, network.functions)
    )


class _Encoding(NamedTuple):
    """What evolution needs to know of its genomes.

    Attributes:
      draw: a random genome, for images of a shape.
      mutate: a child's genome, in a generation counted from 0.
      render: the image of a shape.
    """

    draw: Callable[[PRNGKeyArray, Shape], Any]
    mutate: Callable[[PRNGKeyArray, Any, Array], Any]
    render: Callable[[Any, Shape], Array]


_ENCODINGS = {
    "direct": _Encoding(_uniform, _mutate_pixels, lambda pixels, _: pixels),
    "cppn": _Encoding(
        _draw_network, _mutate_network, lambda network, shape: network.render(*shape[:2])
    ),
}


def _check(view: View, image_shape: Shape, **counts: int) -> int:
    """How many classes the network knows; raises an InputError where something does not fit."""
    check_counts(**counts)
    if not ascent.accepts(view, image_shape):
        raise ascent.refused(image_shape)
    return view.stage_shapes(image_shape)["logits"][-1]
