"""From a recipe and a dataset to the configuration of a run."""

import dataclasses
from typing import Any, TypeAlias

import jax
import numpy as np

from dlc_jax.data import Dataset, Normalize, RecordDataset
from dlc_jax.errors import InputError
from dlc_jax.runs.folder import RunConfig
from dlc_jax.runs.recipe import Recipe

AnyDataset: TypeAlias = Dataset | RecordDataset

# Number of pixels of a dataset on disk that are read for mean and standard deviation.
_MAX_PIXELS = 10**8
_LECTURE = Recipe()


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
