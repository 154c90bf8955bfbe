"""Optimizers and learning-rate schedules by name, and wrappers around optimizers."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Int

from dlc_jax.errors import InputError

# The triangular schedule of Jordan 2024, section 3: the first and the last learning rate are
# fractions of the peak; the step of the peak is a fraction of all steps.
_INIT_FRACTION, _PEAK_FRACTION, _END_FRACTION = 0.2, 0.23, 0.07


def _step_schedule(peak_value: float, num_steps: int) -> optax.Schedule:
    # He et al. 2015, section 4.2: at 32,000 and 48,000 of 64,000 steps.
    boundaries = max(1, num_steps // 2), max(2, num_steps * 3 // 4)
    return optax.piecewise_constant_schedule(peak_value, dict.fromkeys(boundaries, 0.1))


def _triangular_schedule(peak_value: float, num_steps: int) -> optax.Schedule:
    peak_step = max(1, round(_PEAK_FRACTION * num_steps))
    warmup = optax.linear_schedule(_INIT_FRACTION * peak_value, peak_value, peak_step)
    decay = optax.linear_schedule(
        peak_value, _END_FRACTION * peak_value, max(1, num_steps - peak_step)
    )
    return optax.join_schedules([warmup, decay], [peak_step])


def _cosine_schedule(peak_value: float, num_steps: int) -> optax.Schedule:
    # The warmup starts above zero: a step with a learning rate of zero would be wasted.
    warmup_steps = max(1, num_steps // 20)
    return optax.warmup_cosine_decay_schedule(
        peak_value / (warmup_steps + 1), peak_value, warmup_steps, max(2, num_steps)
    )


SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak_value, num_steps: optax.constant_schedule(peak_value),
    "step": _step_schedule,
    "triangular": _triangular_schedule,
    "cosine": _cosine_schedule,
}


def create_schedule(name: str, peak_value: float, num_steps: int) -> optax.Schedule:
    """Creates a learning-rate schedule: a function from the step to the learning rate.

    Args:
      name: "constant"; "step" (divided by 10 after half and after three quarters of the steps);
        "triangular" (linear from a fifth of the peak to the peak at 23 % of the steps, then
        linear to 7 % of the peak); or "cosine" (linear warmup for 5 % of the steps, then cosine
        decay to zero).
      peak_value: The largest learning rate.
      num_steps: Number of training steps.

    Raises:
      InputError: The schedule is unknown.

    Example:
      >>> schedule = create_schedule("step", peak_value=1.0, num_steps=100)
      >>> [round(float(schedule(step)), 2) for step in (0, 50, 75)]
      [1.0, 0.1, 0.01]
    """
    if name not in SCHEDULES:
        raise InputError(f"there is no schedule {name!r}; choose from {', '.join(SCHEDULES)}")
    return SCHEDULES[name](peak_value, num_steps)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    bias_lr_multiplier: float = 1.0,
) -> optax.GradientTransformation:
    """Stochastic gradient descent with decoupled weight decay.

    Args:
      learning_rate: A number or a schedule.
      momentum: Decay rate of the momentum; 0 for no momentum.
      nesterov: Whether to use Nesterov momentum.
      weight_decay: Decoupled weight decay, multiplied by the learning rate. Biases, scales and
        slopes are not decayed.
      bias_lr_multiplier: Factor of the learning rate for biases.

    Example:
      >>> optimizer = sgd(0.1, bias_lr_multiplier=2.0)
      >>> params = {"kernel": jnp.ones(2), "bias": jnp.ones(1)}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> updates["kernel"].tolist(), updates["bias"].tolist()
      ([-0.10000000149011612, -0.10000000149011612], [-0.20000000298023224])
    """
    if not (momentum or weight_decay or bias_lr_multiplier != 1):
        return optax.sgd(learning_rate)
    trace = [optax.trace(momentum, nesterov)] if momentum else []
    return optax.chain(
        *trace,
        optax.add_decayed_weights(weight_decay, _weight_mask),
        optax.scale_by_learning_rate(learning_rate),
        optax.masked(optax.scale(bias_lr_multiplier), _bias_mask),
    )


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    bias_lr_multiplier: float = 1.0,
) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for weights, and Adam for biases, scales and slopes.

    The kernel of a convolution is orthogonalized as a matrix of shape
    [height * width * inputs, features]. Updates are scaled to a root mean square of 0.2, about
    that of Adam (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2), so that both
    use the same learning rate.

    Args:
      learning_rate: A number or a schedule; 0.002 is a common choice.
      momentum: Decay rate of the momentum.
      nesterov: Whether to use Nesterov momentum.
      weight_decay: See `sgd`.
      bias_lr_multiplier: Factor of the learning rate for biases, scales and slopes.

    Example:
      >>> optimizer = muon(0.01, nesterov=False)
      >>> params = {"kernel": jnp.eye(2)}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> updates["kernel"].shape
      (2, 2)
    """

    def adam_learning_rate(step: Any) -> Any:
        rate = learning_rate(step) if callable(learning_rate) else learning_rate
        return bias_lr_multiplier * rate

    def dimension_numbers(params: Any) -> Any:
        def axes(param: Array, is_weight: bool) -> optax.contrib.MuonDimensionNumbers | None:
            if not is_weight or param.ndim < 2:
                return None
            return optax.contrib.MuonDimensionNumbers(tuple(range(param.ndim - 1)), param.ndim - 1)

        return jax.tree.map(axes, params, _weight_mask(params))

    return optax.contrib.muon(
        learning_rate,
        beta=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        adam_learning_rate=adam_learning_rate,
        muon_weight_dimension_numbers=dimension_numbers,
        consistent_rms=0.2,
    )


def adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    bias_lr_multiplier: float = 1.0,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015).

    Args:
      learning_rate: A number or a schedule; 0.001 is a common choice.
      momentum: The parameter beta_1; beta_2 is 0.999.
      nesterov: Whether to use Nesterov momentum (Dozat 2016).
      weight_decay: Must be 0; use `adamw` for weight decay.
      bias_lr_multiplier: Factor of the learning rate for biases.

    Raises:
      InputError: The weight decay is not 0.

    Example:
      >>> optimizer = adam(0.5)
      >>> params = {"kernel": jnp.array(4.0)}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> round(float(updates["kernel"]), 4)
      -0.5
    """
    if weight_decay:
        raise InputError(
            f"adam has no weight decay, but weight_decay is {weight_decay:g}; use adamw instead"
        )
    return adamw(
        learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=0.0,
        bias_lr_multiplier=bias_lr_multiplier,
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.01,
    bias_lr_multiplier: float = 1.0,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
      learning_rate: A number or a schedule; 0.001 is a common choice.
      momentum: The parameter beta_1; beta_2 is 0.999.
      nesterov: Whether to use Nesterov momentum.
      weight_decay: See `sgd`.
      bias_lr_multiplier: Factor of the learning rate for biases.

    Example:
      >>> optimizer = adamw(0.5, weight_decay=0.25)
      >>> params = {"kernel": jnp.array(4.0), "bias": jnp.array(4.0)}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> round(float(updates["kernel"]), 4), round(float(updates["bias"]), 4)
      (-1.0, -0.5)
    """
    return optax.chain(
        optax.adamw(
            learning_rate,
            b1=momentum,
            weight_decay=weight_decay,
            mask=_weight_mask,
            nesterov=nesterov,
        ),
        optax.masked(optax.scale(bias_lr_multiplier), _bias_mask),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "muon": muon,
}

# Default hyperparameters of each optimizer, by the names of a recipe's fields.
DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "adam": {"learning_rate": 0.001, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    "adamw": {"learning_rate": 0.001, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01},
    "muon": {"learning_rate": 0.002, "momentum": 0.95, "nesterov": True, "weight_decay": 0.0},
}


class OptimizerOptions(TypedDict, total=False):
    """Keyword arguments of every optimizer; see `sgd`."""

    momentum: float
    nesterov: bool
    weight_decay: float
    bias_lr_multiplier: float


