"""Creates task, state, sources and devices from a configuration and a dataset."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax.sharding import Mesh

from dlc_jax import sharding, training
from dlc_jax.data import Examples
from dlc_jax.data.distributed import dataset_fingerprint
from dlc_jax.data.records import Records
from dlc_jax.data.shuffling import epoch_permutation
from dlc_jax.data.source import ArraySource, Source
from dlc_jax.data.spec import DataSpec, check_compatible
from dlc_jax.errors import InputError
from dlc_jax.runs.config import AnyDataset, RunConfig
from dlc_jax.sharding import processes

# Maximum number of images, and of their pixels, for `Network.init_from_data`.
_MAX_INIT_IMAGES, _MAX_INIT_PIXELS = 5000, 10**8
_TEST_BATCH_SIZE = 500
# Fields that may differ between a checkpoint and a resumed run.
_NOT_COMPARED = {"dlc_jax", "jax", "device", "num_devices", "provenance", "stream", "format"}
# Fields that may differ between the processes of a run.
_PROCESS_FIELDS = {"device", "num_devices", "provenance"}


@dataclass(frozen=True)
class Setup:
    """Everything that is needed to train a run.

    Attributes:
      config: The configuration of the run.
      dataset: The dataset, with the configured number of training examples.
      task: The classification task.
      state: The state before the first step.
      key: The key of shuffling and augmentation; None without shuffling.
      source: The training data.
      test: The test data.
      mesh: The devices that share each batch.
    """

    config: RunConfig
    dataset: AnyDataset
    task: training.Supervised
    state: training.TrainState
    key: Any
    source: Source
    test: Source
    mesh: Mesh | None

    @classmethod
    def from_config(
        cls, config: RunConfig, dataset: AnyDataset, num_devices: int | None = None
    ) -> "Setup":
        """Sets up a run.

        Args:
          config: The configuration of the run.
          dataset: The dataset.
          num_devices: Number of devices; by default that of the configuration, or the largest
            number of CPU cores that divides the batch size. Several processes always use all
            their devices.

        Raises:
          InputError: Configuration and dataset don't match, there are fewer devices, or several
            processes have different arguments.
        """
        _check_agreement(config, dataset, num_devices)
        dataset = dataset.take(config.num_examples)
        check_batch_size(config, dataset)
        mesh = _mesh(config, num_devices)
        config = dataclasses.replace(config, num_devices=1 if mesh is None else mesh.size)
        task = make_task(config, dataset.num_train)
        [state] = new_states([config], dataset, task)
        key = run_key(config)
        source = make_source(dataset.train, config.batch_size, key, mesh)
        return cls(config, dataset, task, state, key, source, make_test_source(dataset, mesh), mesh)

    def describe(self, step: int) -> dict[str, Any]:
        """Returns the metadata of a checkpoint at a step."""
        config, plan = self.config, self.source.plan
        epoch, within = divmod(step, plan.steps_per_epoch)
        order = np.arange(plan.num_examples)
        if self.key is not None:
            order = np.asarray(epoch_permutation(self.key, epoch, plan.num_examples))
        fields = dataclasses.asdict(config)
        return {
            "recipe": {name: fields[name] for name in fields.keys() - _NOT_COMPARED},
            "versions": {name: fields[name] for name in ("dlc_jax", "jax")},
            "epoch": epoch,
            "step_in_epoch": within,
            "key": None if self.key is None else np.asarray(jax.random.key_data(self.key)).tolist(),
            "order": xxhash.xxh3_128_hexdigest(order.astype(np.int64).tobytes()),
        }


def make_task(config: RunConfig, num_train: int) -> training.Supervised:
    """Creates the classification task of a configuration for a number of training examples."""
    return training.classification(
        lambda key: config.create_model(),
        config.create_optimizer(num_train),
        config.normalize,
        augmentation=config.augmentation,
        label_smoothing=config.label_smoothing,
        tta_flip=config.tta_flip,
        tta_translate=config.tta_translate,
    )


def make_source(
    split: Examples | Records, batch_size: int, key: Any = None, mesh: Mesh | None = None
) -> Source:
    """Creates a source of batches from a split of a dataset, in memory or on disk."""
    if isinstance(split, Records):
        # Imported here because importing Grain takes long.
        from dlc_jax.data.streaming import StreamingSource

        return StreamingSource(split, batch_size, key=key, mesh=mesh)
    return ArraySource(split, batch_size, key=key, mesh=mesh)


def make_test_source(dataset: AnyDataset, mesh: Mesh | None = None) -> Source:
    """Creates a source of batches from the test split."""
    return make_source(dataset.test, min(_TEST_BATCH_SIZE, dataset.num_test), mesh=mesh)


def check_batch_size(config: RunConfig, dataset: AnyDataset) -> None:
    """Raises an InputError if the batch size is too large, or there are no test examples."""
    count = dataset.num_train
    if not 1 <= config.batch_size <= count:
        raise InputError(
            f"a batch size of {config.batch_size} is out of range for the {count} training "
            f"examples of {dataset.name}; use 1 to {count}"
        )
    if not dataset.num_test:
        raise InputError(f"{dataset.name} has no test examples; use a dataset with a test split")


def new_states(
    configs: Sequence[RunConfig], dataset: AnyDataset, task: training.Supervised
) -> list[training.TrainState]:
    """Creates a state for each configuration; networks may be initialized from training images."""
    data = DataSpec.from_source(f"the dataset {dataset.name}", dataset)
    for config in configs:
        check_compatible(DataSpec.from_source("the network's configuration", config), data)
    limit = min(_MAX_INIT_IMAGES, _MAX_INIT_PIXELS // math.prod(dataset.image_shape))
    images = jnp.asarray(dataset.head(max(limit, 1)).train.images)
    states = []
    for config in configs:
        model = config.create_model().init_from_data(
            config.normalize(images), jax.random.key(config.seed)
        )
        states.append(training.create_state(model, task.optimizer))
    if not jax.tree.leaves(states[0].params):
        name = configs[0].model
        raise InputError(f"the network {name} has no parameters to train; choose another one")
    return states


def run_key(config: RunConfig) -> Any:
    """Returns the key of shuffling and augmentation; None without shuffling."""
    return jax.random.key(config.seed) if config.shuffle else None


def _check_agreement(config: RunConfig, dataset: AnyDataset, num_devices: int | None) -> None:
    """Raises an InputError in all processes if their arguments differ."""
    if jax.process_count() == 1:
        return
    fields = dataclasses.asdict(config)
    data = {f"dataset's {name}": value for name, value in dataset_fingerprint(dataset).items()}
    processes.check_agreement(
        {
            **{name: fields[name] for name in fields.keys() - _PROCESS_FIELDS},
            **data,
            "devices": num_devices,
            **processes.versions(),
        }
    )


def _mesh(config: RunConfig, num_devices: int | None) -> Mesh | None:
    """Creates a mesh of the requested, configured or default number of devices."""
    if jax.process_count() > 1:
        num_devices = jax.device_count()
    elif num_devices is None and config.num_devices:
        num_devices = min(config.num_devices, jax.device_count())
    if num_devices is None:
        return sharding.cpu_mesh(config.batch_size)
    if num_devices > jax.device_count():
        raise InputError(
            f"there are {jax.device_count()} devices, not {num_devices}; use fewer (JAX counts a "
            f"CPU as {num_devices} with JAX_NUM_CPU_DEVICES={num_devices})"
        )
    return sharding.device_mesh(config.batch_size, jax.devices()[:num_devices])
