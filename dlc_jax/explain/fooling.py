"""Fooling images: unrecognizable images that a network classifies with high confidence.

Nguyen et al. 2015, "Deep neural networks are easily fooled: high confidence predictions for
unrecognizable images": by evolution with two encodings of images (section 2), and by gradient
ascent (section 3).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax.errors import InputError
from dlc_jax.explain import gradient_ascent
from dlc_jax.explain.argument_checks import check_image_shape, check_indices, check_positive
from dlc_jax.explain.classifier import ImageClassifier, ImageShape, Pixels
from dlc_jax.nn.losses import misclassification_log_odds
from dlc_jax.typing import AnyArray

EncodingName: TypeAlias = Literal["direct", "cppn"]

# Standard deviation of the noise from which gradient ascent starts.
_INITIAL_NOISE = 0.1
# The paper's mutation rate of pixels, the generations after which it halves, and the strength.
_PIXEL_RATE, _HALVING_GENERATIONS, _STRENGTH = 0.1, 1000, 15
# CPPNs: nodes in a layer, mutation rates of weights and functions, standard deviation of the
# initial weights, and range of the standard deviation of a child's mutations.
_NODES, _WEIGHT_RATE, _FUNCTION_RATE, _INITIAL_STD, _MUTATION_STDS = 8, 0.4, 0.1, 2.0, (0.1, 8.0)


def fooling_images_by_gradient(
    classifier: ImageClassifier,
    labels: Int[AnyArray, " batch"],
    *,
    key: PRNGKeyArray,
    image_shape: ImageShape,
    steps: int = 400,
    learning_rate: Float[AnyArray, ""] | float = 0.05,
) -> Float[Array, "batch height width channels"]:
    """Makes fooling images by gradient ascent from noise (section 3).

    The ascent starts from gray with noise of standard deviation 0.1. Each step adds the gradient
    of the label's log-odds, scaled to mean absolute value 1, times the learning rate, and clips
    the pixels to [0, 1]. The learning rate decreases linearly to zero.

    Args:
      classifier: The classifier to fool.
      labels: Class of each image.
      key: PRNG key of the noise.
      image_shape: Height, width and channels of the images.
      steps: Number of steps.
      learning_rate: Mean change of a pixel in the first step.

    Returns:
      Images with pixels from 0 to 1.

    Raises:
      InputError: There are no labels, a label is not a class of the network, the network does not
        accept images of this shape, or there are no steps.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> images = fooling_images_by_gradient(
      ...     tiny_classifier(),
      ...     np.arange(3),
      ...     key=jax.random.key(0),
      ...     image_shape=(8, 8, 1),
      ...     steps=10,
      ... )
      >>> images.shape
      (3, 8, 8, 1)
    """
    check_positive(steps=steps)
    check_image_shape(classifier, image_shape)
    if np.ndim(labels) != 1 or len(labels) == 0:
        raise InputError(
            f"labels have shape {np.shape(labels)}; give [batch] with at least one label"
        )
    num_classes = classifier.stage_shapes(image_shape)["logits"][-1]
    check_indices("class", labels, len(labels), num_classes)
    return _fooling_images_by_gradient(
        classifier, labels, key, learning_rate, image_shape=image_shape, steps=steps
    )


@partial(jax.jit, static_argnames=("image_shape", "steps"))
def _fooling_images_by_gradient(
    classifier: ImageClassifier,
    labels: Array,
    key: PRNGKeyArray,
    learning_rate: Array,
    *,
    image_shape: ImageShape,
    steps: int,
) -> Array:
    unused_key = jax.random.key(0)  # without jitter

    def log_odds(pixels: Array) -> Array:
        return -misclassification_log_odds(classifier.logits(pixels), labels)

    def step(pixels: Array, scale: Array) -> tuple[Array, None]:
        _, direction = gradient_ascent.normalized_gradient(log_odds, pixels, unused_key, jitter=0)
        return (pixels + scale * learning_rate * direction).clip(0, 1), None

    noise = jax.random.normal(key, (len(labels), *image_shape), jnp.float32).astype(float)
    start = (0.5 + _INITIAL_NOISE * noise).clip(0, 1)
    return lax.scan(step, start, 1 - jnp.arange(steps) / steps)[0]


class EvolutionResult(NamedTuple):
    """The best image of each class.

    Attributes:
      images: The images, with pixels from 0 to 1.
      confidences: Probability of each image's class.
      history: Confidences after each generation.
      genomes: Encodings of the images.
      generation: Number of generations so far.
    """

    images: Float[Array, "classes height width channels"]
    confidences: Float[Array, " classes"]
    history: Float[Array, "generations classes"]
    genomes: Any
    generation: Int[Array, ""]


def fooling_images_by_evolution(
    classifier: ImageClassifier,
    *,
    key: PRNGKeyArray,
    image_shape: ImageShape,
    generations: int = 1000,
    population_size: int = 100,
    encoding: EncodingName = "direct",
    resume_from: EvolutionResult | None = None,
) -> EvolutionResult:
    """Makes fooling images by evolution, which uses only the network's output (section 2).

    The algorithm is MAP-Elites (Mouret and Clune 2015, "Illuminating search spaces by mapping
    elites"). Each class has one elite, at first the best image of a random population. In each
    generation, every child is a mutation of a random elite of any class, and the best child for a
    class replaces its elite if the network's confidence is higher.

    The encoding "direct" is the image's pixels, which mutate by `polynomial_mutation` at a rate of
    0.1 that halves every 1,000 generations, as in the paper. The encoding "cppn" is a `CPPN`,
    which produces regular images.

    Args:
      classifier: The classifier to fool.
      key: PRNG key of the initial population and of all mutations.
      image_shape: Height, width and channels of the images.
      generations: Number of generations.
      population_size: Number of children in each generation.
      encoding: "direct" or "cppn".
      resume_from: Result to continue from, of a call with the same other arguments. The result is
        the same as that of all generations in one call, except for the history.

    Raises:
      InputError: The network does not accept images of this shape, there is no such encoding, or
        there are no generations or children.

    Example:
      >>> import jax
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> result = fooling_images_by_evolution(
      ...     tiny_classifier(),
      ...     key=jax.random.key(0),
      ...     image_shape=(8, 8, 1),
      ...     generations=5,
      ...     population_size=10,
      ... )
      >>> result.images.shape, result.history.shape
      ((3, 8, 8, 1), (5, 3))
    """
    check_positive(generations=generations, population_size=population_size)
    check_image_shape(classifier, image_shape)
    if encoding not in _ENCODINGS:
        raise InputError(f"there is no encoding {encoding!r}; choose from {', '.join(_ENCODINGS)}")
    if resume_from is None:
        # Separate, so that the evolution is compiled once, with or without a result to resume.
        elites = _initial_elites(
            classifier,
            key,
            image_shape=image_shape,
            population_size=population_size,
            encoding=encoding,
        )
        generation: Any = np.int32(0)
    else:
        elites = resume_from.genomes, resume_from.confidences
        generation = resume_from.generation
    return _evolve(
        classifier,
        key,
        elites,
        generation,
        image_shape=image_shape,
        generations=generations,
        population_size=population_size,
        encoding=encoding,
    )


def _best(classifier: ImageClassifier, images: Array, genomes: Any) -> tuple[Any, Array]:
    """The best genome of each class, and its confidence."""
    probabilities = jax.nn.softmax(classifier.logits(images).astype(jnp.float32))
    return _take(genomes, probabilities.argmax(0)), probabilities.max(0)


@partial(jax.jit, static_argnames=("image_shape", "population_size", "encoding"))
def _initial_elites(
    classifier: ImageClassifier,
    key: PRNGKeyArray,
    *,
    image_shape: ImageShape,
    population_size: int,
    encoding: EncodingName,
) -> tuple[Any, Array]:
    """The best genomes of a random population."""
    draw, _, decode = _ENCODINGS[encoding]
    initial_key, _ = jax.random.split(key)
    keys = jax.random.split(initial_key, population_size)
    genomes = jax.vmap(lambda key: draw(key, image_shape))(keys)
    images = jax.vmap(lambda genome: decode(genome, image_shape))(genomes)
    return _best(classifier, images, genomes)


@partial(jax.jit, static_argnames=("image_shape", "generations", "population_size", "encoding"))
def _evolve(
    classifier: ImageClassifier,
    key: PRNGKeyArray,
    elites: tuple[Any, Array],
    start: Array,
    *,
    image_shape: ImageShape,
    generations: int,
    population_size: int,
    encoding: EncodingName,
) -> EvolutionResult:
    _, mutate, decode = _ENCODINGS[encoding]
    decode_all = jax.vmap(lambda genome: decode(genome, image_shape))
    _, evolution_key = jax.random.split(key)

    def step(elites: tuple[Any, Array], generation: Array) -> tuple[tuple[Any, Array], Array]:
        genomes, confidences = elites
        parent_key, mutation_key = jax.random.split(jax.random.fold_in(evolution_key, generation))
        parents = jax.random.randint(parent_key, (population_size,), 0, len(confidences), jnp.int32)
        keys = jax.random.split(mutation_key, population_size)
        children = jax.vmap(mutate, (0, 0, None))(keys, _take(genomes, parents), generation)
        best, best_confidences = _best(classifier, decode_all(children), children)
        is_better = best_confidences > confidences
        genomes = jax.tree.map(partial(_where, is_better), best, genomes)
        confidences = jnp.where(is_better, best_confidences, confidences)
        return (genomes, confidences), confidences

    (genomes, confidences), history = lax.scan(step, elites, start + jnp.arange(generations))
    generation = jnp.asarray(start + generations)
    return EvolutionResult(decode_all(genomes), confidences, history, genomes, generation)


def _take(genomes: Any, indices: Array) -> Any:
    return jax.tree.map(lambda genes: genes[indices], genomes)


def _where(condition: Array, genes: Array, others: Array) -> Array:
    return jnp.where(condition.reshape(-1, *[1] * (genes.ndim - 1)), genes, others)


@jax.jit
def polynomial_mutation(
    key: PRNGKeyArray,
    pixels: Pixels,
    *,
    rate: Float[AnyArray, ""] | float,
    strength: Float[AnyArray, ""] | float = _STRENGTH,
) -> Float[Array, "..."]:
    """Mutates pixels by polynomial mutation (Deb 2001).

    ("Multi-objective optimization using evolutionary algorithms".) A pixel changes by
    1 - v^(1 / (strength + 1)), up or down, where v is uniform from 0 to 1; the mean change is
    1 / (strength + 2). The result is clipped to [0, 1].

    Args:
      key: PRNG key.
      pixels: Pixels from 0 to 1, of any shape.
      rate: Probability that a pixel changes.
      strength: The greater, the smaller the changes; 15 in Nguyen et al. 2015.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> polynomial_mutation(jax.random.key(0), jnp.array([0.25, 0.75]), rate=0.0).tolist()
      [0.25, 0.75]
    """
    rate_key, change_key = jax.random.split(key)
    uniform = _uniform(change_key, np.shape(pixels), minval=-1, maxval=1)
    change = jnp.sign(uniform) * (1 - (1 - jnp.abs(uniform)) ** (1 / (strength + 1)))
    is_changed = jax.random.bernoulli(rate_key, jnp.asarray(rate, jnp.float32), np.shape(pixels))
    return (jnp.asarray(pixels) + jnp.where(is_changed, change, 0)).clip(0, 1)


def _mutate_pixels(key: PRNGKeyArray, pixels: Array, generation: Array) -> Array:
    rate = _PIXEL_RATE * 0.5 ** (generation // _HALVING_GENERATIONS)
    return polynomial_mutation(key, pixels, rate=rate)


class CPPN(NamedTuple):
    """Compositional pattern-producing network, which draws an image (Stanley 2007).

    It computes a pixel from its coordinates x and y, which go from -1 to 1 across the image, its
    distance to the center, and 1. Two layers follow, in which each node has its own activation
    function, and a sigmoid for each channel.

    The paper's networks evolve by NEAT (Stanley and Miikkulainen 2002), which starts without
    hidden nodes, adds nodes and connections by mutation, and selects within species. Here all
    networks have the same fully connected nodes, and only weights and functions mutate.

    Attributes:
      weights: Weights of the two layers and of the channels.
      functions: Activation function of each node: 0 for the sine, 1 for the sigmoid, 2 for the
        Gaussian exp(-x²), 3 for the identity.
    """

    weights: tuple[
        Float[Array, "inputs=4 nodes"], Float[Array, "nodes nodes"], Float[Array, "nodes channels"]
    ]
    functions: Int[Array, "layers=2 nodes"]

    def render(self, height: int, width: int) -> Float[Array, "height width channels"]:
        """Draws the image, with pixels from 0 to 1.

        Args:
          height: Height of the image, in pixels.
          width: Width of the image, in pixels.

        Example:
          >>> import jax.numpy as jnp
          >>> weights = jnp.zeros((4, 2)), jnp.zeros((2, 2)), jnp.zeros((2, 1))
          >>> CPPN(weights, jnp.zeros((2, 2), int)).render(1, 3).ravel().tolist()
          [0.5, 0.5, 0.5]
        """
        return _render(self, height=height, width=width)


@partial(jax.jit, static_argnames=("height", "width"))
def _render(network: CPPN, *, height: int, width: int) -> Array:
    y, x = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    values = jnp.stack([x, y, jnp.sqrt(x**2 + y**2), jnp.ones_like(x)], -1)
    *hidden, output = network.weights
    for weights, functions in zip(hidden, network.functions, strict=True):
        values = _activate(values @ weights, functions)
    return jax.nn.sigmoid(values @ output)


def _activate(x: Array, functions: Array) -> Array:
    """Applies each node's own activation function to its input, [..., nodes]."""
    results = [jnp.sin(x), jax.nn.sigmoid(x), jnp.exp(-jnp.square(x)), x]
    return jnp.select([functions == index for index in range(len(results))], results)


def _uniform(
    key: PRNGKeyArray, shape: tuple[int, ...], *, minval: Any = 0.0, maxval: Any = 1.0
) -> Array:
    """Uniform random numbers, drawn in float32 so that they are the same in x64 mode."""
    return jax.random.uniform(key, shape, jnp.float32, minval, maxval).astype(float)


def _draw_cppn(key: PRNGKeyArray, image_shape: ImageShape) -> CPPN:
    weight_key, function_key = jax.random.split(key)
    sizes = 4, _NODES, _NODES, image_shape[2]
    weights = [
        _INITIAL_STD * jax.random.normal(key, sizes[layer : layer + 2], jnp.float32).astype(float)
        for layer, key in enumerate(jax.random.fold_in(weight_key, layer) for layer in range(3))
    ]
    functions = jax.random.randint(function_key, (2, _NODES), 0, 4, jnp.int32)
    return CPPN((weights[0], weights[1], weights[2]), functions)


def _mutate_cppn(key: PRNGKeyArray, network: CPPN, generation: Array) -> CPPN:
    del generation
    function_key, noise_key, weight_key, scale_key = jax.random.split(key, 4)
    # Children with large mutations find patterns, those with small mutations tune them.
    low, high = jnp.log(jnp.array(_MUTATION_STDS) / _INITIAL_STD)
    scale = jnp.exp(_uniform(scale_key, (), minval=low, maxval=high))
    noise = _draw_cppn(noise_key, (0, 0, network.weights[-1].shape[1]))
    keys = jax.random.split(weight_key, len(network.weights))

    def mutate(key: PRNGKeyArray, weights: Array, noise: Array) -> Array:
        is_changed = jax.random.bernoulli(key, jnp.float32(_WEIGHT_RATE), weights.shape)
        return weights + jnp.where(is_changed, scale * noise, 0)

    first, second, output = map(mutate, keys, network.weights, noise.weights)
    is_changed = jax.random.bernoulli(
        function_key, jnp.float32(_FUNCTION_RATE), network.functions.shape
    )
    functions = jnp.where(is_changed, noise.functions, network.functions)
    return CPPN((first, second, output), functions)


class _Encoding(NamedTuple):
    """An encoding of images as genomes.

    Attributes:
      draw: Draws a random genome for images of a shape.
      mutate: Mutates a genome, in a generation counted from 0.
      decode: Decodes a genome to an image of a shape.
    """

    draw: Callable[[PRNGKeyArray, ImageShape], Any]
    mutate: Callable[[PRNGKeyArray, Any, Array], Any]
    decode: Callable[[Any, ImageShape], Array]


_ENCODINGS = {
    "direct": _Encoding(_uniform, _mutate_pixels, lambda pixels, _: pixels),
    "cppn": _Encoding(_draw_cppn, _mutate_cppn, lambda network, shape: network.render(*shape[:2])),
}
