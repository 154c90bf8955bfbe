"""The catalog of networks, with the year and source of each."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from dlc_jax.errors import InputError
from dlc_jax.models.airbench import Airbench
from dlc_jax.models.alexnet import AlexNet
from dlc_jax.models.bn_inception import BNInception
from dlc_jax.models.googlenet import GoogLeNet
from dlc_jax.models.lecture import Lecture
from dlc_jax.models.lenet5 import LeNet5
from dlc_jax.models.lenet5_modern import LeNet5Modern
from dlc_jax.models.neocognitron import Neocognitron
from dlc_jax.models.network import Network
from dlc_jax.models.perceptron import Perceptron
from dlc_jax.models.prelu_net import PReLUNet
from dlc_jax.models.resnet import BasicBlock, BottleneckBlock, ResNet
from dlc_jax.models.tc_problem import TC
from dlc_jax.models.threshold_logic_unit import ThresholdLogicUnit
from dlc_jax.models.vgg import VGG


@dataclass(frozen=True)
class ModelInfo:
    """Catalog entry of a network.

    Attributes:
      year: Year of publication.
      source: Authors, and where needed the title or section.
      image_shape: Height, width and channels of the images in the paper.
      num_classes: Number of classes in the paper.
      build: Function that creates the network.
    """

    year: int
    source: str
    image_shape: tuple[int, int, int]
    num_classes: int
    build: Callable[..., Network]

    def options(self) -> dict[str, Any]:
        """Returns the further arguments of the network, with their default values."""
        network: Any = self.build.func if isinstance(self.build, partial) else self.build
        given = self.build.keywords if isinstance(self.build, partial) else {}
        parameters = inspect.signature(network.__init__).parameters
        return {
            name: given.get(name, parameter.default)
            for name, parameter in parameters.items()
            if name not in ("self", *_COMMON_ARGUMENTS)
        }

    def create(self, **arguments: Any) -> Network:
        """Creates the network.

        Raises:
          InputError: There is no such option, or its value is invalid.
        """
        known = self.options()
        for name, value in arguments.items():
            if name in _COMMON_ARGUMENTS:
                continue
            if name not in known:
                choice = f"choose from {', '.join(known)}" if known else "it has none"
                raise InputError(f"this network has no option {name!r}; {choice}")
            # Values from a command line or a file may have the wrong type.
            if isinstance(value, str | int) and type(value) is not type(known[name]):
                raise InputError(
                    f"the option {name} can't be {value!r}; give a value such as {known[name]!r}"
                )
        return self.build(**arguments)


_COMMON_ARGUMENTS = ("image_shape", "num_classes", "rngs", "dtype")
_MNIST, _CIFAR, _IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)

_VGG_DEPTHS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
# Table 1 of He et al. 2015.
_RESNETS: dict[int, tuple[type[BasicBlock | BottleneckBlock], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (BottleneckBlock, (3, 4, 6, 3)),
    101: (BottleneckBlock, (3, 4, 23, 3)),
    152: (BottleneckBlock, (3, 8, 36, 3)),
}
_small_resnet = partial(ResNet, maps=16, stem="small", shortcut="A")


def _imagenet(year: int, source: str, build: Callable[..., Network]) -> ModelInfo:
    return ModelInfo(year, source, _IMAGENET, 1000, build)


CATALOG: dict[str, ModelInfo] = {
    "threshold-logic-unit": ModelInfo(
        1943, "McCulloch and Pitts", (1, 2, 1), 2, ThresholdLogicUnit
    ),
    "perceptron": ModelInfo(1958, "Rosenblatt", _MNIST, 10, Perceptron),
    "neocognitron": ModelInfo(1980, "Fukushima", _MNIST, 10, Neocognitron),
    "tc": ModelInfo(1986, "Rumelhart et al., the T-C problem", (6, 6, 1), 2, TC),
    "lenet5": ModelInfo(1998, "LeCun et al., section II.B", _MNIST, 10, LeNet5),
    "lenet5-modern": ModelInfo(1998, "LeCun et al., with modern layers", _MNIST, 10, LeNet5Modern),
    "alexnet": _imagenet(2012, "Krizhevsky et al.", AlexNet),
    **{
        f"vgg{depth}{suffix}": _imagenet(
            2014,
            "Simonyan and Zisserman",
            partial(VGG, depths=depths, batch_norm=bool(suffix)),
        )
        for depth, depths in _VGG_DEPTHS.items()
        for suffix in ("", "-bn")
    },
    "googlenet": _imagenet(2014, "Szegedy et al.", GoogLeNet),
    "bn-inception": _imagenet(2015, "Ioffe and Szegedy", BNInception),
    "prelu-net": _imagenet(2015, "He et al., Delving deep into rectifiers", PReLUNet),
    **{
        f"resnet{depth}": _imagenet(
            2015, "He et al.", partial(ResNet, block=block, stage_sizes=sizes)
        )
        for depth, (block, sizes) in _RESNETS.items()
    },
    **{
        f"resnet{6 * n + 2}": ModelInfo(
            2015, "He et al., section 4.2", _CIFAR, 10, partial(_small_resnet, stage_sizes=(n,) * 3)
        )
        for n in (3, 5, 7, 9, 18)
    },
    "lecture": ModelInfo(2018, "Fleuret, EE-559, lecture 1a", _MNIST, 10, Lecture),
    "airbench": ModelInfo(2024, "Jordan, arXiv 2404.00498", _CIFAR, 10, Airbench),
}
