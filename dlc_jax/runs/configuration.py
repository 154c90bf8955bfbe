"""From a recipe and a dataset to the configuration of a run."""

import dataclasses
from typing import Any, TypeAlias

import jax
import numpy as np

from dlc_jax.data import Dataset, Normalise, RecordDataset
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.errors import InputError
from dlc_jax.runs.recipes import LECTURE, Recipe
from dlc_jax.runs.folder import RunConfig

# From so many pixels at most of a dataset on disk their mean and deviation are taken.
_PIXELS = 10**8
AnyDataset: TypeAlias = Dataset | RecordDataset


def configure(
    dataset: AnyDataset,
    recipe: Recipe = LECTURE,
    *,
    seed: int,
    name: str = "mnist-lecture",
    checkpoint_steps: int = 200,
    image_size: int | None = None,
    **changes: Any,
) -> RunConfig:
    """The configuration of a run of a recipe on a dataset.

    Args:
      dataset: what to train on, whatever the recipe's is.
      recipe: what to train and how; by default the lecture's program.
      seed: of the initial weights, and of all that is random in training.
      name: the recipe's name.
      checkpoint_steps: see `RunConfig`.
      image_size: to which a dataset on disk brings its images, if it does.
      **changes: fields of the recipe to be told otherwise; see `Recipe.changed`.

    Raises:
      InputError: images are to be changed at random, but not shuffled.
    """
    from dlc_jax import __version__

    changed = recipe.changed(**changes)
    if changed.augmentation != Augmentation() and not changed.shuffle:
        raise InputError(
            "flip, translate and cutout change images at random only where their order is random, "
            "too; add --shuffle (shuffle=True), or leave them out"
        )
    normalise = _normalise(dataset.first(changed.examples))
    fields = dataclasses.asdict(changed)
    return RunConfig(
        **fields | {"dataset": dataset.name},
        recipe=name,
        dlc_jax=__version__,
        jax=jax.__version__,
        device=jax.devices()[0].device_kind,
        image_shape=dataset.image_shape,
        class_names=dataset.class_names,
        dataset_version=dataset.version,
        provenance=dataset.provenance,
        mean=tuple(np.asarray(normalise.mean).tolist()),
        std=tuple(np.asarray(normalise.std).tolist()),
        seed=seed,
        checkpoint_steps=checkpoint_steps,
        stream=isinstance(dataset, RecordDataset),
        image_size=image_size,
    )


def _normalise(dataset: AnyDataset) -> Normalise:
    """The mean and deviation of the training images' pixels, or of the first of many."""
    if isinstance(dataset, Dataset):
        return Normalise.fit(dataset.train.images)
    from dlc_jax.data.streaming import batches

    height, width, _ = dataset.image_shape
    count = min(len(dataset.train), max(_PIXELS // (height * width), 1))
    places = np.array_split(np.arange(count), -(-count // 256))
    return Normalise.over(np.asarray(piece.images) for piece in batches(dataset.train, places))
