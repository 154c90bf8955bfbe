"""A recipe: the dataset, the model and all hyperparameters of a training run."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self, TypeVar, get_args

import jax.numpy as jnp
import optax

from dlc_jax.data.augmentation import Augmentation, Flip, Padding
from dlc_jax.errors import InputError
from dlc_jax.training import optimizers

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

T = TypeVar("T")


def _field(default: T, group: str, help: str, **constraints: Any) -> T:
    """Creates a field of a recipe, with its description for the command line.

    Args:
      default: Default value.
      group: Heading in the command line's help.
      help: Description.
      **constraints: `choices`, `minimum`, `exclusive_minimum` or `exclusive_maximum`.
    """
    metadata = {"group": group, "help": help, **constraints}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A dataset, a model and hyperparameters; the defaults are those of the lecture's program.

    The metadata of each field holds its description, its group in the command line's help, and
    its choices or range.

    Example:
      >>> recipe = Recipe(epochs=5, flip="random", shuffle=True)
      >>> recipe.replace(optimizer="adam").learning_rate
      0.001
    """

    dataset: str = _field("mnist", "data", "Name of the dataset; dlc-jax data lists them.")
    num_examples: int = _field(0, "data", "Train on the first N images only; 0 for all.", minimum=0)
    shuffle: bool = _field(False, "data", "Shuffle the training images before each epoch.")

    model: str = _field("lecture", "model", "Name of the network; dlc-jax models lists them.")
    model_options: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata={
            "group": "model",
            "help": "Option of the network, for example stem=small; may be repeated.",
        },
    )
    dtype: str = _field(
        "float32",
        "model",
        "Data type of the computation; parameters are float32.",
        choices=tuple(_DTYPES),
    )

    epochs: int = _field(10, "optimizer", "Number of epochs.", minimum=1)
    batch_size: int = _field(100, "optimizer", "Batch size.", minimum=1)
    optimizer: str = _field(
        "sgd",
        "optimizer",
        "Optimizer. If it differs from the recipe's, learning rate, momentum and weight decay are "
        "reset to its defaults.",
        choices=tuple(optimizers.OPTIMIZERS),
    )
    learning_rate: float = _field(
        0.1, "optimizer", "Learning rate (peak of the schedule).", exclusive_minimum=0
    )
    schedule: str = _field(
        "constant", "optimizer", "Learning-rate schedule.", choices=tuple(optimizers.SCHEDULES)
    )
    momentum: float = _field(
        0.0, "optimizer", "Momentum (beta_1 of Adam).", minimum=0, exclusive_maximum=1
    )
    nesterov: bool = _field(False, "optimizer", "Use Nesterov momentum.")
    weight_decay: float = _field(0.0, "optimizer", "Decoupled weight decay.", minimum=0)
    bias_lr_multiplier: float = _field(
        1.0, "optimizer", "Factor of the learning rate for biases.", exclusive_minimum=0
    )
    lookahead_period: int = _field(
        0, "optimizer", "Synchronization period of Lookahead in steps; 0 for none.", minimum=0
    )
    ema_decay: float = _field(
        0.0,
        "optimizer",
        "Decay rate of the exponential moving average of the parameters; 0 for none.",
        minimum=0,
        exclusive_maximum=1,
    )
    freeze_after: dict[str, int] = dataclasses.field(
        default_factory=dict,
        metadata={
            "group": "optimizer",
            "help": "Freeze the parameters NAME after a number of epochs, for example "
            "whitening_bias=3; may be repeated.",
        },
    )
    label_smoothing: float = _field(
        0.0, "optimizer", "Label smoothing.", minimum=0, exclusive_maximum=1
    )

    flip: Flip = _field(  # noqa: RUF009
        "none",
        "augmentation",
        "Flip images left-right, at random or in alternating epochs.",
        choices=get_args(Flip),
    )
    translate: int = _field(
        0, "augmentation", "Maximum random translation in pixels; 0 for none.", minimum=0
    )
    padding: Padding = _field(  # noqa: RUF009
        "zero",
        "augmentation",
        "Padding of translated images.",
        choices=get_args(Padding),
    )
    cutout: int = _field(0, "augmentation", "Size of cutout in pixels; 0 for none.", minimum=0)

    tta_flip: bool = _field(
        False, "evaluation", "Test-time augmentation: average over left-right flips."
    )
    tta_translate: int = _field(
        0,
        "evaluation",
        "Test-time augmentation: average over translations by this many pixels; 0 for none.",
        minimum=0,
    )

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images."""
        return Augmentation(self.flip, self.translate, self.padding, self.cutout)

    @property
    def jax_dtype(self) -> Any:
        """The data type of the computation.

        Raises:
          InputError: The data type is unknown.
        """
        if self.dtype not in _DTYPES:
            raise InputError(f"there is no dtype {self.dtype!r}; choose from {', '.join(_DTYPES)}")
        return _DTYPES[self.dtype]

    def replace(self, **overrides: Any) -> Self:
        """Returns a copy with some fields replaced.

        If the optimizer differs, learning rate, momentum and weight decay are reset to its
        defaults, unless they are given. If the model differs, `model_options` and `freeze_after`
        are emptied, unless they are given.

        Args:
          **overrides: New values of fields.
        """
        defaults: dict[str, Any] = {}
        optimizer = overrides.get("optimizer", self.optimizer)
        if optimizer != self.optimizer:
            defaults |= optimizers.DEFAULTS.get(optimizer, {}) | {"bias_lr_multiplier": 1.0}
        if overrides.get("model", self.model) != self.model:
            defaults |= {"model_options": {}, "freeze_after": {}}
        return dataclasses.replace(self, **defaults | overrides)

    def create_optimizer(self, num_examples: int) -> optax.GradientTransformation:
        """Creates the optimizer, with its schedule and wrappers.

        Args:
          num_examples: Number of training examples.

        Raises:
          InputError: The optimizer or the schedule is unknown.
        """
        steps_per_epoch = -(-num_examples // self.batch_size)
        num_steps = self.epochs * steps_per_epoch
        optimizer = optimizers.create(
            self.optimizer,
            optimizers.create_schedule(self.schedule, self.learning_rate, num_steps),
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            bias_lr_multiplier=self.bias_lr_multiplier,
        )
        for variable, epochs in self.freeze_after.items():
            optimizer = optimizers.freeze_after(optimizer, epochs * steps_per_epoch, variable)
        if self.lookahead_period:
            optimizer = optimizers.lookahead(optimizer, num_steps, self.lookahead_period)
        if self.ema_decay:
            optimizer = optimizers.ema_of_params(optimizer, num_steps, self.ema_decay)
        return optimizer
