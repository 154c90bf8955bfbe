"""The networks whose training steps are timed and whose communication is estimated."""

from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from dlc_jax import models
from dlc_jax.models.network import Network
from dlc_jax.models.summary import summarize

# The gradients are float32, as the parameters are.
_BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class Workload:
    """A network and the batches with which it is trained.

    Attributes:
      name: Name of the network for `dlc_jax.models.create`.
      title: Name in tables.
      image_shape: Height, width and channels.
      classes: Number of classes.
      batch_size: Batch size for the estimates.
      source: Source of that batch size.
      step_images: Images in a step that is timed, since a whole batch would take minutes.
      steps: Steps that are timed together, since a single step may be too short.
      options: Further options of the network.
    """

    name: str
    title: str
    image_shape: tuple[int, int, int]
    classes: int
    batch_size: int
    source: str
    step_images: int
    steps: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def create(self, rngs: nnx.Rngs) -> Network:
        """Creates the network with random weights."""
        return models.create(self.name, rngs=rngs, **self._arguments)

    @property
    def _arguments(self) -> dict[str, Any]:
        return {"image_shape": self.image_shape, "num_classes": self.classes, **self.options}

    def describe(self) -> dict[str, int]:
        """Returns the numbers of parameters, their bytes, and multiply-adds per image."""
        summary = summarize(models.create_abstract(self.name, **self._arguments), self.image_shape)
        return {
            "parameters": summary.parameters,
            "bytes": _BYTES_PER_PARAMETER * summary.parameters,
            "multiply_adds": summary.multiply_adds,
        }


NETWORKS = {
    "lecture": Workload(
        "lecture", "lecture network, 28x28", (28, 28, 1), 10, 100, "the lecture's", 100, 50
    ),
    "resnet18": Workload(
        "resnet18", "ResNet-18, 32x32", (32, 32, 3), 10, 128,
        "He et al. 2015, section 4.2, for CIFAR-10", 128, options={"stem": "small"},
    ),
    "resnet50": Workload(
        "resnet50", "ResNet-50, 224x224", (224, 224, 3), 1000, 256,
        "He et al. 2015, section 3.4", 16,
    ),
}  # fmt: skip
