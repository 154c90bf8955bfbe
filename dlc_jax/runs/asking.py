"""What a trained network says: of a test split, of pictures, and why."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dlc_jax import training
from dlc_jax.data import Dataset, Examples, RecordDataset
from dlc_jax.data.images import Picture, read_picture
from dlc_jax.runs.configuration import AnyDataset
from dlc_jax.runs.results import SAMPLE, error_by_class, percent
from dlc_jax.explain.classifier import View
from dlc_jax.nn.losses import average_probabilities, cross_entropy, misclassified
from dlc_jax.data.compatibility import Meaning, check_same
from dlc_jax.runs.folder import Run, RunConfig
from dlc_jax.utils.text import class_names_told_apart, told_apart

if TYPE_CHECKING:
    from dlc_jax.explain.report.context import Named


def evaluate(runs: Sequence[Run], dataset: AnyDataset) -> dict[str, Any]:
    """Loss and error on a dataset's test split of a run's network, or of several as one.

    Several, which may differ in everything but what they were trained for, are asked for their
    probabilities, which are averaged.

    Args:
      runs: at least one.
      dataset: with the test split.

    Raises:
      InputError: the dataset's images or classes are not those of the network, or not in the
        same order, or the networks' differ; or (`training.Diverged`) its outputs are not finite.
    """
    meanings = [_meaning(run) for run in runs]
    for other in meanings[1:]:
        check_same(meanings[0], other)
    check_same(meanings[0], Meaning.of(f"the dataset {dataset.name}", dataset))
    every, labels = zip(*(_test_logits(run, dataset) for run in runs), strict=True)
    logits = every[0] if len(every) == 1 else average_probabilities(jnp.stack(every))
    folders = [str(run.folder) for run in runs]
    return {
        **({"run": folders[0]} if len(runs) == 1 else {"runs": folders}),
        "dataset": dataset.name,
        "test_images": dataset.sizes[1],
        "test_loss": float(cross_entropy(logits, labels[0])),
        "test_error_percent": percent(misclassified(logits, labels[0]).mean()),
        "error_percent_by_class": error_by_class(logits, labels[0], dataset.class_names),
    }


def _test_logits(run: Run, dataset: AnyDataset) -> tuple[Any, Any]:
    """A run's network's logits of a dataset's test split, and the labels."""
    config = run.config
    state = training.create_state(run.model(), optax.identity())
    looks: dict[str, Any] = {"mirrored": config.mirrored_test, "translated": config.translated_test}
    if isinstance(dataset, RecordDataset):
        logits, labels, _ = training.evaluate_records(
            state, dataset.test, config.normalise, **looks
        )
    else:
        test = jax.device_put(dataset.test)
        logits, _ = training.evaluate(state, test, config.normalise, **looks)
        labels = np.asarray(dataset.test.labels)
    _check_finite(run, logits)
    return logits, labels


def _meaning(run: Run) -> Meaning:
    return Meaning.of(f"the run in {str(run.folder)!r}", run.config)


def _check_finite(run: Run, logits: Any) -> None:
    """Raises `Diverged` where a network's outputs are no numbers."""
    if not np.isfinite(np.asarray(logits)).all():
        raise training.Diverged(
            f"the network in {str(run.folder)!r} gives outputs that are not finite, since its "
            "training diverged; train it again with a smaller learning rate"
        )


# Pictures are asked about so many at a time, which compiles one program and bounds the memory.
_AT_ONCE = 64


