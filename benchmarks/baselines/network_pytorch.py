"""Training steps of a network of PyTorch."""

import argparse
import importlib
import math
import subprocess
import sys
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from baselines.server import serve_network


class _LeNet5(nn.Module):
    """The layers of LeNet-5, with a dense third layer and a linear output."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c3 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.c5, self.f6, self.out = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)
        self.scales = nn.ParameterList(torch.ones(maps, 1, 1) for maps in (6, 16))
        self.biases = nn.ParameterList(torch.zeros(maps, 1, 1) for maps in (6, 16))

    def forward(self, x: torch.Tensor) -> Any:
        for i, conv in enumerate((self.c1, self.c3)):
            x = functional.avg_pool2d(_squash(conv(x)), 2)
            x = _squash(4 * x * self.scales[i] + self.biases[i])
        return self.out(_squash(self.f6(_squash(self.c5(x.flatten(1))))))


def _squash(x: torch.Tensor) -> torch.Tensor:
    return 1.7159 * torch.tanh(2 / 3 * x)


class _Airbench(nn.Module):
    """The network of airbench94."""

    def __init__(self) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.whitening.weight.requires_grad_(False)
        inputs, layers = 24, []
        for maps in (64, 256, 256):
            pool = nn.MaxPool2d(2)
            for conv in (
                (nn.Conv2d(inputs, maps, 3, padding=1, bias=False), pool),
                (nn.Conv2d(maps, maps, 3, padding=1, bias=False),),
            ):
                norm = nn.BatchNorm2d(maps, momentum=0.4, eps=1e-12)
                norm.weight.requires_grad_(False)
                layers += [*conv, norm, nn.GELU()]
            inputs = maps
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, 10, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.layers(functional.gelu(self.whitening(x)))
        return self.fc(x.amax((2, 3))) / 9


def _create(name: str) -> nn.Module:
    if name == "lenet5":
        return _LeNet5()
    if name == "airbench":
        return _Airbench()
    networks = _torchvision().models
    if name == "googlenet":
        network = networks.googlenet(
            weights=None, num_classes=10, aux_logits=False, init_weights=False
        )
    elif name == "resnet18-small":
        network = networks.resnet18(weights=None, num_classes=10)
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network = getattr(networks, name.replace("-", "_"))(weights=None, num_classes=10)
    result: nn.Module = network
    return result


def _torchvision() -> Any:
    """Imports torchvision, also where its compiled operators are of another build."""
    # It is tried in another process: what fails here can't be imported again.
    if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
    return importlib.import_module("torchvision")


# A library's operators exist as long as it does.
_LIBRARIES: list[Any] = []


class _Network:
    steps = 1

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
        network: Any = _create(arguments.network)
        network.to(memory_format=layout)
        self._network = torch.compile(network) if arguments.compile else network
        trained = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)
        channels = 1 if arguments.network == "lenet5" else 3
        shape = arguments.batch_size, channels, arguments.size, arguments.size
        self._images = torch.randint(0, 256, shape, dtype=torch.uint8)
        self._labels = torch.randint(0, 10, shape[:1])
        self._layout = layout

    def compile(self) -> None:
        self.train()

    def train(self) -> None:
        images = (self._images.float() - 127.5) / math.sqrt(5461)
        output = self._network(images.contiguous(memory_format=self._layout))
        loss = functional.cross_entropy(output, self._labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


if __name__ == "__main__":
    serve_network(_Network)
