"""Adversarial examples: images with small changes that a network misclassifies.

- `fast_gradient_sign`: Goodfellow et al. 2015, "Explaining and harnessing adversarial examples".
- `projected_gradient_descent`: Madry et al. 2018, "Towards deep learning models resistant to
  adversarial attacks".
- `lbfgs_attack`, `transfer_errors`: Szegedy et al. 2014, "Intriguing properties of neural
  networks".
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dlc_jax.errors import InputError
from dlc_jax.explain.argument_checks import check_labels, check_positive, is_traced
from dlc_jax.explain.classifier import ImageClassifier, Pixels
from dlc_jax.nn.losses import cross_entropy, misclassification_log_odds, misclassified
from dlc_jax.typing import AnyArray

Scalar: TypeAlias = Float[AnyArray, ""] | float
Norm: TypeAlias = Literal["inf", "2"]

# L-BFGS starts this far from black and white, where its variable has no gradient.
_LBFGS_MARGIN = 0.02


class AttackResult(NamedTuple):
    """Result of an attack on a batch of images.

    Attributes:
      pixels: Adversarial images, with pixels from 0 to 1.
      success: Whether the prediction differs from the label or, for a targeted attack, equals the
        target.
      confidence: Probability of the predicted class.
      l2_distance: Euclidean norm of the perturbation.
      linf_distance: Maximum norm of the perturbation.
    """

    pixels: Float[Array, "batch height width channels"]
    success: Bool[Array, " batch"]
    confidence: Float[Array, " batch"]
    l2_distance: Float[Array, " batch"]
    linf_distance: Float[Array, " batch"]


class AttackSummary(NamedTuple):
    """Means of an attack's results.

    Attributes:
      success_rate: Fraction of the images on which the attack succeeds, from 0 to 1.
      confidence: Mean over the images on which it succeeds; NaN if there are none.
      l2_distance: Mean over the same images.
      linf_distance: Mean over the same images.
    """

    success_rate: Float[Array, ""]
    confidence: Float[Array, ""]
    l2_distance: Float[Array, ""]
    linf_distance: Float[Array, ""]


@jax.jit
def summarize_attack(result: AttackResult) -> AttackSummary:
    """Returns the success rate of an attack, and means over the images on which it succeeds.

    Args:
      result: Result of the attack.

    Example:
      >>> import numpy as np
      >>> distances = np.array([0.2, 0.4])
      >>> result = AttackResult(
      ...     np.zeros((2, 8, 8, 1)), np.array([True, False]), distances, distances, distances
      ... )
      >>> summary = summarize_attack(result)
      >>> print(f"{summary.success_rate:.1f} {summary.l2_distance:.1f}")
      0.5 0.2
    """
    success = result.success

    def mean(values: Array) -> Array:
        return jnp.where(success, values, 0).sum() / success.sum()

    values = result.confidence, result.l2_distance, result.linf_distance
    return AttackSummary(success.mean(), *map(mean, values))


def fast_gradient_sign(
    classifier: ImageClassifier,
    pixels: Pixels,
    labels: Int[AnyArray, " batch"],
    *,
    epsilon: Scalar,
) -> AttackResult:
    """Attacks images by the fast gradient sign method, FGSM (Goodfellow et al. 2015, section 4).

    It takes one step of length `epsilon` along the sign of the loss's gradient, and clips the
    pixels to [0, 1].

    Args:
      classifier: The classifier to attack.
      pixels: Images with pixels from 0 to 1.
      labels: Their classes.
      epsilon: Change of each pixel, from 0 to 1.

    Raises:
      InputError: Pixels or labels do not match the network, or epsilon is negative.

    Example:
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> pixels = np.random.default_rng(0).uniform(size=(2, 8, 8, 1))
      >>> result = fast_gradient_sign(tiny_classifier(), pixels, np.array([0, 2]), epsilon=0.1)
      >>> bool((result.linf_distance <= 0.1001).all())
      True
    """
    check_labels(classifier, pixels, labels)
    _check_epsilon(epsilon)
    return _fast_gradient_sign(classifier, pixels, labels, epsilon)


@jax.jit
def _fast_gradient_sign(
    classifier: ImageClassifier, pixels: Array, labels: Array, epsilon: Array
) -> AttackResult:
    gradient = _loss_gradient(classifier, pixels, labels)
    adversarial = (pixels + epsilon * jnp.sign(gradient)).clip(0, 1)
    return _result(classifier, pixels, adversarial, labels)


class _Ball(NamedTuple):
    """Perturbations up to a norm, one for each image.

    Attributes:
      sample: Draws perturbations of a shape uniformly from the unit ball.
      steepest: Direction of norm 1 along which a function with this gradient grows most.
      project: Projects perturbations onto the ball of a radius.
    """

    sample: Callable[[PRNGKeyArray, tuple[int, ...]], Array]
    steepest: Callable[[Array], Array]
    project: Callable[[Array, Scalar], Array]


def _l2_norms(perturbations: Array) -> Array:
    return jnp.sqrt(jnp.square(perturbations).sum((1, 2, 3), keepdims=True))


# Random numbers are float32, so that they are the same in x64 mode.
def _sample_linf(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, jnp.float32, -1, 1).astype(float)


def _sample_l2(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    direction_key, radius_key = jax.random.split(key)
    # The volume within a radius grows with its power by the number of dimensions.
    volumes = jax.random.uniform(radius_key, (shape[0], 1, 1, 1), jnp.float32).astype(float)
    directions = jax.random.normal(direction_key, shape, jnp.float32).astype(float)
    return volumes ** (1 / np.prod(shape[1:])) * _steepest_l2(directions)


def _steepest_l2(gradient: Array) -> Array:
    norms = _l2_norms(gradient)
    return gradient / jnp.where(norms > 0, norms, 1)


def _project_l2(perturbations: Array, radius: Scalar) -> Array:
    norms = _l2_norms(perturbations)
    return perturbations * jnp.where(norms > radius, radius / jnp.where(norms > 0, norms, 1), 1)


def _project_linf(perturbations: Array, radius: Scalar) -> Array:
    return perturbations.clip(-radius, radius)


_BALLS = {
    "inf": _Ball(_sample_linf, jnp.sign, _project_linf),
    "2": _Ball(_sample_l2, _steepest_l2, _project_l2),
}


def projected_gradient_descent(
    classifier: ImageClassifier,
    pixels: Pixels,
    labels: Int[AnyArray, " batch"],
    *,
    key: PRNGKeyArray,
    epsilon: Scalar,
    norm: Norm = "inf",
    steps: int = 40,
    step_size: Scalar | None = None,
) -> AttackResult:
    """Attacks images by projected gradient descent, PGD (Madry et al. 2018, section 2.1).

    The start is drawn uniformly from the ball around the image. Each step goes along the loss's
    steepest ascent in the norm (for "inf", the sign of the gradient), and is projected to the ball
    and to pixels from 0 to 1.

    Args:
      classifier: The classifier to attack.
      pixels: Images with pixels from 0 to 1.
      labels: Their classes.
      key: PRNG key of the starts.
      epsilon: Radius of the ball, 0 or more, in units of pixels from 0 to 1.
      norm: "inf" for the maximum norm, "2" for the Euclidean norm.
      steps: Number of steps.
      step_size: Length of a step in the same norm. The default is 2.5 epsilon / steps, with which
        every point of the ball can be reached.

    Raises:
      InputError: Pixels or labels do not match the network, epsilon is negative, there is no such
        norm, or there are no steps.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> pixels = np.random.default_rng(0).uniform(size=(2, 8, 8, 1))
      >>> result = projected_gradient_descent(
      ...     tiny_classifier(),
      ...     pixels,
      ...     np.array([0, 2]),
      ...     key=jax.random.key(0),
      ...     epsilon=0.5,
      ...     norm="2",
      ... )
      >>> bool((result.l2_distance <= 0.5001).all())
      True
    """
    check_labels(classifier, pixels, labels)
    _check_epsilon(epsilon)
    if norm not in _BALLS:
        raise InputError(f"there is no norm {norm!r}; choose from {', '.join(_BALLS)}")
    check_positive(steps=steps)
    if step_size is None:
        step_size = 2.5 * epsilon / steps
    return _projected_gradient_descent(
        classifier, pixels, labels, key, epsilon, step_size, norm=norm, steps=steps
    )


@partial(jax.jit, static_argnames=("norm", "steps"))
def _projected_gradient_descent(
    classifier: ImageClassifier,
    pixels: Array,
    labels: Array,
    key: PRNGKeyArray,
    epsilon: Scalar,
    step_size: Scalar,
    *,
    norm: Norm,
    steps: int,
) -> AttackResult:
    ball = _BALLS[norm]

    def step(adversarial: Array, _: None) -> tuple[Array, None]:
        gradient = _loss_gradient(classifier, adversarial, labels)
        perturbations = adversarial + step_size * ball.steepest(gradient) - pixels
        # Clipping moves pixels towards the image's, so the result stays in the ball.
        return (pixels + ball.project(perturbations, epsilon)).clip(0, 1), None

    start = (pixels + epsilon * ball.sample(key, pixels.shape)).clip(0, 1)
    adversarial, _ = lax.scan(step, start, length=steps)
    return _result(classifier, pixels, adversarial, labels)


def lbfgs_attack(
    classifier: ImageClassifier,
    pixels: Pixels,
    labels: Int[AnyArray, " batch"],
    *,
    targets: Int[AnyArray, " batch"] | None = None,
    iterations: int = 30,
    search_steps: int = 10,
    c_range: tuple[Scalar, Scalar] = (1e-3, 1e2),
) -> AttackResult:
    """Finds small perturbations that change the prediction, by L-BFGS (Szegedy et al. 2014, 4.1).

    It minimizes c |r|² + loss(x + r, target) over perturbations r with x + r in [0, 1], for the
    largest c for which the network still predicts the target, which is found by a binary search
    on a logarithmic scale. The smallest successful perturbation is returned, or no perturbation
    if none is successful.

    The paper's norm is not squared; here it is, for a gradient at r = 0. The box constraints are
    kept by a change of variable, x + r = sin²(w), since Optax's L-BFGS has no constraints. At 0
    and 1 the variable w has no gradient, so the search starts 0.02 away from them.

    Args:
      classifier: The classifier to attack.
      pixels: Images with pixels from 0 to 1.
      labels: Their classes.
      targets: Target classes; by default the most probable class other than the label.
      iterations: Number of iterations of L-BFGS for each c.
      search_steps: Number of steps of the binary search.
      c_range: Smallest and largest c, both above 0.

    Raises:
      InputError: Pixels, labels or targets do not match the network, `c_range` is not a range
        above 0, or a number is below 1.

    Example:
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> pixels = np.random.default_rng(0).uniform(size=(1, 8, 8, 1))
      >>> result = lbfgs_attack(
      ...     tiny_classifier(), pixels, np.array([0]), iterations=5, search_steps=2
      ... )
      >>> result.pixels.shape
      (1, 8, 8, 1)
    """
    check_labels(classifier, pixels, labels)
    check_positive(iterations=iterations, search_steps=search_steps)
    if targets is not None:
        check_labels(classifier, pixels, targets)
    low, high = c_range
    if not is_traced(low, high) and not 0 < low < high:
        raise InputError(
            f"c_range is ({low}, {high}); give two numbers above 0, the smaller one first"
        )
    if targets is None:
        # Separate, so that the attack is compiled once, with or without given targets.
        targets = _most_probable_other_class(classifier, pixels, labels)
    return _lbfgs_attack(
        classifier, pixels, targets, (low, high), iterations=iterations, search_steps=search_steps
    )


@jax.jit
def _most_probable_other_class(classifier: ImageClassifier, pixels: Array, labels: Array) -> Array:
    logits = classifier.logits(pixels)
    is_label = jnp.arange(logits.shape[1]) == jnp.asarray(labels)[:, None]
    return jnp.where(is_label, -jnp.inf, logits).argmax(1)


@partial(jax.jit, static_argnames=("iterations", "search_steps"))
def _lbfgs_attack(
    classifier: ImageClassifier,
    pixels: Array,
    targets: Array,
    c_range: tuple[Scalar, Scalar],
    *,
    iterations: int,
    search_steps: int,
) -> AttackResult:
    logits = classifier.logits(pixels)
    log_range = jnp.log(jnp.asarray(c_range, jnp.float32))

    def attack(image: Array, target: Array, distance: Array) -> Array:
        def bisect(state: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
            low, high, nearest, distance = state
            middle = (low + high) / 2
            found = _minimize(classifier, image, target, jnp.exp(middle), iterations)
            success = classifier.logits(found[None])[0].argmax() == target
            low, high = jnp.where(success, middle, low), jnp.where(success, high, middle)
            found_distance = jnp.square(found - image).sum()
            is_nearer = success & (found_distance < distance)
            nearest = jnp.where(is_nearer, found, nearest)
            return (low, high, nearest, jnp.where(is_nearer, found_distance, distance)), None

        (*_, nearest, _), _ = lax.scan(bisect, (*log_range, image, distance), length=search_steps)
        return nearest

    # An image that is already classified as the target needs no perturbation.
    distances = jnp.where(logits.argmax(1) == targets, 0.0, jnp.inf)
    adversarial = jax.vmap(attack)(jnp.asarray(pixels, jnp.float32), targets, distances)
    return _result(classifier, pixels, adversarial, targets, targeted=True)


def _minimize(
    classifier: ImageClassifier, image: Array, target: Array, c: Array, iterations: int
) -> Array:
    """The image x + r in [0, 1] that minimizes c |r|² + loss(x + r, target)."""

    def objective(variable: Array) -> Array:
        adversarial = jnp.square(jnp.sin(variable))
        loss = cross_entropy(classifier.logits(adversarial[None]), target[None])[0]
        return c * jnp.square(adversarial - image).sum() + loss

    optimizer = optax.lbfgs()
    start = jnp.arcsin(jnp.sqrt(image.clip(_LBFGS_MARGIN, 1 - _LBFGS_MARGIN)))
    value, gradient = jax.value_and_grad(objective)(start)
    state = optax.tree_utils.tree_set(optimizer.init(start), value=value, grad=gradient)

    def iterate(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        variable, state = carry
        # The line search stores both in its state.
        value, gradient = (optax.tree_utils.tree_get(state, name) for name in ("value", "grad"))
        updates, state = optimizer.update(
            gradient, state, variable, value=value, grad=gradient, value_fn=objective
        )
        return (optax.apply_updates(variable, updates), state), None

    (variable, _), _ = lax.scan(iterate, (start, state), length=iterations)
    return jnp.square(jnp.sin(variable))


def transfer_errors(
    classifiers: Sequence[ImageClassifier],
    adversarial: Sequence[Pixels],
    labels: Int[AnyArray, " batch"],
) -> Float[Array, "sets classifiers"]:
    """Computes each classifier's error on each set of images (Szegedy et al. 2014, section 4.2).

    Args:
      classifiers: Classifiers to test, which may have different structures.
      adversarial: Sets of images, for example the results of attacks on each classifier
        (`AttackResult.pixels`) and the unchanged images.
      labels: Classes of the images, the same for all sets.

    Returns:
      Error rates, from 0 to 1.

    Raises:
      InputError: There are no classifiers or images, or pixels or labels do not match a network.

    Example:
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> classifiers = [tiny_classifier(seed=0), tiny_classifier(seed=1)]
      >>> pixels = np.random.default_rng(0).uniform(size=(2, 8, 8, 1))
      >>> labels = np.asarray(classifiers[0].logits(pixels)).argmax(1)
      >>> attack = fast_gradient_sign(classifiers[0], pixels, labels, epsilon=0.1)
      >>> transfer_errors(classifiers, [pixels, attack.pixels], labels).shape
      (2, 2)
    """
    if not classifiers or not adversarial:
        raise InputError(
            f"there are {len(classifiers)} classifiers and {len(adversarial)} sets of images; give "
            "at least one of each"
        )
    for classifier in classifiers:
        for pixels in adversarial:
            check_labels(classifier, pixels, labels)
    errors = [[_error(each, pixels, labels) for each in classifiers] for pixels in adversarial]
    return jnp.stack([jnp.stack(row) for row in errors])


@jax.jit
def _error(classifier: ImageClassifier, pixels: Array, labels: Array) -> Array:
    return misclassified(classifier.logits(pixels), labels).mean()


def _result(
    classifier: ImageClassifier,
    pixels: Array,
    adversarial: Array,
    labels: Array,
    *,
    targeted: bool = False,
) -> AttackResult:
    """The result of an attack; if it is targeted, the labels are the targets."""
    logits = classifier.logits(adversarial)
    differs = misclassified(logits, labels)
    perturbations = (adversarial - pixels).reshape(len(pixels), -1)
    return AttackResult(
        adversarial,
        ~differs if targeted else differs,
        jax.nn.softmax(logits.astype(jnp.float32)).max(1),
        jnp.linalg.norm(perturbations, axis=1),
        jnp.abs(perturbations).max(1),
    )


def _loss_gradient(classifier: ImageClassifier, pixels: Array, labels: Array) -> Array:
    """Gradient of the log-odds against each label, which has the direction of the loss's."""

    def loss(pixels: Array) -> Array:
        return misclassification_log_odds(classifier.logits(pixels), labels).sum()

    return jax.grad(loss)(pixels)


def _check_epsilon(epsilon: Any) -> None:
    if not is_traced(epsilon) and not epsilon >= 0:
        raise InputError(f"epsilon is {epsilon}; give 0 or more")
