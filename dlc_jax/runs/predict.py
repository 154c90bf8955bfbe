"""Classifying pictures with the network of a run."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from dlc_jax.data.image_files import Picture, read_picture
from dlc_jax.runs.config import RunConfig
from dlc_jax.runs.evaluate import check_finite
from dlc_jax.runs.folder import Run
from dlc_jax.utils.text import unique_class_names

# All batches have the same size, so that only one program is compiled.
_BATCH_SIZE = 64


def predict(
    run: Run,
    model: nnx.Module,
    paths: Sequence[str],
    *,
    invert: bool | None = None,
    as_is: bool = False,
    on_picture: Callable[[Picture], None] = lambda picture: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Classifies pictures, and returns the probabilities of all classes.

    Args:
      run: The run.
      model: The run's network.
      paths: PNG, JPEG, WebP, GIF or BMP files of any size.
      invert: See `dlc_jax.data.image_files.read_image`.
      as_is: Whether to only resize pictures, instead of converting photographs of digits to
        MNIST's format.
      on_picture: Called with each picture, in order.
      progress: Called with the number of pictures done, and their total number.

    Returns:
      For each picture its path, its class and the probability of that class, whether it was
      inverted, and all probabilities in descending order.

    Raises:
      InputError: A picture can't be read, or has no ink, or (`training.DivergedError`) the
        network's outputs are not finite.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from dlc_jax import data, runs
      >>> digits = data.load("mnist-5k").take(50)
      >>> config = runs.configure(digits, seed=0, epochs=1, batch_size=50)
      >>> from PIL import Image
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     run = runs.train(config, digits, Path(folder), "first").run
      ...     picture = f"{folder}/digit.png"
      ...     Image.fromarray(digits.test.images[0, ..., 0]).save(picture)
      ...     [prediction] = runs.predict(run, run.load_model(), [picture])
      >>> prediction["class"] in digits.class_names
      True
    """
    config = run.config
    names = unique_class_names(config.class_names)
    graphdef, variables = nnx.split(model)
    size = min(_BATCH_SIZE, len(paths))
    results = []
    for start in range(0, len(paths), _BATCH_SIZE):
        some = paths[start : start + _BATCH_SIZE]
        pictures = read_images(config, some, invert=invert, as_is=as_is)
        images = np.zeros((size, *config.image_shape), np.uint8)
        images[: len(some)] = [picture.pixels for picture in pictures]
        logits = _logits(graphdef, variables, config.normalize(images))[: len(some)]
        check_finite(run, logits)
        rows = np.asarray(jax.nn.softmax(logits))
        for path, picture, row in zip(some, pictures, rows, strict=True):
            on_picture(picture)
            order = np.argsort(-row, kind="stable")
            probabilities = {names[label]: float(row[label]) for label in order}
            best = names[order[0]]
            results.append(
                {
                    "image": path,
                    "class": best,
                    "probability": probabilities[best],
                    "inverted": picture.inverted,
                    "probabilities": probabilities,
                }
            )
        progress(len(results), len(paths))
    return results


@partial(jax.jit, static_argnums=0)
def _logits(graphdef: Any, variables: Any, images: Any) -> Any:
    model = nnx.merge(graphdef, variables)
    model.eval()
    return model(images)


def read_images(
    config: RunConfig, paths: Sequence[str], *, invert: bool | None = None, as_is: bool = False
) -> list[Picture]:
    """Reads pictures in the format of a run's network.

    Args:
      config: Configuration of the run.
      paths: PNG, JPEG, WebP, GIF or BMP files of any size.
      invert: See `dlc_jax.data.image_files.read_image`.
      as_is: See `predict`.

    Raises:
      InputError: A picture can't be read, or has no ink.
    """
    dark = config.image_shape[2] == 1 and config.mean[0] < 127
    digits = config.dataset in ("mnist", "mnist-5k") and tuple(config.image_shape) == (28, 28, 1)
    return [
        read_picture(
            path,
            config.image_shape,
            digit=digits and not as_is,
            dark_background=dark,
            invert=invert,
        )
        for path in paths
    ]
