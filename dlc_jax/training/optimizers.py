"""Learning-rate schedules and optimizers by name, and averages of their parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Int

from dlc_jax.errors import InputError

# Of the triangular schedule (Jordan 2024, section 3): where it begins, when its peak is, and
# where it ends, as parts of the peak and of the steps.
_BEGINNING, _PEAK, _END = 0.2, 0.23, 0.07


def _step(peak: float, steps: int) -> optax.Schedule:
    # He et al. 2015, section 4.2: at 32,000 and 48,000 of 64,000 steps.
    half, three_quarters = max(1, steps // 2), max(2, steps * 3 // 4)
    return optax.piecewise_constant_schedule(peak, {half: 0.1, three_quarters: 0.1})


def _triangular(peak: float, steps: int) -> optax.Schedule:
    top = max(1, round(_PEAK * steps))
    up = optax.linear_schedule(_BEGINNING * peak, peak, top)
    down = optax.linear_schedule(peak, _END * peak, max(1, steps - top))
    return optax.join_schedules([up, down], [top])


def _cosine(peak: float, steps: int) -> optax.Schedule:
    # From one part of the way up, so that no step is lost on a rate of zero.
    rising = max(1, steps // 20)
    return optax.warmup_cosine_decay_schedule(peak / (rising + 1), peak, rising, max(2, steps))


SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "step": _step,
    "triangular": _triangular,
    "cosine": _cosine,
}


def schedule(name: str, peak: float, steps: int) -> optax.Schedule:
    """The learning rate by step.

    Args:
      name: "constant"; "step" (a tenth after half, and a hundredth after three quarters);
        "triangular" (from a fifth up to the peak after 23 %, then down to 7 %); or "cosine"
        (up to the peak within 5 %, then down to zero).
      peak: the largest learning rate.
      steps: how many there are.

    Raises:
      InputError: there is no such schedule.
    """
    if name not in SCHEDULES:
        raise InputError(f"there is no schedule {name!r}; choose from {', '.join(SCHEDULES)}")
    return SCHEDULES[name](peak, steps)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    bias_factor: float = 1.0,
) -> optax.GradientTransformation:
    """Stochastic gradient descent with decoupled weight decay, and biases apart.

    Args:
      learning_rate: a number, or a function of the step.
      momentum: the weight of past gradients.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: by which part of them, times the learning rate, weights shrink each step.
        Biases, scales and slopes do not.
      bias_factor: how many times larger the learning rate of biases is.
    """
    if not (momentum or weight_decay or bias_factor != 1):
        return optax.sgd(learning_rate)
    after_momentum = [optax.trace(momentum, nesterov)] if momentum else []
    return optax.chain(
        *after_momentum,
        optax.add_decayed_weights(weight_decay, _are_weights),
        optax.scale_by_learning_rate(learning_rate),
        optax.masked(optax.scale(bias_factor), _are_biases),
    )


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    bias_factor: float = 1.0,
) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for weights, and Adam for biases, scales and slopes.

    A step of weights is the momentum made orthogonal, for which a convolution's kernel counts
    as a matrix of [height * width * inputs, features], times a factor that makes its root mean
    square 0.2, about Adam's (Liu et al. 2025, "Muon is scalable for LLM training", section
    2.2), so that one learning rate does for both.

    Args:
      learning_rate: a number, or a function of the step; 0.002 is a usual one.
      momentum: the weight of past gradients.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: as for `sgd`.
      bias_factor: as for `sgd`.
    """

    def times(step: Any) -> Any:
        rate = learning_rate(step) if callable(learning_rate) else learning_rate
        return bias_factor * rate

    def as_matrices(params: Any) -> Any:
        def axes(param: Array, weight: bool) -> optax.contrib.MuonDimensionNumbers | None:
            if not weight or param.ndim < 2:
                return None
            return optax.contrib.MuonDimensionNumbers(tuple(range(param.ndim - 1)), param.ndim - 1)

        return jax.tree.map(axes, params, _are_weights(params))

    return optax.contrib.muon(
        learning_rate,
        beta=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        adam_learning_rate=times,
        muon_weight_dimension_numbers=as_matrices,
        consistent_rms=0.2,
    )


def adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    bias_factor: float = 1.0,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015).

    Args:
      learning_rate: a number, or a function of the step; 0.001 is a usual one.
      momentum: the weight of past gradients, the paper's beta_1; beta_2 is 0.999.
      nesterov: whether the momentum is Nesterov's (Dozat 2016).
      weight_decay: must be 0; `adamw` has it.
      bias_factor: as for `sgd`.

    Raises:
      InputError: there is a weight decay.
    """
    if weight_decay:
        raise InputError(f"adam has no weight decay, such as {weight_decay:g}; choose adamw")
    return adamw(
        learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=0.0,
        bias_factor=bias_factor,
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.01,
    bias_factor: float = 1.0,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
      learning_rate: as for `adam`.
      momentum: as for `adam`.
      nesterov: as for `adam`.
      weight_decay: as for `sgd`.
      bias_factor: as for `sgd`.
    """
    return optax.chain(
        optax.adamw(
            learning_rate,
            b1=momentum,
            weight_decay=weight_decay,
            mask=_are_weights,
            nesterov=nesterov,
        ),
        optax.masked(optax.scale(bias_factor), _are_biases),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "muon": muon,
}

