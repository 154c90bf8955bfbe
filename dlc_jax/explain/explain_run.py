"""Explanations of a run's network."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from dlc_jax.data import Dataset, RecordDataset
from dlc_jax.data.spec import DataSpec, check_compatible
from dlc_jax.explain.classifier import ImageClassifier
from dlc_jax.utils.text import unique_path_names

if TYPE_CHECKING:
    from dlc_jax.explain.report.context import NamedClassifier
    from dlc_jax.runs.folder import Run

# Number of examples that are read of each split of a dataset that does not fit in memory.
_MAX_EXAMPLES = 1000


def explain_run(
    run: "Run",
    dataset: Dataset | RecordDataset,
    methods: Sequence[str],
    paths: Sequence[str] = (),
    *,
    output_dir: Path,
    transfer_run: "Run | None" = None,
    invert: bool | None = None,
    as_is: bool = False,
    seed: int = 0,
    progress: Callable[[str, float, int], None] = lambda method, done, total: None,
) -> dict[str, Any]:
    """Explains a run's network with pictures and tables.

    Args:
      run: The run.
      dataset: Dataset that it was trained on.
      methods: Names from `dlc_jax.explain.report.methods.METHODS`.
      paths: Image files to explain it on; by default the first test image of each class.
      output_dir: Folder to write to.
      transfer_run: Run to whose network adversarial examples are transferred.
      invert: See `dlc_jax.data.image_files.read_image`.
      as_is: Whether to only scale image files, instead of converting photographs of digits to
        MNIST's format.
      seed: Random seed.
      progress: Called with the name of the current method, and the numbers of methods that are
        done and of all methods.

    Returns:
      A dictionary of "run", "files", "images" (their predicted classes), "tables", and "skipped"
      (the methods that can't be applied to the network, each with the reason).

    Raises:
      InputError: An image file can't be read, the network can't be explained, or the dataset or
        the other run has other images or classes.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from dlc_jax import data, runs
      >>> digits = data.load("mnist-5k").take(50)
      >>> config = runs.configure(digits, seed=0, epochs=1, batch_size=50)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     run = runs.train(config, digits, Path(folder), "first").run
      ...     explained = explain_run(run, digits, ["filters"], output_dir=Path(folder))
      ...     [Path(file).name for file in explained["files"]]
      ['filters.png', 'feature-maps.png']
    """
    # Imported late, since Matplotlib takes long to import.
    from dlc_jax.explain.report import write_report
    from dlc_jax.explain.report.context import ExplainContext, first_image_of_each_class
    from dlc_jax.runs.predict import read_images

    config = run.config
    check_compatible(_run_spec(run), DataSpec.from_source(f"the dataset {dataset.name}", dataset))
    in_memory = dataset if isinstance(dataset, Dataset) else dataset.head(_MAX_EXAMPLES)
    if paths:
        pictures = read_images(config, paths, invert=invert, as_is=as_is)
        pixels = np.stack([picture.pixels for picture in pictures]).astype(np.float32) / 255
        names = tuple(unique_path_names(paths))
    else:
        pixels, names = first_image_of_each_class(in_memory)
    context = ExplainContext.create(
        ImageClassifier.from_run(run),
        in_memory,
        pixels,
        names,
        jax.random.key(seed),
        _transfer_classifier(run, transfer_run),
    )
    result = write_report(
        context,
        methods,
        output_dir,
        title=f"Explanations of the {config.model} network on {config.dataset}",
        subtitle=f"{config.epochs} epochs of {config.recipe}, seed {config.seed}, in {run.folder}",
        progress=progress,
    )
    predictions = [dataset.class_names[label] for label in context.predictions]
    return {
        "run": str(run.folder),
        "files": [str(file) for file in result.files],
        "images": dict(zip(names, predictions, strict=True)),
        "tables": {
            table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            for table in result.tables
        },
        "skipped": result.skipped,
    }


def _run_spec(run: "Run") -> DataSpec:
    return DataSpec.from_source(f"the run in {str(run.folder)!r}", run.config)


def _transfer_classifier(run: "Run", transfer_run: "Run | None") -> "NamedClassifier | None":
    from dlc_jax.explain.report.context import NamedClassifier

    if transfer_run is None:
        return None
    check_compatible(_run_spec(run), _run_spec(transfer_run))
    _, name = unique_path_names([str(each.folder.absolute()) for each in (run, transfer_run)])
    return NamedClassifier(name, ImageClassifier.from_run(transfer_run))
