"""The networks against the figures of their papers."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal
from flax import nnx

from dlc_jax import models
from dlc_jax.errors import InputError
from dlc_jax.models import resnet, summary


@functools.cache
def summarize(name: str, **options: Any) -> summary.Summary:
    entry = models.find(name)
    return summary.summarize(models.create_abstract(name, **options), entry.image_shape)


@functools.cache
def parameters(name: str, **options: Any) -> int:
    """How many there are, without following the computation."""
    state = nnx.state(models.create_abstract(name, **options), nnx.Param)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


# Networks that differ from others in numbers of layers alone are slow tests where a network's
# computation is followed, which takes long in deep ones.
DEPTHS = [
    *("vgg11", "vgg13", "vgg19", "vgg11-bn", "vgg13-bn", "vgg19-bn"),
    *("resnet34", "resnet101", "resnet152", "resnet32", "resnet44", "resnet56", "resnet110"),
]
EVERY = [
    pytest.param(name, marks=[pytest.mark.slow] if name in DEPTHS else [])
    for name in models.names()
]


def activations(model: models.Network, shape: tuple[int, int, int]) -> dict[str, Any]:
    image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return jax.eval_shape(lambda model, x: model.stages(x), model, image)


@pytest.mark.parametrize("name", ["lecture", "airbench", "neocognitron"])
def test_create_abstract_has_the_shapes_and_dtypes_of_create(name: str) -> None:
    def kinds(model: models.Network) -> dict[Any, Any]:
        state = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
        return {path: (leaf.shape, leaf.dtype) for path, leaf in state}

    assert kinds(models.create_abstract(name)) == kinds(models.create(name, rngs=nnx.Rngs(0)))


# torchvision's counts; those of VGG are also in the paper's table 2, in millions.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("alexnet", 61_100_840),
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("vgg11-bn", 132_868_840),
        ("vgg13-bn", 133_053_736),
        ("vgg16-bn", 138_365_992),
        ("vgg19-bn", 143_678_248),
        ("googlenet", 6_624_904),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_number_of_parameters_equals_torchvision(name: str, count: int) -> None:
    assert parameters(name) == count


def test_number_of_parameters_of_googlenet_with_auxiliary_classifiers() -> None:
    assert parameters("googlenet", aux_logits=True) == 13_004_888


# He et al. 2015, table 6, in millions.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet44", 0.66),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
    ],
)
def test_number_of_parameters_of_cifar_resnets(name: str, millions: float) -> None:
    assert parameters(name) / 1e6 == pytest.approx(millions, abs=0.03)


def test_original_alexnet_has_60_million_parameters() -> None:
    # Section 1 of the paper says 60 million; Caffe's, in two groups as well, has this many.
    assert parameters("alexnet", original=True) == 60_965_224


# Szegedy et al. 2015, table 1, in millions. (Its 54 for module 5a does not follow from the maps
# in its row, nor do some of its counts of parameters.)
@pytest.mark.parametrize(
    ("module", "millions"),
    [
        ("3a", 128),
        ("3b", 304),
        ("4a", 73),
        ("4b", 88),
        ("4c", 100),
        ("4d", 119),
        ("4e", 170),
        ("5b", 71),
    ],
)
def test_original_googlenet_has_multiply_adds_of_table_1(module: str, millions: int) -> None:
    layers = summarize("googlenet", original=True).layers
    of_module = [layer for layer in layers if layer.name.startswith(f"inception{module}.")]
    count = sum(layer.multiply_adds for layer in of_module)
    assert count / 1e6 == pytest.approx(millions, abs=1)


# Ioffe and Szegedy 2015, figure 5: maps that a module returns, and their size after its stride.
@pytest.mark.parametrize(
    ("module", "maps", "size"),
    [
        ("3a", 256, 28),
        ("3b", 320, 28),
        ("3c", 576, 14),
        ("4a", 576, 14),
        ("4b", 576, 14),
        ("4c", 576, 14),
        ("4d", 576, 14),
        ("4e", 1024, 7),
        ("5a", 1024, 7),
        ("5b", 1024, 7),
    ],
)
def test_bn_inception_has_shapes_of_figure_5(module: str, maps: int, size: int) -> None:
    layers = {layer.name: layer for layer in summarize("bn-inception").layers}
    assert layers[f"inception{module}"].shape == (size, size, maps)


# He et al. 2015, table 1 and section 3.3 (VGG-19); the paper's stride is elsewhere in
# bottleneck blocks, which makes theirs 0.2 to 0.3 billion fewer. Szegedy et al. 2015, section
# 5; Simonyan and Zisserman's by later counts.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("resnet18", 1.8),
        ("resnet34", 3.6),
        ("resnet50", 3.8 + 0.3),
        pytest.param("resnet101", 7.6 + 0.2, marks=pytest.mark.slow),
        pytest.param("resnet152", 11.3 + 0.2, marks=pytest.mark.slow),
        ("vgg16", 15.5),
        ("vgg19", 19.6),
        ("googlenet", 1.5),
    ],
)
def test_multiply_adds(name: str, billions: float) -> None:
    assert summarize(name).multiply_adds / 1e9 == pytest.approx(billions, abs=0.1)


# He et al. 2015 ("Delving deep into rectifiers"), table 3.
@pytest.mark.parametrize(
    ("variant", "depth", "billions"), [("A", 19, 19.0), ("B", 22, 23.2), ("C", 22, 53.0)]
)
def test_prelu_nets_have_depth_and_multiply_adds_of_table_3(
    variant: str, depth: int, billions: float
) -> None:
    described = summarize("prelu-net", variant=variant)
    assert described.depth == depth
    assert described.multiply_adds / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("alexnet", 8),
        ("vgg11", 11),
        ("vgg16-bn", 16),
        ("vgg19", 19),
        ("googlenet", 22),
        ("resnet18", 18),
        ("resnet50", 50),
        ("resnet20", 20),
        ("resnet32", 32),
        pytest.param("resnet101", 101, marks=pytest.mark.slow),
        pytest.param("resnet110", 110, marks=pytest.mark.slow),
        ("lecture", 4),
    ],
)
def test_depth_equals_number_in_name(name: str, depth: int) -> None:
    assert summarize(name).depth == depth


@pytest.mark.parametrize("name", EVERY)
def test_last_stage_is_logits(name: str) -> None:
    entry = models.find(name)
    model = models.create_abstract(name)
    model.eval()
    stages = activations(model, entry.image_shape)
    assert list(stages)[-1] == "logits"
    assert stages["logits"].shape == (2, entry.num_classes)
    assert {array.shape[0] for array in stages.values()} == {2}


@pytest.mark.parametrize("name", EVERY)
def test_layers_sum_to_the_summary(
    name: str,
) -> None:
    described = summarize(name)
    assert described.parameters == parameters(name)
    assert sum(layer.parameters for layer in described.layers) == described.parameters
    assert sum(layer.multiply_adds for layer in described.layers) == described.multiply_adds


def test_summary_excludes_multiply_adds_of_auxiliary_classifiers() -> None:
    with_, without = (summarize("googlenet", aux_logits=value) for value in (True, False))
    assert with_.multiply_adds == without.multiply_adds
    # 4x4 windows of 512 and 528 maps to 128 maps, then two layers.
    extra = sum(16 * maps * 128 + 2048 * 1024 + 1024 * 1000 for maps in (512, 528))
    listed = [sum(layer.multiply_adds for layer in each.layers) for each in (with_, without)]
    assert listed[0] - listed[1] == extra


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 28), ("googlenet", 28), ("bn-inception", 32), ("resnet20", 28)]
)
def test_small_stem_keeps_image_size(name: str, size: int) -> None:
    model = models.create_abstract(name, image_shape=(size, size, 3), num_classes=10, stem="small")
    model.eval()
    stages = activations(model, (size, size, 3))
    second = list(stages.values())[1]
    assert second.shape[1:3] == (size, size)
    assert stages["logits"].shape == (2, 10)


def test_small_head_of_vgg() -> None:
    model = models.create_abstract("vgg16", image_shape=(32, 32, 3), num_classes=10, head="small")
    model.eval()
    assert activations(model, (32, 32, 3))["average"].shape == (2, 512)
    assert summary.summarize(model, (32, 32, 3)).layers[-2].parameters == 512 * 10 + 10


# Table 4 compares them: B has three projections more than A, C has one around every block.
def test_parameters_of_shortcuts() -> None:
    counts = {s: parameters("resnet34", shortcut=s) for s in "ABC"}
    widths = [64, 128, 256, 512]
    projections = [a * b + 2 * b for a, b in itertools.pairwise(widths)]
    assert counts["B"] - counts["A"] == sum(projections)
    blocks = [3, 3, 5, 2]
    others = [n * (w * w + 2 * w) for n, w in zip(blocks, widths, strict=True)]
    assert counts["C"] - counts["B"] == sum(others)


def test_shortcut_a_subsamples_and_pads_channels() -> None:
    block = resnet.BasicBlock(16, 32, 2, "A", dtype=jnp.float32, rngs=nnx.Rngs(0))
    block.bn2.scale = nnx.Param(jnp.zeros(32))
    x = normal(0, (2, 8, 8, 16))
    expected = np.zeros((2, 4, 4, 32), np.float32)
    expected[..., :16] = np.maximum(np.asarray(x)[:, ::2, ::2], 0)
    np.testing.assert_array_equal(block(x), expected)


def test_googlenet_loss_includes_auxiliary_classifiers() -> None:
    model = models.create_abstract("googlenet", aux_logits=True)
    one, labels = np.eye(3, dtype=np.float32), np.arange(3)
    logits = {"logits": one, "aux1": 0 * one, "aux2": -one}
    losses = [math.log(math.e + 2) - 1, math.log(3), math.log(1 / math.e + 2) + 1]
    expected = losses[0] + 0.3 * (losses[1] + losses[2])
    assert jax.jit(model.loss)(logits, labels) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"stem": "tiny"}, "no stem 'tiny'"),
        ("resnet18", {"shortcut": "D"}, "no shortcut 'D'.*A, B, C"),
        ("resnet18", {"maps": "many"}, "maps can't be 'many'.*64"),
        ("resnet18", {"colour": 1}, "no option 'colour'.*shortcut"),
        ("resnet18", {"image_shape": (28, 28, 1)}, "32x32, not 28x28.*small"),
        ("googlenet", {"image_shape": (28, 28, 1)}, "32x32, not 28x28.*small"),
        ("alexnet", {"image_shape": (32, 32, 3)}, "63x63, not 32x32"),
        ("vgg16", {"image_shape": (28, 28, 1)}, "32x32, not 28x28"),
        ("vgg16", {"head": "large"}, "no head 'large'"),
        ("prelu-net", {"variant": "D"}, "no PReLU-net 'D'"),
        ("prelu-net", {"image_shape": (32, 32, 3)}, "112x112, not 32x32"),
    ],
)
def test_invalid_options_raise(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        models.create_abstract(name, **options)


@pytest.mark.parametrize("name", ["resnet20", "vgg11-bn", "googlenet"])
def test_bfloat16_computation_keeps_float32_parameters(name: str) -> None:
    small = {"resnet20": {}, "vgg11-bn": {"head": "small"}, "googlenet": {"stem": "small"}}
    options = {"image_shape": (32, 32, 3), "num_classes": 10, **small[name]}
    model = models.create_abstract(name, dtype=jnp.bfloat16, **options)
    model.eval()
    stages = activations(model, (32, 32, 3))
    assert {array.dtype for array in stages.values()} == {jnp.dtype("bfloat16")}
    numbers = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    assert {leaf.dtype for leaf in jax.tree.leaves(numbers)} == {jnp.dtype("float32")}


def test_unknown_name_raises_with_suggestions() -> None:
    with pytest.raises(InputError, match=r"'resnet19'.*resnet1"):
        models.create("resnet19", rngs=nnx.Rngs(0))


def test_init_from_data_returns_most_networks_unchanged() -> None:
    model = models.create("lecture", rngs=nnx.Rngs(0))
    assert model.init_from_data(jnp.zeros((5, 28, 28, 1)), jax.random.key(0)) is model
