"""Loading the dataset of a command, with a progress bar."""

from typing import TYPE_CHECKING

from dlc_jax.cli.output import warn
from dlc_jax.errors import DatasetUnavailableError, InputError

if TYPE_CHECKING:
    from dlc_jax.data import Dataset, RecordDataset
    from dlc_jax.runs.config import RunConfig

DEFAULT_DATASET, FALLBACK_DATASET = "mnist", "mnist-5k"


def load_for_training(
    name: str, data_dir: str | None, *, stream: bool, image_size: int | None, can_fall_back: bool
) -> "Dataset | RecordDataset":
    """Loads a dataset, or opens it on disk.

    Args:
      name: Name of the dataset.
      data_dir: Folder of the TFDS datasets.
      stream: Whether to open it on disk, as is always done if `dlc-jax data` does not list it.
      image_size: Height and width of streamed images.
      can_fall_back: Whether to load the bundled digits if MNIST is not available.
    """
    from dlc_jax import data

    if stream or image_size is not None or name not in data.DATASETS:
        return open_records(name, data_dir, image_size)
    return load_default(data_dir) if can_fall_back else load(name, data_dir)


def load_default(data_dir: str | None) -> "Dataset":
    """Loads MNIST, or the bundled digits with a warning if MNIST is not available."""
    import jax

    if jax.process_count() > 1:
        return load(DEFAULT_DATASET, data_dir)
    try:
        return load(DEFAULT_DATASET, data_dir)
    except InputError as error:
        # A wrong --data-dir or damaged files can be repaired by the user, so training on another
        # dataset must not hide them.
        is_users = data_dir is not None or _is_prepared(DEFAULT_DATASET)
        if is_users and not isinstance(error, DatasetUnavailableError):
            raise
        warn(f"{error}; training on {FALLBACK_DATASET} instead")
        return load(FALLBACK_DATASET, None)


def _is_prepared(name: str) -> bool:
    from dlc_jax import data

    try:
        return data.find(name) is not None
    except InputError:  # no home folder
        return False


def load(name: str, data_dir: str | None) -> "Dataset":
    """Loads a dataset into memory. Each of several processes reads one shard."""
    import jax

    from dlc_jax import data
    from dlc_jax.data.distributed import gather_shards
    from dlc_jax.sharding import processes
    from dlc_jax.utils import progress_bar

    with progress_bar.counting(f"reading {name}") as update:
        if jax.process_count() == 1:
            return data.load(name, data_dir, progress=update)
        if name not in data.DATASETS or not data.DATASETS[name].bundled:
            with processes.primary_first():
                data.download_and_prepare(name, data_dir)
        shard = jax.process_index(), jax.process_count()
        return gather_shards(data.load(name, data_dir, progress=update, shard=shard))


def open_records(name: str, data_dir: str | None, image_size: int | None) -> "RecordDataset":
    """Opens a dataset on disk."""
    from dlc_jax import data
    from dlc_jax.sharding import processes

    with processes.primary_first():
        return data.open_records(name, data_dir, image_size=image_size, progress=True)


def load_dataset_of(config: "RunConfig", data_dir: str | None) -> "Dataset | RecordDataset":
    """Loads the dataset on which a run was trained."""
    if config.stream:
        return open_records(config.dataset, data_dir, config.image_size)
    return load(config.dataset, data_dir)