def create(
    name: str, learning_rate: optax.ScalarOrSchedule, **options: Unpack[OptimizerOptions]
) -> optax.GradientTransformation:
    """Creates an optimizer by name.

    Args:
      name: "sgd", "adam", "adamw" or "muon".
      learning_rate: A number or a schedule.
      **options: See `sgd`.

    Raises:
      InputError: The optimizer is unknown.

    Example:
      >>> optimizer = create("adamw", 0.001, weight_decay=0.05)
    """
    if name not in OPTIMIZERS:
        raise InputError(f"there is no optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](learning_rate, **options)


def freeze_after(
    optimizer: optax.GradientTransformation, num_steps: int, variable: str
) -> optax.GradientTransformation:
    """Wraps an optimizer to freeze all parameters of one name after a number of steps.

    Args:
      optimizer: The optimizer.
      num_steps: Number of steps after which the parameters no longer change.
      variable: Name of the parameters, for example "whitening_bias".

    Raises:
      InputError: No parameter has this name; raised on initialization.

    Example:
      >>> optimizer = freeze_after(optax.sgd(1.0), 1, "bias")
      >>> params = {"kernel": jnp.array(5.0), "bias": jnp.array(5.0)}
      >>> state = optimizer.init(params)
      >>> grads = jax.tree.map(jnp.ones_like, params)
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> float(params["kernel"]), float(params["bias"])
      (2.0, 4.0)
    """

    def scale(step: Array) -> Array:
        return jnp.where(step < num_steps, 1.0, 0.0)

    def mask(params: Any) -> Any:
        chosen = _mask_by_name(params, lambda name: name == variable)
        if not any(jax.tree.leaves(chosen)):
            leaves = jax.tree_util.tree_leaves_with_path(params)
            names = dict.fromkeys(_variable_name(path) for path, _ in leaves)
            raise InputError(
                f"can't freeze {variable!r}: the model has no parameter of this name; choose from "
                f"{', '.join(names)}"
            )
        return chosen

    return optax.chain(optimizer, optax.masked(optax.scale_by_schedule(scale), mask))


class EmaOfParamsState(NamedTuple):
    """State of `ema_of_params`.

    Attributes:
      step: Number of steps taken.
      ema: Moving average of the parameters, without bias correction.
      inner_state: State of the wrapped optimizer.
    """

    step: Int[Array, ""]
    ema: Any
    inner_state: optax.OptState


def ema_of_params(
    optimizer: optax.GradientTransformation, num_steps: int, decay: float
) -> optax.GradientTransformation:
    """Wraps an optimizer so that training ends at a moving average (EMA) of the parameters.

    The last step replaces the parameters by their bias-corrected exponential moving average over
    all steps (Polyak and Juditsky 1992; Kingma and Ba 2015, section 3). Only parameters are
    averaged; BatchNorm statistics stay those of the last step.

    Args:
      optimizer: The optimizer.
      num_steps: Number of training steps.
      decay: Decay rate of the average; it covers about the last 1 / (1 - decay) steps.

    Example:
      >>> optimizer = ema_of_params(optax.sgd(1.0), num_steps=2, decay=0.5)
      >>> params = {"kernel": jnp.array(4.0)}
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update({"kernel": jnp.array(1.0)}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> round(float(params["kernel"]), 4)  # (0.5 * 3 + 2) / 1.5
      2.3333
    """

    def init(params: Any) -> EmaOfParamsState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return EmaOfParamsState(jnp.zeros((), jnp.int32), zeros, optimizer.init(params))

    def update(updates: Any, state: EmaOfParamsState, params: Any) -> tuple[Any, EmaOfParamsState]:
        updates, inner_state = optimizer.update(updates, state.inner_state, params)
        step = state.step + 1
        ema = optax.tree.update_moment(optax.apply_updates(params, updates), state.ema, decay, 1)
        updates = jax.tree.map(
            lambda update, param, mean: jnp.where(step == num_steps, mean - param, update),
            updates,
            params,
            optax.tree.bias_correction(ema, decay, step),
        )
        return updates, EmaOfParamsState(step, ema, inner_state)

    return optax.GradientTransformation(init, update)


class LookaheadState(NamedTuple):
    """State of `lookahead`.

    Attributes:
      step: Number of steps taken.
      slow_params: The averaged parameters.
      fast_state: State of the fast optimizer.
    """

    step: Int[Array, ""]
    slow_params: Any
    fast_state: optax.OptState


def lookahead(
    fast_optimizer: optax.GradientTransformation, num_steps: int, sync_period: int = 5
) -> optax.GradientTransformation:
    """Wraps an optimizer in Lookahead (Zhang et al. 2019), with the decay of Jordan 2024.

    Every `sync_period` steps the slow parameters become d * slow + (1 - d) * fast, and the fast
    parameters are set to them. d grows with the cube of the step up to 0.95^sync_period (section
    3.4). The last step sets the parameters to the slow ones. Only parameters are averaged, not
    BatchNorm statistics.

    Args:
      fast_optimizer: The optimizer of the fast parameters.
      num_steps: Number of training steps.
      sync_period: Number of fast steps between two synchronizations.

    Example:
      >>> optimizer = lookahead(optax.sgd(1.0), num_steps=4, sync_period=2)
      >>> params = {"kernel": jnp.array(4.0)}
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update({"kernel": jnp.array(1.0)}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> round(float(params["kernel"]), 4)  # d = 0.95**2 / 8, d * 4 + (1 - d) * 2
      2.2256
    """

    def init(params: Any) -> LookaheadState:
        return LookaheadState(jnp.zeros((), jnp.int32), params, fast_optimizer.init(params))

    def update(updates: Any, state: LookaheadState, params: Any) -> tuple[Any, LookaheadState]:
        updates, fast_state = fast_optimizer.update(updates, state.fast_state, params)
        step = state.step + 1
        is_last = step == num_steps
        is_sync = is_last | (step % sync_period == 0)
        decay = jnp.where(is_last, 1.0, 0.95**sync_period * (step / num_steps) ** 3)

        def average(slow: Array, param: Array, update: Array) -> Array:
            return jnp.where(is_sync, decay * slow + (1 - decay) * (param + update), slow)

        slow_params = jax.tree.map(average, state.slow_params, params, updates)
        updates = jax.tree.map(
            lambda slow, param, update: jnp.where(is_sync, slow - param, update),
            slow_params,
            params,
            updates,
        )
        return updates, LookaheadState(step, slow_params, fast_state)

    return optax.GradientTransformation(init, update)


def _mask_by_name(params: Any, is_chosen: Callable[[str], bool]) -> Any:
    """Returns a pytree of booleans: whether each parameter's variable name is chosen."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_chosen(_variable_name(path)), params)


def _variable_name(path: tuple[Any, ...]) -> str:
    names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return names[-1] if names else ""


def _weight_mask(params: Any) -> Any:
    return _mask_by_name(
        params, lambda name: not (name.endswith("bias") or name in ("scale", "slope"))
    )


def _bias_mask(params: Any) -> Any:
    return _mask_by_name(params, lambda name: name.endswith("bias"))