# What each is usually told, in the fields of a recipe.
USUAL: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "adam": {"learning_rate": 0.001, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    "adamw": {"learning_rate": 0.001, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01},
    "muon": {"learning_rate": 0.002, "momentum": 0.95, "nesterov": True, "weight_decay": 0.0},
}


def create(
    name: str, learning_rate: optax.ScalarOrSchedule, **options: Any
) -> optax.GradientTransformation:
    """The optimizer called `name`.

    Args:
      name: "sgd", "adam", "adamw" or "muon".
      learning_rate: a number, or a function of the step.
      **options: `momentum`, `nesterov`, `weight_decay` and `bias_factor`, as for `sgd`.

    Raises:
      InputError: there is no such optimizer.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"there is no optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](learning_rate, **options)


def freeze_after(
    optimizer: optax.GradientTransformation, steps: int, variable: str
) -> optax.GradientTransformation:
    """An optimizer that leaves some parameters as they are after so many steps.

    Args:
      optimizer: what else happens.
      steps: how many they are changed by.
      variable: the name of their variable, as "whitening_bias".
    """

    def scale(step: Array) -> Array:
        return jnp.where(step < steps, 1.0, 0.0)

    chosen = optax.masked(
        optax.scale_by_schedule(scale),
        lambda params: _by_name(params, lambda name: name == variable),
    )
    return optax.chain(optimizer, chosen)


class AverageState(NamedTuple):
    """What `averaged` remembers.

    Attributes:
      step: how many steps there were.
      mean: the average of the parameters, too small by 1 - decay^step.
      inside: the state of the optimizer inside.
    """

    step: Int[Array, ""]
    mean: Any
    inside: optax.OptState


def averaged(
    optimizer: optax.GradientTransformation, steps: int, decay: float
) -> optax.GradientTransformation:
    """An optimizer whose last step ends at an average of the parameters of all steps.

    It is exponential, without the bias towards zero that it would begin with (Polyak and
    Juditsky 1992; Kingma and Ba 2015, section 3).

    Args:
      optimizer: takes the steps.
      steps: how many there are.
      decay: the weight of the past; about the last 1 / (1 - decay) steps count.
    """

    def init(params: Any) -> AverageState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AverageState(jnp.zeros((), jnp.int32), zeros, optimizer.init(params))

    def update(updates: Any, state: AverageState, params: Any) -> tuple[Any, AverageState]:
        updates, inside = optimizer.update(updates, state.inside, params)
        count = state.step + 1
        mean = optax.tree.update_moment(optax.apply_updates(params, updates), state.mean, decay, 1)
        updates = jax.tree.map(
            lambda update, param, mean: jnp.where(count == steps, mean - param, update),
            updates,
            params,
            optax.tree.bias_correction(mean, decay, count),
        )
        return updates, AverageState(count, mean, inside)

    return optax.GradientTransformation(init, update)


class LookaheadState(NamedTuple):
    """What `lookahead` remembers.

    Attributes:
      step: how many steps there were.
      slow: the averaged parameters.
      fast: the state of the optimizer inside.
    """

    step: Int[Array, ""]
    slow: Any
    fast: optax.OptState


def lookahead(
    optimizer: optax.GradientTransformation, steps: int, period: int = 5
) -> optax.GradientTransformation:
    """An optimizer whose parameters go back to their own average again and again.

    After each `period` steps the average keeps a part of itself, d, takes 1 - d of the
    parameters, and becomes the parameters (Zhang et al. 2019, "Lookahead optimizer", with two
    sets of parameters). As in Jordan 2024 (section 3.4), d rises as the cube of the time, up to
    0.95^period, and the last step ends at the average.

    Args:
      optimizer: takes the steps in between.
      steps: how many there are.
      period: after how many of them the parameters go back.
    """

    def init(params: Any) -> LookaheadState:
        return LookaheadState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def update(updates: Any, state: LookaheadState, params: Any) -> tuple[Any, LookaheadState]:
        updates, fast = optimizer.update(updates, state.fast, params)
        count = state.step + 1
        last = count == steps
        back = last | (count % period == 0)
        keep = jnp.where(last, 1.0, 0.95**period * (count / steps) ** 3)

        def average(slow: Array, param: Array, update: Array) -> Array:
            return jnp.where(back, keep * slow + (1 - keep) * (param + update), slow)

        slow = jax.tree.map(average, state.slow, params, updates)
        updates = jax.tree.map(
            lambda slow, param, update: jnp.where(back, slow - param, update), slow, params, updates
        )
        return updates, LookaheadState(count, slow, fast)

    return optax.GradientTransformation(init, update)


def _by_name(params: Any, chosen: Callable[[str], bool]) -> Any:
    """For each parameter whether its variable's name is chosen."""
    return jax.tree_util.tree_map_with_path(lambda path, _: chosen(_variable(path)), params)


def _variable(path: tuple[Any, ...]) -> str:
    names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return names[-1] if names else ""


def _are_weights(params: Any) -> Any:
    return _by_name(params, lambda name: not (name.endswith("bias") or name in ("scale", "slope")))


def _are_biases(params: Any) -> Any:
    return _by_name(params, lambda name: name.endswith("bias"))