def predict(
    run: Run,
    model: nnx.Module,
    paths: Sequence[str],
    *,
    invert: bool | None = None,
    as_is: bool = False,
    seen: Callable[[Picture], None] = lambda picture: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """What a run's network takes pictures for.

    Args:
      run: the run.
      model: its network.
      paths: PNG, JPEG, WebP, GIF or BMP files of any size.
      invert: see `dlc_jax.data.images.read_image`.
      as_is: only scale pictures, rather than bring photographs of digits into MNIST's form.
      seen: called with each picture, in order.
      progress: called with how many pictures are done, of how many.

    Returns:
      For each picture its path, the class, its probability, and all probabilities,
      largest first.

    Raises:
      InputError: a picture can't be read, or has no ink, or (`training.Diverged`) the network's
        outputs are not finite.
    """
    config = run.config
    names = class_names_told_apart(config.class_names)
    state = training.create_state(model, optax.identity())
    size = min(_AT_ONCE, len(paths))
    results = []
    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        pictures = read_images(config, some, invert=invert, as_is=as_is)
        images = np.zeros((size, *config.image_shape), np.uint8)
        images[: len(some)] = [picture.pixels for picture in pictures]
        batch = Examples(config.normalise(images), np.zeros(size, np.int32))
        logits, _ = training.eval_step(state, batch)
        _check_finite(run, logits[: len(some)])
        rows = np.asarray(jax.nn.softmax(logits))[: len(some)]
        for path, picture, row in zip(some, pictures, rows, strict=True):
            seen(picture)
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


def read_images(
    config: RunConfig, paths: Sequence[str], *, invert: bool | None = None, as_is: bool = False
) -> list[Picture]:
    """Pictures as a run's network wants them.

    Args:
      config: of the run.
      paths: PNG, JPEG, WebP, GIF or BMP files of any size.
      invert: see `dlc_jax.data.images.read_image`.
      as_is: only scale them, rather than bring photographs of digits into MNIST's form.

    Raises:
      InputError: a picture can't be read, or has no ink.
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


def explain(
    run: Run,
    dataset: AnyDataset,
    methods: Sequence[str],
    paths: Sequence[str] = (),
    *,
    folder: Path,
    other: Run | None = None,
    invert: bool | None = None,
    as_is: bool = False,
    seed: int = 0,
    progress: Callable[[str, float, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Pictures of what a run's network sees, and how it fails.

    Args:
      run: the run.
      dataset: what it was trained for.
      methods: some of `dlc_jax.explain.report.methods.METHODS`.
      paths: pictures to explain it on; without any, the first test image of each class.
      folder: where to write them.
      other: a run to whose network adversarial images may carry over.
      invert: see `dlc_jax.data.images.read_image`.
      as_is: only scale pictures, rather than bring photographs of digits into MNIST's form.
      seed: of all that is random.
      progress: called with what is made next, and how many methods are done of how many.

    Returns:
      The run, the files, what the network takes the images for, the tables, and for each method
      that does not suit the network, why.

    Raises:
      InputError: a picture can't be read, the network can't be explained, or the dataset or the
        other one has other images or classes.
    """
    from dlc_jax.explain import report as gallery
    from dlc_jax.explain.report.context import Subject, first_of_each_class

    config = run.config
    check_same(_meaning(run), Meaning.of(f"the dataset {dataset.name}", dataset))
    shown = dataset if isinstance(dataset, Dataset) else dataset.sample(SAMPLE)
    if paths:
        pictures = np.stack(
            [picture.pixels for picture in read_images(config, paths, invert=invert, as_is=as_is)]
        )
        pixels = pictures.astype(np.float32) / 255
        names = tuple(told_apart(paths))
    else:
        pixels, names = first_of_each_class(shown)
    subject = Subject.of(
        View.of_run(run),
        shown,
        pixels,
        names,
        jax.random.key(seed),
        _rival(run, other),
    )
    made = gallery.make(
        subject,
        methods,
        folder,
        title=f"What the {config.model} network sees in {config.dataset}",
        facts=f"{config.epochs} epochs of {config.recipe}, seed {config.seed}, in {run.folder}",
        progress=progress,
    )
    best = [dataset.class_names[label] for label in subject.predictions]
    return {
        "run": str(run.folder),
        "files": [str(file) for file in made.files],
        "images": dict(zip(names, best, strict=True)),
        "tables": {
            table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            for table in made.tables
        },
        "refusals": made.refusals,
    }


def _rival(run: Run, other: Run | None) -> "Named | None":
    from dlc_jax.explain.report.context import Named

    if other is None:
        return None
    check_same(_meaning(run), _meaning(other))
    folders = [str(each.folder.absolute()) for each in (run, other)]
    return Named(told_apart(folders)[1], View.of_run(other))
