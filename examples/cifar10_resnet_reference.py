"""The first epochs of ResNet-20 on CIFAR-10, compared with plain PyTorch.

python examples/cifar10_resnet_reference.py [EPOCHS]      needs PyTorch; minutes per epoch

Initial weights, batches and augmentation differ as between random seeds, and so do the curves.
The program writes `resnet20.png`.
"""

import itertools
import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: uses all cores of a CPU, and caches compiled programs

import jax
import numpy as np
import torch
from flax import nnx
from matplotlib.figure import Figure
from torch.nn import functional

from dlc_jax import data, models, sharding, training
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.runs import plots
from dlc_jax.training import optimizers

STEPS, BATCH_SIZE = 64_000, 128
Curves = tuple[list[float], list[float]]


def train_with_jax(dataset: data.Dataset, epochs: int) -> Curves:
    """Returns each step's loss, and the test error in percent after each epoch."""
    learning_rate = optimizers.create_schedule("step", 0.1, STEPS)
    task = training.classification(
        lambda key: models.create("resnet20", rngs=nnx.Rngs(key)),
        optimizers.sgd(learning_rate, momentum=0.9, weight_decay=0.001),
        data.Normalize.fit(dataset.train.images),
        augmentation=Augmentation("random", translate=4),
    )
    key, mesh = jax.random.key(0), sharding.cpu_mesh(BATCH_SIZE)
    _, *records = training.train(
        task,
        data.ArraySource(dataset.train, BATCH_SIZE, key=key, mesh=mesh),
        num_epochs=epochs,
        progress=training.Progress(task.init(jax.random.key(0))),
        key=key,
        test=data.ArraySource(dataset.test, 500, mesh=mesh),
    )
    losses = np.concatenate([record.losses for record in records])
    return losses.tolist(), [100 * float(record.test["error"]) for record in records]


class Block(torch.nn.Module):
    """Two 3x3 convolutions, with a shortcut that pads channels with zeros (option A)."""

    def __init__(self, inputs: int, maps: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra_maps = stride, maps - inputs
        self.conv1 = torch.nn.Conv2d(inputs, maps, 3, stride, 1, bias=False)
        self.conv2 = torch.nn.Conv2d(maps, maps, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = torch.nn.BatchNorm2d(maps), torch.nn.BatchNorm2d(maps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's feature maps."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        x = functional.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra_maps)
        )
        return functional.relu(x + y)


def reference_network() -> torch.nn.Module:
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)]
    stem = [torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU()]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 10)]
    network = torch.nn.Sequential(*stem, *blocks, *head)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def train_with_pytorch(dataset: data.Dataset, epochs: int) -> Curves:
    """Returns the same measurements with PyTorch and its optimizer."""
    torch.manual_seed(0)
    normalize = data.Normalize.fit(dataset.train.images)
    images, test_images = (
        torch.tensor(np.asarray(normalize(split.images)).transpose(0, 3, 1, 2).copy())
        for split in (dataset.train, dataset.test)
    )
    labels, test_labels = (
        torch.tensor(np.array(split.labels)).long() for split in (dataset.train, dataset.test)
    )
    network = reference_network()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-4)
    losses, errors = [], []
    for _ in range(epochs):
        network.train()
        for some in torch.randperm(len(images)).split(BATCH_SIZE):
            batch = functional.pad(images[some], (4, 4, 4, 4))
            rows, columns = torch.randint(0, 9, (2, len(some), 1, 1, 1))
            down = (rows + torch.arange(32)[None, None, :, None]).expand(-1, 3, 32, 40)
            right = (columns + torch.arange(32)[None, None, None, :]).expand(-1, 3, 32, 32)
            batch = batch.gather(2, down).gather(3, right)
            flipped = torch.rand(len(some), 1, 1, 1) < 0.5
            loss = functional.cross_entropy(
                network(torch.where(flipped, batch.flip(3), batch)), labels[some]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        network.eval()
        with torch.no_grad():
            logits = torch.cat([network(part) for part in test_images.split(500)])
        errors.append(100 * (logits.argmax(1) != test_labels).float().mean().item())
    return losses, errors


def draw(curves: dict[str, Curves], path: Path) -> None:
    figure = Figure(figsize=(8, 3.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (losses, errors) in curves.items():
        smooth = np.convolve(losses, np.ones(20) / 20, mode="valid")
        left.plot(np.arange(len(smooth)) + 20, smooth, linewidth=1, label=name)
        right.plot(range(1, len(errors) + 1), errors, "o-", label=name)
    left.set(xlabel="step", ylabel="training loss (nats), mean of 20 steps")
    right.set(xlabel="epoch", ylabel="test error (%)", ylim=(0, 100))
    right.set_xticks(range(1, len(errors) + 1))
    right.legend()
    figure.suptitle("ResNet-20 on CIFAR-10, its first epochs")
    plots.save(figure, path)


def main(epochs: int = 2) -> None:
    dataset = data.load("cifar10")
    curves = {
        "dlc_jax": train_with_jax(dataset, epochs),
        "PyTorch": train_with_pytorch(dataset, epochs),
    }
    for name, (losses, errors) in curves.items():
        print(
            f"{name:8} loss of the last 50 steps {np.mean(losses[-50:]):.3f}, test errors", errors
        )
    draw(curves, Path("resnet20.png"))
    last = [float(np.mean(losses[-50:])) for losses, _ in curves.values()]
    assert abs(last[0] - last[1]) < 0.15, f"the losses differ: {last}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
