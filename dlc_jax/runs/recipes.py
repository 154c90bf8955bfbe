"""What to train, on what and how: experiments as data, each by name.

`RECIPES["cifar10-cpu"]` is one; `dlc-jax recipes` lists them, and `dlc-jax train NAME` runs one,
each of whose fields can be told otherwise.
"""

import difflib
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import optax

from dlc_jax import training
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.errors import InputError

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment. The defaults are those of the lecture's program.

    Attributes:
      dataset: as in `dlc_jax.data.names()`.
      examples: how many of its training images, the first ones; 0 for all.
      model: as in `dlc_jax.models.names()`.
      model_options: what else the network is told.
      dtype: what it computes in, "float32" or "bfloat16"; parameters are float32.
      epochs: passes over the training split.
      batch_size: examples an update.
      optimizer: "sgd", "adam", "adamw" or "muon".
      learning_rate: the largest, of the gradient of the mean loss.
      schedule: how it changes; see `dlc_jax.training.optimizers.schedule`.
      momentum: of the optimizer.
      nesterov: whether it is Nesterov's.
      weight_decay: by which part of them, times the learning rate, weights shrink each step.
      bias_factor: how many times larger the learning rate of biases is.
      lookahead: after how many steps the parameters go back to their average; 0 for never. See
        `dlc_jax.training.optimizers.lookahead`.
      ema: the decay of the average of the parameters at which training ends; 0 for none. See
        `dlc_jax.training.optimizers.averaged`.
      whitening_bias_epochs: after how many epochs the bias of a whitening layer stays as it is;
        0 for never.
      label_smoothing: see `dlc_jax.nn.losses.cross_entropy`.
      shuffle: whether each epoch has an order of its own; else the dataset's.
      flip: see `dlc_jax.data.augmentation.Augmentation`, as for the following ones.
      translate: in pixels.
      padding: "zero" or "reflect".
      cutout: in pixels.
      mirrored_test: whether it is tested on images and their mirror images together.
      translated_test: by how many pixels images are moved in the test, beside those that are
        not, as `dlc_jax.training.evaluate` does; 0 for no such images.
    """

    dataset: str = "mnist"
    examples: int = 0
    model: str = "lecture"
    model_options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    epochs: int = 10
    batch_size: int = 100
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "constant"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    bias_factor: float = 1.0
    lookahead: int = 0
    ema: float = 0.0
    whitening_bias_epochs: int = 0
    label_smoothing: float = 0.0
    shuffle: bool = False
    flip: str = "none"
    translate: int = 0
    padding: str = "zero"
    cutout: int = 0
    mirrored_test: bool = False
    translated_test: int = 0

    @property
    def augmentation(self) -> Augmentation:
        """What is done to training images."""
        return Augmentation(self.flip, self.translate, self.padding, self.cutout)  # type: ignore[arg-type]

    @property
    def jax_dtype(self) -> Any:
        """What the network computes in."""
        if self.dtype not in _DTYPES:
            raise InputError(f"can't compute in {self.dtype!r}; choose float32 or bfloat16")
        return _DTYPES[self.dtype]

    def changed(self, **changes: Any) -> "Recipe":
        """The recipe with some fields told otherwise.

        Another optimizer comes with the learning rate, momentum and weight decay that are usual
        for it, unless these are told, too.
        """
        chosen = changes.get("optimizer", self.optimizer)
        usual: dict[str, Any] = {}
        if chosen != self.optimizer:
            usual = training.optimizers.USUAL.get(chosen, {}) | {"bias_factor": 1.0}
        return replace(self, **usual | changes)

    def create_optimizer(self, examples: int) -> optax.GradientTransformation:
        """The optimizer for a training split of so many examples.

        Raises:
          InputError: there is no such optimizer or schedule.
        """
        an_epoch = -(-examples // self.batch_size)
        steps = self.epochs * an_epoch
        optimizer = training.optimizers.create(
            self.optimizer,
            training.optimizers.schedule(self.schedule, self.learning_rate, steps),
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            bias_factor=self.bias_factor,
        )
        if self.whitening_bias_epochs:
            last = self.whitening_bias_epochs * an_epoch
            optimizer = training.optimizers.freeze_after(optimizer, last, "whitening_bias")
        if self.lookahead:
            optimizer = training.optimizers.lookahead(optimizer, steps, self.lookahead)
        if self.ema:
            optimizer = training.optimizers.averaged(optimizer, steps, self.ema)
        return optimizer


@dataclass(frozen=True)
class Entry:
    """A recipe by name.

    Attributes:
      summary: what it is for.
      source: whose it is.
      recipe: the recipe.
    """

    summary: str
    source: str
    recipe: Recipe


LECTURE = Recipe()

# Jordan 2024, section 3, for CIFAR-10 by a network of its kind. The paper's listing divides 11.5
# by 1,024 (1 + 1 / (1 - momentum)) for the sum of a batch's losses; its decay acts on the momentum,
# which multiplies it by 1 / (1 - momentum).
_JORDAN = Recipe(
    dataset="cifar10",
    model="airbench",
    epochs=10,
    batch_size=1024,
    schedule="triangular",
    learning_rate=1.5,
    momentum=0.85,
    nesterov=True,
    weight_decay=0.009,
    bias_factor=64,
    label_smoothing=0.2,
    shuffle=True,
    flip="alternating",
    translate=2,
    padding="reflect",
    mirrored_test=True,
)
# A quarter of the network's size, and batches so much smaller that the rate is, too.
_NARROW: dict[str, Any] = {
    "model_options": {"widths": [32, 128, 128]},
    "batch_size": 250,
    "learning_rate": 0.37,
}

RECIPES: dict[str, Entry] = {
    "mnist-lecture": Entry("the slide's program", "Fleuret, EE-559, lecture 1a", LECTURE),
    "mnist-best": Entry(
        "at most 0.35 % of the test digits wrong, by one network",
        "Jordan 2024 on digits, which are not mirrored, with a quarter of the paper's network",
        replace(
            _JORDAN,
            **_NARROW,
            dataset="mnist",
            epochs=16,
            lookahead=5,
            label_smoothing=0.1,
            flip="none",
            padding="zero",
            mirrored_test=False,
            translated_test=1,
        ),
    ),
    "cifar10-lecture": Entry(
        "the slide's network and plain SGD, on colour images",
        "Fleuret, EE-559, lecture 1a",
        Recipe(dataset="cifar10", epochs=20, learning_rate=0.05, shuffle=True),
    ),
    "cifar10-resnet20": Entry(
        "64,000 steps to the paper's 8.75 % error",
        "He et al. 2015, section 4.2",
        Recipe(
            dataset="cifar10",
            model="resnet20",
            epochs=164,
            batch_size=128,
            schedule="step",
            momentum=0.9,
            weight_decay=0.001,
            shuffle=True,
            flip="random",
            translate=4,
        ),
    ),
    "cifar10-resnet18": Entry(
        "a residual network of ImageNet's kind, without its stem's pooling",
        "He et al. 2015, table 1, with cutout (DeVries and Taylor 2017); the rest is ours",
        Recipe(
            dataset="cifar10",
            model="resnet18",
            model_options={"stem": "small"},
            dtype="bfloat16",
            epochs=60,
            batch_size=128,
            schedule="cosine",
            momentum=0.9,
            nesterov=True,
            weight_decay=0.005,
            shuffle=True,
            flip="random",
            translate=4,
            cutout=8,
        ),
    ),
    "cifar10-fast": Entry(
        "94 % in ten epochs, for a GPU",
        "Jordan 2024, arXiv 2404.00498, section 3",
        replace(_JORDAN, dtype="bfloat16", lookahead=5, whitening_bias_epochs=3, translated_test=1),
    ),
    "cifar10-cpu": Entry(
        "90 % on two cores of a CPU in minutes",
        "Jordan 2024, with a quarter of the paper's network",
        replace(_JORDAN, **_NARROW, epochs=8),
    ),
}


def names() -> list[str]:
    """The names of the recipes."""
    return list(RECIPES)


def find(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
      InputError: there is none of that name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, names(), n=3) or names()
        raise InputError(f"there is no recipe called {name!r}; did you mean {', '.join(near)}?")
    return RECIPES[name].recipe
