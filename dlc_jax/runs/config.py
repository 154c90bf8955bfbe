"""The configuration of a run: a recipe, a seed, and properties of the dataset."""

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

# Maximum number of pixels of a dataset on disk that are read for mean and standard deviation.
_MAX_PIXELS = 10**8
_LECTURE = Recipe()
FORMAT = 2
# Names of fields in format 1 (dlc_jax 0.1), and their current names.
_FORMAT_1_NAMES = {
    "examples": "num_examples",
    "bias_factor": "bias_lr_multiplier",
    "lookahead": "lookahead_period",
    "ema": "ema_decay",
    "mirrored_test": "tta_flip",
    "translated_test": "tta_translate",
    "devices": "num_devices",
}
# Of networks' options, which are in `model_options`.
_FORMAT_1_MODEL_OPTIONS = {
    "auxiliary": "aux_logits",
    "rubbish": "rubbish_penalty",
    "kinds": "features",
}


@dataclass(frozen=True, kw_only=True)
class RunConfig(Recipe):
    """The configuration of a run: recipe, seed, properties of the dataset, and versions.

    Attributes:
      recipe: Name of the recipe from which the fields were taken or changed.
      dlc_jax: Version of this package.
      jax: Version of JAX.
      device: Kind of device on which the run is trained.
      image_shape: Height, width and channels.
      class_names: Names of the classes, by label.
      dataset_version: Version of the dataset.
      provenance: Description of where the dataset comes from.
      mean: Mean of the training pixels per channel.
      std: Standard deviation of the training pixels per channel.
      seed: Random seed.
      checkpoint_steps: Number of steps after which to check whether a checkpoint is due.
      num_devices: Number of devices over which each batch is split; 0 if unknown.
      stream: Whether images are read during training instead of before it.
      image_size: Height and width to which streamed images are resized; None if they are not.
      format: Version of the run folder's format; 1 for runs of dlc_jax 0.1.
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
        """Parses the content of a `config.json`, which may have format 1.

        Raises:
          InputError: The format is not known to this version.
          KeyError, TypeError or ValueError: The text is damaged.
        """
        values = {"format": 1, **json.loads(text)}
        if values["format"] == 1:
            values = _from_format_1(values)
        elif values["format"] != FORMAT:
            raise InputError(
                f"the configuration has the unknown format {values['format']}; use a newer dlc_jax"
            )
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
        """Checks that the options of a resumed run equal those of this configuration.

        Args:
          options: Values by the names of fields. Those of `model_options` and `freeze_after` may
            be a part of the field's entries.

        Raises:
          InputError: An option differs.
        """
        changes = []
        for name, value in options.items():
            current = getattr(self, name)
            if isinstance(value, dict):
                current = {key: current[key] for key in value if key in current}
            if value != current:
                changes.append(f"{name} {getattr(self, name)!r}, not {value!r}")
        if changes:
            raise InputError(
                f"the run has {'; '.join(changes)}; leave out what differs to resume it"
            )


def _from_format_1(values: dict[str, Any]) -> dict[str, Any]:
    """Renames the fields of a configuration of format 1; current names stay."""
    values = {_FORMAT_1_NAMES.get(name, name): value for name, value in values.items()}
    options = values.get("model_options", {})
    values["model_options"] = {
        _FORMAT_1_MODEL_OPTIONS.get(name, name): value for name, value in options.items()
    }
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
    """Creates the configuration of a run, which trains a recipe on a dataset.

    Args:
      dataset: The dataset to train on, instead of the recipe's.
      recipe: The recipe; by default the lecture's program.
      seed: Random seed.
      name: Name of the recipe.
      checkpoint_steps: See `RunConfig`.
      image_size: Height and width to which images on disk are resized; None if they are not.
      **overrides: Fields of the recipe that differ; see `Recipe.replace`.

    Raises:
      InputError: Images are augmented, but not shuffled.

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
            "flip, translate and cutout need a random order of the images; add --shuffle "
            "(shuffle=True), or leave them out"
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
    """Fits the normalization to the training images, or to the first ones on disk."""
    if isinstance(dataset, Dataset):
        return Normalize.fit(dataset.train.images)
    from dlc_jax.data.streaming import batches

    height, width, _ = dataset.image_shape
    count = min(dataset.num_train, max(_MAX_PIXELS // (height * width), 1))
    indices = np.array_split(np.arange(count), -(-count // 256))
    return Normalize.from_batches(
        np.asarray(batch.images) for batch in batches(dataset.train, indices)
    )
