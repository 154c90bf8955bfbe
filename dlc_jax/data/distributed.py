"""Datasets shared by several processes."""

import dataclasses
from typing import Any

import jax
import numpy as np
import xxhash
from jax.experimental import multihost_utils

from dlc_jax.data.dataset import Dataset, Examples
from dlc_jax.data.records import RecordDataset, Records
from dlc_jax.sharding.processes import check_agreement

_NUM_SAMPLES = 8


def dataset_fingerprint(dataset: Dataset | RecordDataset) -> dict[str, Any]:
    """Returns facts and hashes that identify a dataset, which JSON can represent.

    All examples in memory are hashed, but only a few samples of records on disk.

    Example:
      >>> split = Examples(np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 1, 1]))
      >>> dataset = Dataset("tiny", "1.0", split, split, ("cat", "dog"), "made up")
      >>> dataset_fingerprint(dataset)["sizes"]
      [3, 3]
    """
    facts: dict[str, Any] = {
        "name": dataset.name,
        "version": dataset.version,
        "image shape": list(dataset.image_shape),
        "classes": list(dataset.class_names),
        "sizes": [dataset.num_train, dataset.num_test],
    }
    for name, split in (("training", dataset.train), ("test", dataset.test)):
        if isinstance(split, Records):
            count = min(len(split), _NUM_SAMPLES)
            split = split.read(np.unique(np.linspace(0, len(split) - 1, count).astype(np.int64)))
        digest = xxhash.xxh3_64()
        for array in split:
            digest.update(np.ascontiguousarray(array).tobytes())
        facts[f"{name} examples"] = digest.hexdigest()
    return facts


def gather_shards(shard: Dataset) -> Dataset:
    """Gathers a dataset of which each process has loaded one shard.

    Args:
      shard: This process's shard, as from `dlc_jax.data.load(name, shard=(process, processes))`.

    Returns:
      The whole dataset, in every process.

    Raises:
      InputError: The processes have shards of different datasets.
    """
    if jax.process_count() == 1:
        return shard
    check_agreement(
        {
            "dataset": shard.name,
            "dataset's version": shard.version,
            "dataset's image shape": list(shard.image_shape),
            "dataset's classes": list(shard.class_names),
        }
    )
    train, test = (_gather(split) for split in (shard.train, shard.test))
    return dataclasses.replace(shard, train=train, test=test, copy=False)


def _gather(shard: Examples) -> Examples:
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(shard.labels))))

    def gather(array: np.ndarray) -> np.ndarray:
        # All processes must send arrays of the same shape.
        padded = np.zeros((sizes.max(), *array.shape[1:]), array.dtype)
        padded[: len(array)] = array
        shards = np.asarray(multihost_utils.process_allgather(padded))
        return np.concatenate([each[:size] for each, size in zip(shards, sizes, strict=True)])

    return Examples(*(gather(np.asarray(array)) for array in shard))
