"""The configuration of a run: a recipe, a seed, and what is known of the data."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import jax
import numpy as np
from flax import nnx

from dlc_jax import models
from dlc_jax.data import Dataset, Normalize, RecordDataset
from dlc_jax.errors import InputError
from dlc_jax.runs.recipe import Recipe
from dlc_jax.utils import strict_json

AnyDataset: TypeAlias = Dataset | RecordDataset

# Number of pixels of a dataset on disk that are read for mean and standard deviation.
_MAX_PIXELS = 10**8
_LECTURE = Recipe()
FORMAT = 2
# Names of the fields of configurations of format 1 (dlc_jax 0.1), and those of today.
_FORMAT_1_NAMES = {
    "examples": "num_examples",
    "bias_factor": "bias_lr_multiplier",
    "lookahead": "lookahead_period",
    "ema": "ema_decay",
    "mirrored_test": "tta_flip",
    "translated_test": "tta_translate",
    "devices": "num_devices",
}


@dataclass(frozen=True, kw_only=True)
class RunConfig(Recipe):
    """The configuration of a run: the recipe, and what else its network depends on.

    Attributes:
      recipe: name of the recipe from which the fields were taken or changed.
      dlc_jax: version of this package.
      jax: version of JAX.
      device: kind of device it was trained on.
      image_shape: height, width and channels.
      class_names: names of the classes, by label.
      dataset_version: its publisher's version.
      provenance: description of where the dataset came from.
      mean: mean of the training pixels per channel.
      std: standard deviation of the training pixels per channel.
      seed: random seed.
      checkpoint_steps: number of steps between two possible checkpoints in an epoch.
      num_devices: number of devices each batch is split over; 0 if unknown.
      stream: whether images are read during training instead of before it.
      image_size: height and width to which streamed images are resized; None if they are not.
      format: version of the run folder's format; 1 for runs of dlc_jax 0.1.
    """

    recipe: str = "mnist-lecture"
    dlc_jax: str
    jax: str
    device: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    dataset_version: str
    provenance: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    checkpoint_steps: int = 200
    num_devices: int = 0
    stream: bool = False
    image_size: int | None = None
    format: int = FORMAT

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads the content of a `config.json`, also one of format 1.

        Raises:
          InputError: the format is newer than this version.
          KeyError, TypeError or ValueError: the text is damaged.
        """
        values = {"format": 1, **json.loads(text)}
        if values["format"] == 1:
            values = _from_format_1(values)
        elif values["format"] != FORMAT:
            raise InputError(f"has format {values['format']}; read it with a newer dlc_jax")
        fields = {field.name for field in dataclasses.fields(cls)}
        config = cls(**{name: values[name] for name in fields & values.keys()})
        height, width, channels = (int(size) for size in config.image_shape)
        if not all(isinstance(name, str) for name in config.class_names):
            raise ValueError("class_names")
        config.normalize  # noqa: B018
        return dataclasses.replace(config, image_shape=(height, width, channels))

    def to_json(self) -> str:
        """Returns all fields as the content of a `config.json`."""
        return strict_json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def create_model(self) -> models.Network:
        """Creates the network, initialized from the seed."""
        return models.create(
            self.model,
            image_shape=self.image_shape,
            num_classes=len(self.class_names),
            rngs=nnx.Rngs(self.seed),
            dtype=self.jax_dtype,
            **self.model_options,
        )

    @property
    def normalize(self) -> Normalize:
        """The normalization of images."""
        return Normalize(self.mean, self.std)

    def check_unchanged(self, options: Mapping[str, Any]) -> None:
        """Checks that options of a resumed run are those of this configuration.

        Args:
          options: values by the names of fields. Those of `model_options` and `freeze_after` may
            be a part of the field's entries.

        Raises:
          InputError: an option differs.
        """
        changes = []
        for name, value in options.items():
            current = getattr(self, name)
            if isinstance(value, dict):
                current = {key: current[key] for key in value if key in current}
            if value != current:
                changes.append(f"{name} {getattr(self, name)!r}, not {value!r}")
        if changes:
            raise InputError(f"the run has {'; '.join(changes)}; leave that out to resume it")


def _from_format_1(values: dict[str, Any]) -> dict[str, Any]:
    """Renames the fields of a configuration of format 1; new names stay."""
    values = {_FORMAT_1_NAMES.get(name, name): value for name, value in values.items()}
    epochs = values.pop("whitening_bias_epochs", 0)
    return {"freeze_after": {"whitening_bias": epochs} if epochs else {}, **values}


def configure(
    dataset: AnyDataset,
    recipe: Recipe = _LECTURE,
    *,
    seed: int,
    name: str = "mnist-lecture",
    checkpoint_steps: int = 200,
    image_size: int | None = None,
    **overrides: Any,
) -> RunConfig:
    """The configuration of a run of a recipe on a dataset.

    Args:
      dataset: data to train on, instead of the recipe's.
      recipe: recipe; by default the lecture's program.
      seed: random seed.
      name: name of the recipe.
      checkpoint_steps: see `RunConfig`.
      image_size: height and width to which images on disk are resized; None if they are not.
      **overrides: fields of the recipe that differ; see `Recipe.replace`.

    Raises:
      InputError: images are augmented, but not shuffled.

    Example:
      >>> from dlc_jax import data, runs
      >>> config = runs.configure(data.load("mnist-5k"), seed=1, epochs=3)
      >>> config.model, config.epochs, config.learning_rate
      ('lecture', 3, 0.1)
    """
    from dlc_jax import __version__

    recipe = recipe.replace(**overrides)
    if not recipe.augmentation.is_identity and not recipe.shuffle:
        raise InputError(
            "flip, translate and cutout need random order; add --shuffle (shuffle=True), or leave "
            "them out"
        )
    normalize = _fit_normalize(dataset.take(recipe.num_examples))
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    return RunConfig(
        **{**fields, "dataset": dataset.name},
        recipe=name,
        dlc_jax=__version__,
        jax=jax.__version__,
        device=jax.devices()[0].device_kind,
        image_shape=dataset.image_shape,
        class_names=dataset.class_names,
        dataset_version=dataset.version,
        provenance=dataset.provenance,
        mean=normalize.mean,
        std=normalize.std,
        seed=seed,
        checkpoint_steps=checkpoint_steps,
        stream=isinstance(dataset, RecordDataset),
        image_size=image_size,
    )


def _fit_normalize(dataset: AnyDataset) -> Normalize:
    """Mean and standard deviation of the training images, or of the first ones on disk."""
    if isinstance(dataset, Dataset):
        return Normalize.fit(dataset.train.images)
    from dlc_jax.data.streaming import batches

    height, width, _ = dataset.image_shape
    count = min(dataset.num_train, max(_MAX_PIXELS // (height * width), 1))
    indices = np.array_split(np.arange(count), -(-count // 256))
    return Normalize.from_batches(
        np.asarray(batch.images) for batch in batches(dataset.train, indices)
    )
