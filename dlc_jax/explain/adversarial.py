"""Adversarial images: changed a little, so that a network takes them for something else.

- `fast_gradient_sign`: Goodfellow et al. 2015, "Explaining and harnessing adversarial examples".
- `projected_gradient_descent`: Madry et al. 2018, "Towards deep learning models resistant to
  adversarial attacks".
- `smallest_perturbation`: Szegedy et al. 2014, "Intriguing properties of neural networks".
- `transfer`: what images made for one network do to another (Szegedy et al. 2014, section 4.2).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dlc_jax.data.dataset import AnyArray
from dlc_jax.errors import InputError
from dlc_jax.explain.checks import check_counts, check_labels
from dlc_jax.explain.classifier import Pixels, View
from dlc_jax.nn.losses import cross_entropy, log_odds_against, misclassified

Scalar: TypeAlias = Float[AnyArray, ""] | float

# How far from black and white the search by L-BFGS begins, where its variable has a slope.
_MARGIN = 0.02


class Attack(NamedTuple):
    """What an attack made of a batch of images.

    Attributes:
      pixels: the adversarial images, from 0 to 1.
      success: whether the prediction is no longer the label; of an attack with targets, whether
        it is the target.
      confidence: the probability of the class that is now predicted.
      distance_2: the perturbation's Euclidean norm, in units of pixels from 0 to 1.
      distance_inf: its largest absolute value, likewise.
    """

    pixels: Float[Array, "batch height width channels"]
    success: Bool[Array, " batch"]
    confidence: Float[Array, " batch"]
    distance_2: Float[Array, " batch"]
    distance_inf: Float[Array, " batch"]


class Report(NamedTuple):
    """An attack in four numbers.

    Attributes:
      success_rate: the fraction of images on which it succeeded, from 0 to 1.
      confidence: mean over the successful images, as are the following; not a number where
        there are none.
      distance_2: see `Attack`.
      distance_inf: likewise.
    """

    success_rate: Float[Array, ""]
    confidence: Float[Array, ""]
    distance_2: Float[Array, ""]
    distance_inf: Float[Array, ""]


@jax.jit
def report(attack: Attack) -> Report:
    """How often an attack succeeded, and on the images where it did, how well.

    Args:
      attack: what it made.
    """
    success = attack.success

    def mean(values: Array) -> Array:
        return jnp.where(success, values, 0).sum() / success.sum()

    values = attack.confidence, attack.distance_2, attack.distance_inf
    return Report(success.mean(), *map(mean, values))


def fast_gradient_sign(
    view: View,
    pixels: Pixels,
    labels: Int[AnyArray, " batch"],
    *,
    epsilon: Scalar,
) -> Attack:
    """One step up the loss by the sign of its gradient (Goodfellow et al. 2015, section 4).

    Each pixel changes by `epsilon`, or less where it would leave [0, 1].

    Args:
      view: the network.
      pixels: the images, from 0 to 1.
      labels: their classes.
      epsilon: 0 or more, in units of pixels from 0 to 1.

    Raises:
      InputError: pixels, labels or epsilon do not suit the network or what stands above.
    """
    check_labels(view, pixels, labels)
    _check_epsilon(epsilon)
    return _fast_gradient_sign(view, pixels, labels, epsilon)


@jax.jit
def _fast_gradient_sign(view: View, pixels: Array, labels: Array, epsilon: Array) -> Attack:
    gradient = _gradient(view, pixels, labels)
    adversarial = (pixels + epsilon * jnp.sign(gradient)).clip(0, 1)
    return _attack(view, pixels, adversarial, labels)


class _Ball(NamedTuple):
    """The perturbations up to some norm, one for each image, as three functions.

    Attributes:
      draw: uniformly from the ball of radius 1, of a shape.
      steepest: of the perturbations of norm 1, that along which a gradient grows most.
      project: the nearest in the ball of a radius.
    """

    draw: Callable[[PRNGKeyArray, tuple[int, ...]], Array]
    steepest: Callable[[Array], Array]
    project: Callable[[Array, Scalar], Array]


def _norms(changes: Array) -> Array:
    return jnp.sqrt(jnp.square(changes).sum((1, 2, 3), keepdims=True))


def _draw_inf(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    # In float32, so that x64 mode draws the same.
    return jax.random.uniform(key, shape, jnp.float32, -1, 1).astype(float)


def _draw_2(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    direction, radius = jax.random.split(key)
    # A ball's volume within a radius grows as its power by the number of dimensions.
    volumes = jax.random.uniform(radius, (shape[0], 1, 1, 1), jnp.float32).astype(float)
    toward = jax.random.normal(direction, shape, jnp.float32).astype(float)
    return volumes ** (1 / np.prod(shape[1:])) * _steepest_2(toward)


def _steepest_2(gradient: Array) -> Array:
    norms = _norms(gradient)
    return gradient / jnp.where(norms > 0, norms, 1)


def _project_2(change: Array, radius: Scalar) -> Array:
    norms = _norms(change)
    return change * jnp.where(norms > radius, radius / jnp.where(norms > 0, norms, 1), 1)


_BALLS = {
    "inf": _Ball(
        _draw_inf,
        jnp.sign,
        lambda change, radius: change.clip(-radius, radius),
    ),
    "2": _Ball(_draw_2, _steepest_2, _project_2),
}


def projected_gradient_descent(
    view: View,
    pixels: Pixels,
    labels: Int[AnyArray, " batch"],
    *,
    key: PRNGKeyArray,
    epsilon: Scalar,
    norm: str = "inf",
    steps: int = 40,
    step_size: Scalar | None = None,
) -> Attack:
    """Many steps up the loss from a random start, within a ball (Madry et al. 2018, section 2.1).

    The start is drawn uniformly from the ball around the image. Each step goes along the loss's
    steepest ascent in the given norm (for "inf" the sign of the gradient), and back to the ball
    and to pixels within [0, 1].

    Args:
      view: the network.
      pixels: the images, from 0 to 1.
      labels: their classes.
      key: of the starts.
      epsilon: the ball's radius, 0 or more, in units of pixels from 0 to 1.
      norm: "inf" for the largest change of a pixel, "2" for the Euclidean norm.
      steps: how many, at least one.
      step_size: a step's length in the same norm; by default 2.5 epsilon / steps, with which
        the other end of the ball can be reached.

    Raises:
      InputError: pixels, labels, epsilon, norm or steps do not suit the network or what stands
        above.
    """
    check_labels(view, pixels, labels)
    _check_epsilon(epsilon)
    if norm not in _BALLS:
        raise InputError(f"there is no norm {norm!r}; choose from {', '.join(_BALLS)}")
    check_counts(steps=steps)
    if step_size is None:
        step_size = 2.5 * epsilon / steps
    return _projected_gradient_descent(
        view, pixels, labels, key, epsilon, step_size, norm=norm, steps=steps
    )


@partial(jax.jit, static_argnames=("norm", "steps"))
def _projected_gradient_descent(
    view: View,
    pixels: Array,
    labels: Array,
    key: PRNGKeyArray,
    epsilon: Scalar,
    step_size: Scalar,
    *,
    norm: str,
    steps: int,
) -> Attack:
    ball = _BALLS[norm]

    def step(changed: Array, _: None) -> tuple[Array, None]:
        gradient = _gradient(view, changed, labels)
        change = changed + step_size * ball.steepest(gradient) - pixels
        # Clipping brings a pixel only nearer to the image's own, so that it stays in the ball.
        return (pixels + ball.project(change, epsilon)).clip(0, 1), None

    start = (pixels + epsilon * ball.draw(key, pixels.shape)).clip(0, 1)
    adversarial, _ = lax.scan(step, start, length=steps)
    return _attack(view, pixels, adversarial, labels)


def smallest_perturbation(
    view: View,
    pixels: Pixels,
    labels: Int[AnyArray, " batch"],
    *,
    targets: Int[AnyArray, " batch"] | None = None,
    iterations: int = 30,
    rounds: int = 10,
    weights: tuple[Scalar, Scalar] = (1e-3, 1e2),
) -> Attack:
    """The nearest image taken for another class, by L-BFGS (Szegedy et al. 2014, section 4.1).

    It minimises c |r|² + loss(x + r, target) over perturbations r with x + r within [0, 1], for
    the largest c with which the network still takes x + r for the target, found by bisection of
    c's logarithm. Of all that succeed the nearest is kept; where none does, the image is returned
    as it was.

    The paper's norm is not squared; here it is, for a gradient at r = 0. Box constraints are kept
    by a change of variable, x + r = sin²(w), so that Optax's L-BFGS without any can be used. At
    black and at white w has no slope, and the search begins 0.02 away from them.

    Args:
      view: the network.
      pixels: the images, from 0 to 1.
      labels: their classes.
      targets: what they are to be taken for; by default the most probable class that is not the
        label.
      iterations: of L-BFGS for each c, at least one.
      rounds: of the bisection, at least one.
      weights: the least and the greatest c, both above 0.

    Raises:
      InputError: pixels, labels, targets, weights or numbers do not suit the network or what
        stands above.
    """
    check_labels(view, pixels, labels)
    check_counts(iterations=iterations, rounds=rounds)
    if targets is not None:
        check_labels(view, pixels, targets)
    least, greatest = weights
    if _known(least, greatest) and not 0 < least < greatest:
        raise InputError(f"weights are {least} and {greatest}; give two above 0, in their order")
    if targets is None:
        # Apart, so that the search is compiled once, with targets given or not.
        targets = _likeliest_but(view, pixels, labels)
    return _smallest_perturbation(
        view, pixels, targets, (least, greatest), iterations=iterations, rounds=rounds
    )


@jax.jit
def _likeliest_but(view: View, pixels: Array, labels: Array) -> Array:
    return _without(view.logits(pixels), labels).argmax(1)


@partial(jax.jit, static_argnames=("iterations", "rounds"))
def _smallest_perturbation(
    view: View,
    pixels: Array,
    targets: Array,
    weights: tuple[Scalar, Scalar],
    *,
    iterations: int,
    rounds: int,
) -> Attack:
    logits = view.logits(pixels)
    logs = jnp.log(jnp.asarray(weights, jnp.float32))

    def nearest(image: Array, target: Array, distance: Array) -> Array:
        def bisect(state: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
            low, high, best, distance = state
            middle = (low + high) / 2
            found = _minimise(view, image, target, jnp.exp(middle), iterations)
            success = view.logits(found[None])[0].argmax() == target
            low, high = jnp.where(success, middle, low), jnp.where(success, high, middle)
            far = jnp.square(found - image).sum()
            nearer = success & (far < distance)
            return (
                low,
                high,
                jnp.where(nearer, found, best),
                jnp.where(nearer, far, distance),
            ), None

        (*_, best, _), _ = lax.scan(bisect, (*logs, image, distance), length=rounds)
        return best

    # What is taken for the target already needs no perturbation.
    distances = jnp.where(logits.argmax(1) == targets, 0.0, jnp.inf)
    adversarial = jax.vmap(nearest)(jnp.asarray(pixels, jnp.float32), targets, distances)
    return _attack(view, pixels, adversarial, targets, targeted=True)


def _minimise(view: View, image: Array, target: Array, weight: Array, iterations: int) -> Array:
    """The image x + r within [0, 1] that minimises weight |r|² + loss(x + r, target)."""

    def objective(variable: Array) -> Array:
        changed = jnp.square(jnp.sin(variable))
        loss = cross_entropy(view.logits(changed[None]), target[None])
        return weight * jnp.square(changed - image).sum() + loss

    optimizer = optax.lbfgs()
    start = jnp.arcsin(jnp.sqrt(image.clip(_MARGIN, 1 - _MARGIN)))
    value, gradient = jax.value_and_grad(objective)(start)
    state = optax.tree_utils.tree_set(optimizer.init(start), value=value, grad=gradient)

    def iterate(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        variable, state = carry
        # The line search has left both in its state.
        value, gradient = (optax.tree_utils.tree_get(state, name) for name in ("value", "grad"))
        updates, state = optimizer.update(
            gradient, state, variable, value=value, grad=gradient, value_fn=objective
        )
        return (optax.apply_updates(variable, updates), state), None

    (variable, _), _ = lax.scan(iterate, (start, state), length=iterations)
    return jnp.square(jnp.sin(variable))


def transfer(
    views: Sequence[View], adversarial: Sequence[Pixels], labels: Int[AnyArray, " batch"]
) -> Float[Array, "made_for tested_on"]:
    """How often each network is wrong on images that were made for each.

    Args:
      views: the networks to test on, whose structures may differ.
      adversarial: for each network that an attack was made for, its images (`Attack.pixels`);
        the unchanged images may stand among them, for comparison.
      labels: the right classes, the same for all.

    Returns:
      Error rates, from 0 to 1.

    Raises:
      InputError: there are no networks or images, or pixels and labels do not suit a network.
    """
    if not views or not adversarial:
        raise InputError(
            f"{len(views)} networks and {len(adversarial)} sets of images make no table; "
            "give at least one of each"
        )
    for view in views:
        for pixels in adversarial:
            check_labels(view, pixels, labels)
    return jnp.stack(
        [jnp.stack([_error(view, pixels, labels) for view in views]) for pixels in adversarial]
    )


@jax.jit
def _error(view: View, pixels: Array, labels: Array) -> Array:
    return misclassified(view.logits(pixels), labels).mean()


def _attack(
    view: View, pixels: Array, adversarial: Array, labels: Array, *, targeted: bool = False
) -> Attack:
    """The result, where `labels` are those to get away from, or if targeted, to get to."""
    logits = view.logits(adversarial)
    wrong = misclassified(logits, labels)
    change = (adversarial - pixels).reshape(len(pixels), -1)
    return Attack(
        adversarial,
        ~wrong if targeted else wrong,
        jax.nn.softmax(logits.astype(jnp.float32)).max(1),
        jnp.linalg.norm(change, axis=1),
        jnp.abs(change).max(1),
    )


def _gradient(view: View, pixels: Array, labels: Array) -> Array:
    """Of the log-odds against each label, with respect to the pixels."""
    return jax.grad(lambda pixels: log_odds_against(view.logits(pixels), labels).sum())(pixels)


def _without(logits: Array, labels: Array) -> Array:
    """The logits, with those of the labels at minus infinity."""
    classes = jnp.arange(logits.shape[1])
    return jnp.where(classes == jnp.asarray(labels)[:, None], -jnp.inf, logits)


def _known(*values: Any) -> bool:
    """Whether none of the values is one that `jit` traces."""
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def _check_epsilon(epsilon: Any) -> None:
    if _known(epsilon) and not epsilon >= 0:
        raise InputError(f"epsilon is {epsilon}; give 0 or more")
