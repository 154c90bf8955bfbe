"""Our networks with torchvision's weights against torchvision's networks."""

import importlib
import importlib.util
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlc_jax import models
from dlc_jax.models import interop


@pytest.fixture(scope="module")
def torchvision() -> Any:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    torch.set_num_threads(1)  # its threads would spin while JAX computes
    library = None
    # torchvision's compiled operators, of which its networks need none, are not for every build
    # of PyTorch. It is tried in another process: what fails here can't be imported again, and
    # where the operators do load, to define them twice would abort this process.
    trial = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True)
    if trial.returncode:
        # It asks whether these two exist.
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield importlib.import_module("torchvision")
    del library


# These programs run once, so that it pays to compile them quickly instead of well.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def theirs(torchvision: Any, name: str, **options: Any) -> Any:
    """torchvision's network, with random weights and statistics."""
    import torch

    torch.manual_seed(0)
    if name == "googlenet":
        options = {"init_weights": False, "aux_logits": False} | options
    # Its own random weights would take longer than all the rest.
    with torch.device("meta"):
        network = getattr(torchvision.models, name.replace("-", "_"))(weights=None, **options)
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        bound = (6 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        torch.nn.init.uniform_(parameter, -bound, bound)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn_like(module.bias).mul(0.1).detach()
            module.running_var = torch.rand_like(module.bias).mul(1.5).add(0.5).detach()
            assert module.num_batches_tracked is not None
            module.num_batches_tracked.zero_()
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    return network


def relative(result: Any, expected: Any) -> float:
    result, expected = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def ours(network: Any, name: str, **options: Any) -> models.Network:
    """Our network with the weights of torchvision's."""
    model = interop.load_torch(models.create_abstract(name, **options), network.state_dict())
    graphdef, state = nnx.split(model)
    # Only keys and counts of random numbers are still abstract.
    filled = jax.tree.map(
        lambda leaf: (
            jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        ),
        state,
    )
    return nnx.merge(graphdef, filled)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("alexnet", marks=pytest.mark.slow),
        pytest.param("vgg11-bn", marks=pytest.mark.slow),
        pytest.param("vgg19", marks=pytest.mark.slow),
        pytest.param("googlenet", marks=pytest.mark.slow),
        "resnet18",
        pytest.param("resnet34", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("resnet152", marks=pytest.mark.slow),
    ],
)
def test_logits_equal_torchvision(torchvision: Any, name: str, rng: np.random.Generator) -> None:
    import torch

    network = theirs(torchvision, name).eval()
    model = ours(network, name)
    model.eval()
    # Small ones for VGG, whose layers at 224x224 pixels would only compute for longer.
    size = 96 if name.startswith("vgg") else 224
    images = rng.normal(size=(1, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    # Compiled as a whole, which takes far less time than to compile its operations one by one.
    logits = jax.jit(lambda model, images: model(images), compiler_options=QUICKLY)(model, images)
    assert relative(logits, expected) < 1e-4


@pytest.mark.parametrize(
    ("name", "our_options", "their_options"),
    [
        ("resnet18", {}, {}),
        pytest.param(
            "googlenet", {"aux_logits": True}, {"aux_logits": True}, marks=pytest.mark.slow
        ),
    ],
)
def test_training_loss_and_statistics_equal_pytorch(
    torchvision: Any,
    name: str,
    our_options: dict[str, Any],
    their_options: dict[str, Any],
    rng: np.random.Generator,
) -> None:
    import torch

    network = without_dropout(theirs(torchvision, name, **their_options)).train()
    model = ours(network, name, **our_options)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Dropout):
            module.rate = 0.0
    images = rng.normal(size=(4, 96, 96, 3)).astype(np.float32)
    labels = np.array([1, 20, 300, 999], np.int32)

    def train(model: models.Network, images: jax.Array, labels: jax.Array) -> Any:
        model.train()
        loss = model.loss(model.stages(images), labels).mean()
        return loss, nnx.state(model, nnx.BatchStat)

    loss, after = jax.jit(train, compiler_options=QUICKLY)(model, images, labels)

    with torch.no_grad():
        result = network(torch.tensor(images).permute(0, 3, 1, 2))
    target, entropy = torch.tensor(labels).long(), torch.nn.functional.cross_entropy
    if name == "googlenet":
        expected_loss = entropy(result.logits, target)
        expected_loss = expected_loss + 0.3 * (
            entropy(result.aux_logits1, target) + entropy(result.aux_logits2, target)
        )
    else:
        expected_loss = entropy(result, target)

    assert relative(loss, expected_loss.item()) < 1e-5
    expected = nnx.to_flat_state(nnx.state(ours(network, name, **our_options), nnx.BatchStat))
    stats = dict(nnx.to_flat_state(after))
    assert len(expected) >= 40
    for path, variable in expected:
        assert relative(stats[path][...], variable[...]) < 1e-4, path


def without_dropout(network: Any) -> Any:
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return network
