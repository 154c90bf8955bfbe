"""Datasets: in memory, `load("mnist")`, or in batches, `stream("imagenet2012", batch_size=256)`."""

import importlib
from typing import TYPE_CHECKING, Any

from dlc_jax.data.batching import Batch, BatchPlan
from dlc_jax.data.catalog import (
    DATASETS,
    DatasetInfo,
    download_and_prepare,
    find,
    load,
    names,
    open_records,
    status,
)
from dlc_jax.data.dataset import Dataset, Examples
from dlc_jax.data.normalization import Normalize
from dlc_jax.data.records import RecordDataset, Records
from dlc_jax.data.source import ArraySource, Source
from dlc_jax.data.tfds_folder import data_folder
from dlc_jax.errors import DatasetUnavailableError

if TYPE_CHECKING:
    from dlc_jax.data.streaming import StreamingSource, stream

__all__ = [
    "DATASETS",
    "ArraySource",
    "Batch",
    "BatchPlan",
    "Dataset",
    "DatasetInfo",
    "DatasetUnavailableError",
    "Examples",
    "Normalize",
    "RecordDataset",
    "Records",
    "Source",
    "StreamingSource",
    "data_folder",
    "download_and_prepare",
    "find",
    "load",
    "names",
    "open_records",
    "status",
    "stream",
]


def __getattr__(name: str) -> Any:
    # Importing Grain takes long, and most programs don't need it.
    if name in ("StreamingSource", "stream"):
        return getattr(importlib.import_module("dlc_jax.data.streaming"), name)
    raise AttributeError(f"module 'dlc_jax.data' has no attribute {name!r}")
