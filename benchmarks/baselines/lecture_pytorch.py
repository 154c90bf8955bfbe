"""The lecture's program in PyTorch, as on its slide."""

import argparse
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from baselines.server import Program, serve_program
from dlc_jax.data.dataset import Examples


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5)
        self.conv2 = nn.Conv2d(32, 64, 5)
        self.fc1 = nn.Linear(256, 200)
        self.fc2 = nn.Linear(200, 10)

    def forward(self, x: torch.Tensor) -> Any:
        x = functional.relu(functional.max_pool2d(self.conv1(x), 3))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


class _Lecture:
    def __init__(self, train: Examples, test: Examples, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self._layout = torch.contiguous_format
        if arguments.channels_last:
            self._layout = torch.channels_last
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        pixels = self._pixels(train)
        mean, std = pixels.mean(), pixels.std()
        self._train = (pixels - mean) / std, self._labels(train)
        self._test = (self._pixels(test) - mean) / std, self._labels(test)
        network: Any = _Network()
        network.to(self._device, memory_format=self._layout)
        self._network = torch.compile(network) if arguments.compile else network
        self._optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        self._loss = nn.CrossEntropyLoss()

    def compile(self) -> None:
        images, labels = self._train
        self._loss(self._network(images[:100]), labels[:100]).backward()
        self._wait()

    def epoch(self) -> None:
        images, labels = self._train
        for start in range(0, len(labels) // 100 * 100, 100):
            output = self._network(images.narrow(0, start, 100))
            loss = self._loss(output, labels.narrow(0, start, 100))
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        self._wait()

    def test(self) -> float:
        images, labels = self._test
        with torch.no_grad():
            parts = [self._network(part).argmax(1) for part in images.split(1000)]
        return float((torch.cat(parts) != labels).float().mean())

    def _pixels(self, examples: Examples) -> torch.Tensor:
        # Reshaped, since PyTorch would take permuted axes for channels last.
        pixels = torch.tensor(np.asarray(examples.images)).reshape(-1, 1, 28, 28)
        pixels = pixels.float().to(self._device)
        # Both layouts of one channel have the same memory; only the strides differ.
        return pixels.to(memory_format=self._layout)

    def _labels(self, examples: Examples) -> torch.Tensor:
        return torch.tensor(np.asarray(examples.labels)).long().to(self._device)

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def _build(train: Examples, test: Examples, arguments: argparse.Namespace) -> Program:
    return _Lecture(train, test, arguments)


if __name__ == "__main__":
    serve_program(_build)
