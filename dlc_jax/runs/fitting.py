"""What is trained, on what, on which devices: all that processes know before they begin."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax.sharding import Mesh

from dlc_jax import training
from dlc_jax.sharding import processes
from dlc_jax import sharding
from dlc_jax.runs.checkpoint import Progress
from dlc_jax.data import RecordDataset
from dlc_jax.data import shuffling
from dlc_jax.errors import InputError
from dlc_jax.runs.configuration import AnyDataset
from dlc_jax.data.compatibility import Meaning, check_same
from dlc_jax.runs.folder import RunConfig
from dlc_jax.training import EpochReport
from dlc_jax.training.fit import check_batch_size

# So many images at most are shown to a network without their labels.
_UNLABELLED, _UNLABELLED_PIXELS = 5000, 10**8
# What may differ between the checkpoint of a run and those who go on with it.
_NOT_OF_THE_RECIPE = {"dlc_jax", "jax", "device", "devices", "provenance", "stream"}
# What may differ between processes of one training: where each has its data from, and its device.
_OF_EACH_PROCESS = {"device", "devices", "provenance"}


@dataclass(frozen=True)
class Fitting:
    """What all processes know of a training before it begins.

    Attributes:
      config: what to train, and how.
      dataset: what on.
      state: the new network.
      mesh: the devices to spread each batch over.
    """

    config: RunConfig
    dataset: AnyDataset
    state: training.TrainState
    mesh: Mesh | None

    @classmethod
    def of(cls, config: RunConfig, dataset: AnyDataset, devices: int | None = None) -> "Fitting":
        """What `train` is told, made ready; raises as that does.

        Several processes compare what they were told first.
        """
        processes.check_agreement(_told(config, dataset, devices))
        dataset = dataset.first(config.examples)
        check_batch_size(config.batch_size, dataset)
        [state] = new_states([config], dataset)
        mesh = _mesh(config, state, devices, streams=isinstance(dataset, RecordDataset))
        spread = dataclasses.replace(config, devices=1 if mesh is None else mesh.size)
        return cls(spread, dataset, state, mesh)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-self.dataset.sizes[0] // self.config.batch_size)

    def describe(self, step: int) -> dict[str, Any]:
        """What a checkpoint at that step tells of the training."""
        config, count = self.config, self.dataset.sizes[0]
        epoch, within = divmod(step, self.steps)
        key = key_of(config)
        order = np.arange(count) if key is None else np.asarray(shuffling.order(key, epoch, count))
        fields = dataclasses.asdict(config)
        return {
            "recipe": {name: fields[name] for name in fields.keys() - _NOT_OF_THE_RECIPE},
            "versions": {name: fields[name] for name in ("dlc_jax", "jax")},
            "epoch": epoch,
            "step_in_epoch": within,
            "key": None if key is None else np.asarray(jax.random.key_data(key)).tolist(),
            "order": xxhash.xxh3_128_hexdigest(order.astype(np.int64).tobytes()),
        }

    def reports(
        self,
        begun: Progress | None = None,
        after_part: Callable[[training.TrainState, np.ndarray, float], None] | None = None,
    ) -> Iterator[EpochReport]:
        """Trains from the beginning, or from where training had come to."""
        config = self.config
        how = how_to_fit(config) | {
            "mesh": self.mesh,
            "key": key_of(config),
            "part_steps": config.checkpoint_steps,
            "after_part": after_part,
        }
        if begun is None:
            yield from training.fit(self.state, self.dataset, config.normalise, **how)
            return
        # Of the present epoch some steps are known, or all of them.
        known = begun.losses[(begun.step - 1) // self.steps * self.steps :]
        fitted = training.fit(begun.state, self.dataset, config.normalise, losses=known, **how)
        first = next(fitted)
        losses = first.losses if len(first.losses) else known
        seconds = first.train_seconds + begun.seconds[-1]
        yield dataclasses.replace(first, losses=losses, train_seconds=seconds)
        yield from fitted


def _told(config: RunConfig, dataset: AnyDataset, devices: int | None) -> dict[str, Any]:
    """All that processes must agree on before they train."""
    if jax.process_count() == 1:
        return {}
    fields = dataclasses.asdict(config)
    data = {f"dataset's {name}": value for name, value in processes.identity(dataset).items()}
    return {
        **{name: fields[name] for name in fields.keys() - _OF_EACH_PROCESS},
        **data,
        "devices": devices,
        **processes.versions(),
    }


def _mesh(
    config: RunConfig, state: training.TrainState, devices: int | None, *, streams: bool
) -> Mesh | None:
    """As many devices as are asked for, or as there were before, or as suit the machine."""
    if jax.process_count() > 1:
        devices = jax.device_count()
    elif devices is None and config.devices:
        devices = min(config.devices, jax.device_count())
    if devices is None:
        return sharding.cpu_mesh(config.batch_size)
    if devices > jax.device_count():
        raise InputError(
            f"there are {jax.device_count()} devices, not {devices}; ask for fewer (a CPU counts "
            f"as {devices} where JAX_NUM_CPU_DEVICES={devices} is set)"
        )
    even = streams or training.couples_examples(state)
    return sharding.device_mesh(config.batch_size, jax.devices()[:devices], even=even)


def new_states(configs: Sequence[RunConfig], dataset: AnyDataset) -> list[training.TrainState]:
    """The new networks, with what they learn of the first training images without labels."""
    data = Meaning.of(f"the dataset {dataset.name}", dataset)
    for config in configs:
        check_same(Meaning.of("the network's configuration", config), data)
    optimizer = configs[0].create_optimizer(dataset.sizes[0])
    most = max(min(_UNLABELLED, _UNLABELLED_PIXELS // math.prod(dataset.image_shape)), 1)
    unlabelled = jnp.asarray(dataset.sample(most).train.images)
    states = []
    for config in configs:
        images = config.normalise(unlabelled)
        model = config.create_model().prepared(images, jax.random.key(config.seed))
        states.append(training.create_state(model, optimizer))
    if not jax.tree.leaves(states[0].params):
        name = configs[0].model
        raise InputError(f"the network {name} has nothing to train by gradient descent")
    return states


def how_to_fit(config: RunConfig) -> dict[str, Any]:
    """The arguments of `training.fit` and `fit_ensemble` that a recipe has."""
    return {
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "mirrored": config.mirrored_test,
        "translated": config.translated_test,
        "augmentation": config.augmentation,
        "label_smoothing": config.label_smoothing,
    }


def key_of(config: RunConfig) -> Any:
    """Of order and augmentation; None where neither is random."""
    return jax.random.key(config.seed) if config.shuffle else None
