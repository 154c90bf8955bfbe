"""Training with several seeds."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from dlc_jax.data import RecordDataset
from dlc_jax.errors import InputError
from dlc_jax.runs.callbacks import RunOptions
from dlc_jax.runs.config import AnyDataset, RunConfig
from dlc_jax.runs.train import EpochHook, TrainResult, train, train_vmapped
from dlc_jax.training import OutOfMemoryError

_DEFAULTS = RunOptions()


def train_seeds(
    configs: Sequence[RunConfig],
    dataset: AnyDataset,
    output_dir: Path,
    names: Sequence[str | None],
    *,
    vmap: bool | None = None,
    on_epoch_end: EpochHook | None = None,
    options: RunOptions = _DEFAULTS,
    warn: Callable[[str], None] = lambda message: None,
    num_devices: int | None = None,
) -> list[TrainResult]:
    """Trains a network for each seed, each in its own run folder.

    Args:
      configs: Configurations that differ only in their seeds.
      dataset: The dataset.
      output_dir: Folder in which the run folders are made.
      names: Names of the run folders, as for `train`.
      vmap: Whether to train all networks at once, with `train_vmapped`. By default this is done
        on a GPU or TPU with enough memory, if the dataset is in memory, `num_devices` is None and
        there is one process.
      on_epoch_end: Called with a record of every epoch of every run.
      options: Options of what is written.
      warn: Called with a message when the networks are trained one after another instead.
      num_devices: See `train`.

    Returns:
      The results, in order; after an interruption, up to the run that was interrupted.

    Raises:
      InputError: As for `train`, or the networks can't be trained at once as requested.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from dlc_jax import data, runs
      >>> digits = data.load("mnist-5k").take(50)
      >>> config = runs.configure(digits, seed=0, epochs=1, batch_size=50)
      >>> configs = [config, runs.configure(digits, seed=1, epochs=1, batch_size=50)]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     results = runs.train_seeds(configs, digits, Path(folder), ["zero", "one"])
      >>> runs.seed_statistics([result.summary for result in results])["seeds"]
      [0, 1]
    """
    can_vmap = (
        num_devices is None and jax.process_count() == 1 and not isinstance(dataset, RecordDataset)
    )
    if vmap and not can_vmap:
        raise InputError(
            "--vmap-seeds is for one device and images in memory; leave it out, or --devices, "
            "--distributed and --stream"
        )
    if len(configs) > 1 and (vmap or (vmap is None and can_vmap and _has_accelerator())):
        try:
            return train_vmapped(
                configs, dataset, output_dir, names, on_epoch_end=on_epoch_end, options=options
            )
        except OutOfMemoryError as error:
            if vmap:
                raise
            warn(f"{error}; training the networks one after another")
    results: list[TrainResult] = []
    for config, name in zip(configs, names, strict=True):
        results.append(
            train(
                config,
                dataset,
                output_dir,
                name,
                on_epoch_end=on_epoch_end,
                options=options,
                num_devices=num_devices,
            )
        )
        if results[-1].interrupted:
            break
    return results


def _has_accelerator() -> bool:
    return jax.default_backend() != "cpu"
