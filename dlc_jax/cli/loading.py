"""The dataset that a command is about."""

from typing import TYPE_CHECKING

from dlc_jax.cli.output import complain
from dlc_jax.errors import DatasetUnavailable, InputError

if TYPE_CHECKING:
    from dlc_jax.data import Dataset, RecordDataset
    from dlc_jax.runs import AnyDataset
    from dlc_jax.runs.folder import RunConfig

DEFAULT_DATASET, FALLBACK_DATASET = "mnist", "mnist-5k"


def load_or_fall_back(name: str | None, data_dir: str | None) -> "Dataset":
    """A dataset in memory; where none is named, MNIST, or some digits where there is no MNIST."""
    import jax

    if name is not None or jax.process_count() > 1:
        return load(name or DEFAULT_DATASET, data_dir)
    try:
        return load(DEFAULT_DATASET, data_dir)
    except InputError as error:
        # A folder that the user named, or what is prepared but damaged, is theirs to mend.
        theirs = data_dir is not None or _is_prepared(DEFAULT_DATASET)
        if theirs and not isinstance(error, DatasetUnavailable):
            raise
        complain(f"{error}; training on {FALLBACK_DATASET} meanwhile")
        return load(FALLBACK_DATASET, None)


def _is_prepared(name: str) -> bool:
    from dlc_jax import data

    try:
        return data.find(name) is not None
    except InputError:  # there is no home folder in which it could be
        return False


def load(name: str, data_dir: str | None) -> "Dataset":
    """A dataset in memory, of which each of several processes reads a part."""
    import jax

    from dlc_jax import data
    from dlc_jax.cli import progress
    from dlc_jax.sharding import processes

    with progress.counting(f"reading {name}") as bar:
        if jax.process_count() == 1:
            return data.load(name, data_dir, progress=bar)
        if name not in data.CATALOGUE or not data.CATALOGUE[name].bundled:
            with processes.primary_first():
                data.fetch(name, data_dir)
        part = jax.process_index(), jax.process_count()
        return processes.gather(data.load(name, data_dir, progress=bar, part=part))


def streams(name: str | None, stream: bool, image_size: int | None) -> bool:
    """Whether images shall be read while training goes on."""
    from dlc_jax import data

    return stream or image_size is not None or (name is not None and name not in data.CATALOGUE)


def open_records(name: str, data_dir: str | None, image_size: int | None) -> "RecordDataset":
    """A dataset that stays on disk."""
    from dlc_jax import data
    from dlc_jax.cli import progress
    from dlc_jax.sharding import processes

    with progress.counting(f"opening {name}") as bar, processes.primary_first():
        return data.open_records(name, data_dir, image_size=image_size, progress=bar)


def load_again(config: "RunConfig", data_dir: str | None) -> "AnyDataset":
    """What a run was trained on."""
    if config.stream:
        return open_records(config.dataset, data_dir, config.image_size)
    return load(config.dataset, data_dir)
