import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Command, OneLayer, normal
from flax import nnx
from numpy.lib.stride_tricks import sliding_window_view

from dlc_jax import data, models, runs, sharding, training
from dlc_jax.data import Dataset, Examples, Normalize
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.data.source import ArraySource
from dlc_jax.errors import InputError
from dlc_jax.models import airbench
from dlc_jax.models.summary import summarize
from dlc_jax.nn.losses import cross_entropy
from dlc_jax.runs import recipes
from dlc_jax.runs.recipe import Recipe
from dlc_jax.runs.setup import Setup

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@pytest.mark.parametrize("name", recipes.names())
def test_the_network_dataset_and_optimizer_of_every_recipe_exist(name: str) -> None:
    recipe = recipes.find(name)
    assert recipe.dataset in data.names()
    model = models.create_abstract(
        recipe.model,
        image_shape=SHAPES[recipe.dataset],
        num_classes=10,
        dtype=recipe.jax_dtype,
        **recipe.model_options,
    )
    params = nnx.state(model, nnx.Param)
    jax.eval_shape(recipe.create_optimizer(50_000).init, params)
    for field in dataclasses.fields(recipe):
        choices = field.metadata.get("choices")
        assert choices is None or getattr(recipe, field.name) in choices


@pytest.mark.versions
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_can_be_traced_on_two_devices(name: str) -> None:
    recipe = recipes.find(name)
    shape = SHAPES[recipe.dataset]
    num_examples = 3 * recipe.batch_size

    def create_model(key: jax.Array) -> nnx.Module:
        model = models.create(
            recipe.model,
            image_shape=shape,
            num_classes=10,
            rngs=nnx.Rngs(key),
            dtype=recipe.jax_dtype,
            **recipe.model_options,
        )
        return model.init_from_data(jnp.zeros((recipe.batch_size, *shape)), key)

    channels = np.zeros(shape[2]), np.ones(shape[2])
    task = training.classification(
        create_model,
        recipe.create_optimizer(num_examples),
        Normalize(*channels),
        augmentation=recipe.augmentation,
        label_smoothing=recipe.label_smoothing,
        tta_flip=recipe.tta_flip,
        tta_translate=recipe.tta_translate,
    )
    examples = Examples(
        np.zeros((num_examples, *shape), np.uint8), np.zeros(num_examples, np.int32)
    )
    mesh = sharding.device_mesh(recipe.batch_size, jax.devices()[:2])
    chunk = ArraySource(examples, recipe.batch_size, mesh=mesh).abstract(3)
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(task.init, key)

    def train_steps(state: Any, chunk: Any, key: Any) -> Any:
        return training.train_steps(task, state, chunk, key, mesh)

    def predict_steps(state: Any, chunk: Any) -> Any:
        return training.predict_steps(task, state, chunk, mesh)

    after, metrics = jax.eval_shape(train_steps, state, chunk, key)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].total.shape == (3,)
    logits = jax.eval_shape(predict_steps, state, chunk)
    assert logits.shape == (3, recipe.batch_size, 10)


def test_the_default_recipe_is_the_lectures_program() -> None:
    recipe = Recipe()
    assert (recipe.model, recipe.epochs, recipe.batch_size) == ("lecture", 10, 100)
    params = {"fc": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}
    optimizer = recipe.create_optimizer(60_000)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.1, rtol=1e-6)


def test_resnet20_takes_its_papers_64_000_steps() -> None:
    recipe = recipes.find("cifar10-resnet20")
    steps = recipe.epochs * -(-50_000 // recipe.batch_size)
    assert steps == pytest.approx(64_000, rel=0.005)


def test_the_fast_recipe_has_its_papers_parameters_steps_and_operations() -> None:
    recipe = recipes.find("cifar10-fast")
    summary = summarize(models.create_abstract(recipe.model), SHAPES["cifar10"])
    assert summary.parameters / 1e6 == pytest.approx(1.97, abs=0.01)
    # The paper's listing drops the last, smaller batch of an epoch, and ends after 9.9 epochs.
    steps = recipe.epochs * -(-50_000 // recipe.batch_size)
    assert steps == pytest.approx(9.9 * 48, rel=0.04)
    # Section 3: 3.6e14 operations. A multiply-add is two, and the gradients with respect to images
    # and weights take as many as the forward pass each.
    operations = 3 * 2 * summary.multiply_adds * recipe.epochs * 50_000
    assert operations == pytest.approx(3.6e14, rel=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recipes.find("cifar-cpu"), "'cifar-cpu'.*cifar10-cpu"),
        (lambda: Recipe(schedule="linear").create_optimizer(10), "'linear'.*triangular"),
        (lambda: Recipe(optimizer="adan").create_optimizer(10), "'adan'.*muon"),
        (lambda: Recipe(dtype="float8").jax_dtype, "'float8'.*bfloat16"),
    ],
)
def test_errors_name_the_unknown_value_and_the_choices(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_label_smoothing_matches_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 10)).astype(np.float32), rng.integers(0, 10, 20)
    ours = jax.jit(cross_entropy, static_argnums=2)(logits, labels, 0.2).mean()
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.2)
    expected = loss(torch.tensor(logits), torch.tensor(labels)).item()
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_networks_with_their_own_loss_refuse_label_smoothing() -> None:
    def loss(x: jax.Array) -> jax.Array:
        model = models.create("lenet5", rngs=nnx.Rngs(0))
        return model.loss(model.stages(x), jnp.zeros(1, jnp.int32), 0.1)

    with pytest.raises(InputError, match=r"LeNet5.*0\.1.*set it to 0"):
        jax.eval_shape(loss, jnp.zeros((1, 28, 28, 1)))


def linear_task(**options: Any) -> training.Supervised:
    """A task of a small network on digits."""
    return training.classification(
        lambda key: OneLayer(nnx.Rngs(key)), optax.sgd(0.01), Normalize((33.0,), (79.0,)), **options
    )


def test_a_shuffled_augmented_epoch_is_the_same_on_one_and_on_several_devices(
    few_digits: Dataset,
) -> None:
    augmentation = Augmentation("alternating", 2, "reflect", 3)
    task = linear_task(augmentation=augmentation, label_smoothing=0.1)
    key = jax.random.key(0)
    results = []
    for mesh in (None, sharding.cpu_mesh(46)):
        [chunk] = ArraySource(few_digits.train, 46, key=key, mesh=mesh).chunks(0, 5)
        state, run_key = sharding.replicate((task.init(key), key), mesh)
        state, metrics = training.train_steps(task, state, chunk, run_key, mesh)
        results.append((state.params, metrics["loss"].mean))
    for ours, expected in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


class Recorder(nnx.Module):
    """A network that records the first pixel of every image in its statistics."""

    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.ones(()))
        self.pixels = nnx.BatchStat(jnp.zeros((2, 10), jnp.int32))
        self.step = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        pixels = x[:, 0, 0, 0].astype(jnp.int32)
        self.pixels[...] = self.pixels[...].at[self.step[...] % 2].set(pixels)
        self.step[...] = self.step[...] + 1
        return x.reshape(len(x), -1)[:, :2] * self.scale[...]


def test_every_epoch_takes_every_example_once_in_its_own_order() -> None:
    index = np.arange(20, dtype=np.uint8)
    examples = Examples(np.broadcast_to(index[:, None, None, None], (20, 2, 2, 1)), index % 2)
    task = training.classification(
        lambda key: Recorder(), optax.sgd(0.0), Normalize((0.0,), (1.0,))
    )
    key = jax.random.key(0)
    state = task.init(key)
    orders = []
    for chunk in ArraySource(examples, 10, key=key).chunks(0, 4):
        state, _ = training.train_steps(task, state, chunk, key)
        order = np.asarray(state.batch_stats["pixels"][...]).reshape(-1)
        np.testing.assert_array_equal(np.sort(order), index)
        orders.append(order.tolist())
    assert orders[0] != orders[1]
    assert orders[0] != index.tolist()


def predict(images: Any, batch_size: int = 25, **tta: Any) -> np.ndarray:
    """Logits of images, with test-time augmentation."""
    task = linear_task(**tta)
    examples = Examples(images, np.zeros(len(images), np.int32))
    source = ArraySource(examples, batch_size)
    return np.asarray(training.predict(task, task.init(jax.random.key(0)), source))


@pytest.mark.parametrize("batch_size", [25, 40])
def test_tta_flip_averages_the_logits_of_both_flips(few_digits: Dataset, batch_size: int) -> None:
    images = few_digits.test.images
    expected = (predict(images) + predict(images[:, :, ::-1])) / 2
    result = predict(images, batch_size, tta_flip=True)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_tta_translate_gives_half_the_weight_to_translated_images(few_digits: Dataset) -> None:
    images = np.asarray(few_digits.test.images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    translated = (predict(padded[:, :-2, :-2]) + predict(padded[:, 2:, 2:])) / 2
    expected = (predict(images) + translated) / 2
    np.testing.assert_allclose(predict(images, tta_translate=1), expected, rtol=1e-4, atol=1e-4)


def test_a_whitening_layer_has_uncorrelated_outputs_of_variance_one(digits: Dataset) -> None:
    images = np.asarray(digits.train.images[:500], np.float32)
    # Noise, so that every direction has variance.
    images = (images - images.mean()) / images.std() + 0.5 * normal(0, images.shape)
    kernel = jax.jit(airbench.whitening_kernel)(images)
    assert kernel.shape == (2, 2, 1, 8)
    patches = sliding_window_view(np.asarray(images)[..., 0], (2, 2), (1, 2)).reshape(-1, 4)
    whitened = patches @ np.asarray(kernel).reshape(4, 8)
    np.testing.assert_allclose(whitened[:, 4:], -whitened[:, :4], atol=1e-5)
    moments = whitened[:, :4].T @ whitened[:, :4] / len(whitened)
    np.testing.assert_allclose(moments, np.eye(4), atol=0.01)


@pytest.mark.parametrize(("inputs", "features"), [(3, 8), (8, 3)])
def test_identity_kernels_copy_their_inputs(inputs: int, features: int) -> None:
    kernel = normal(0, (3, 3, inputs, features))
    x = normal(1, (2, 6, 6, inputs))
    y = jax.lax.conv_general_dilated(
        x,
        airbench.identity_init(kernel),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    copied = min(inputs, features)
    np.testing.assert_allclose(y[..., :copied], x[..., :copied], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised", "undrawn")
def test_the_cpu_recipe_learns_digits_within_an_epoch(digits: Dataset, tmp_path: Path) -> None:
    recipe = recipes.find("cifar10-cpu")
    # Flipped digits are not digits.
    no_flip: dict[str, Any] = {"flip": "none", "tta_flip": False}
    digits = digits.take(1200)
    config = runs.configure(digits, recipe, seed=0, epochs=1, batch_size=25, **no_flip)
    result = runs.train(config, digits, tmp_path, "run")
    assert result.summary["test_error_percent"] < 10
    assert result.run is not None
    again = runs.evaluate([result.run], digits)
    assert again["test_error_percent"] == result.summary["test_error_percent"]


@pytest.mark.slow
def test_the_fast_recipe_learns_in_bfloat16_with_float32_parameters() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 230).astype(np.int32)
    # Bright and dark images with noise. Without noise, feature maps in bfloat16 can be constant,
    # which BatchNorm without epsilon can't normalize.
    noise = rng.normal(size=(230, 32, 32, 3))
    images = (100 + 60 * labels[:, None, None, None] + 30 * noise).clip(0, 255).astype(np.uint8)
    examples = Examples(images, labels)
    few = Examples(images[:46], labels[:46])
    dataset = Dataset("noise", "1", examples, few, ("dark", "bright"), "drawn here")
    # The recipe's learning rate is for batches of 1,024.
    small: dict[str, Any] = {"batch_size": 46, "learning_rate": 1.5 * 46 / 1024, "epochs": 3}
    small |= {"model_options": {"widths": [4, 8, 8]}, "tta_flip": False, "tta_translate": 0}
    recipe = recipes.find("cifar10-fast")
    assert recipe.jax_dtype == jnp.bfloat16
    losses = {}
    for dtype in ("bfloat16", "float32"):
        config = runs.configure(dataset, recipe, seed=0, dtype=dtype, **small)
        setup = Setup.from_config(config, dataset)
        progress = training.Progress(setup.state)
        *_, record = training.train(
            setup.task,
            setup.source,
            num_epochs=config.epochs,
            progress=progress,
            key=setup.key,
            test=setup.test,
        )
        losses[dtype] = float(record.losses.mean())
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(progress.state.params)}
        assert dtypes == {jnp.dtype("float32")}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert losses["bfloat16"] < np.log(2) - 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("optimised", "undrawn")
def test_the_best_recipe_learns_digits_in_a_short_run(digits: Dataset, tmp_path: Path) -> None:
    short: dict[str, Any] = {"epochs": 2, "batch_size": 25, "learning_rate": 0.05}
    short |= {"num_examples": 1000, "model_options": {"widths": [32, 64, 64]}}
    config = runs.configure(digits, recipes.find("mnist-best"), seed=0, **short)
    result = runs.train(config, digits, tmp_path, "run")
    assert result.summary["test_error_percent"] < 30


def test_num_examples_takes_the_first_training_images(few_digits: Dataset, tmp_path: Path) -> None:
    config = runs.configure(few_digits, seed=0, epochs=1, batch_size=10, num_examples=40)
    part = few_digits.take(40)
    assert config.normalize.mean == pytest.approx([np.mean(part.train.images)], rel=1e-5)
    result = runs.train(config, few_digits, tmp_path, "part")
    expected_config = runs.configure(part, seed=0, epochs=1, batch_size=10)
    expected = runs.train(expected_config, part, tmp_path, "expected")
    assert result.summary["parameters_sha256"] == expected.summary["parameters_sha256"]
    with pytest.raises(InputError, match="230 training examples, not 231"):
        few_digits.take(231)


def test_another_model_drops_the_options_of_the_recipes_model() -> None:
    recipe = recipes.find("cifar10-fast").replace(model_options={"widths": [8, 8, 8]})
    assert recipe.freeze_after
    lecture = recipe.replace(model="lecture")
    assert (lecture.model_options, lecture.freeze_after) == ({}, {})
    assert recipe.replace(model="airbench") == recipe


def test_seed_statistics_have_mean_deviation_and_standard_error() -> None:
    summaries = [
        {"dataset": "d", "model": "m", "seed": seed, "test_error_percent": e, "train_seconds": 2.0}
        for seed, e in enumerate([1.0, 2.0, 6.0])
    ]
    result = runs.seed_statistics(summaries)
    assert result["seeds"] == [0, 1, 2]
    assert result["test_error_percent"] == pytest.approx(
        {"mean": 3.0, "standard_deviation": 7**0.5, "standard_error": (7 / 3) ** 0.5}, rel=1e-4
    )
    assert result["train_seconds"]["standard_deviation"] == 0


def test_augmentation_without_shuffling_is_an_error(dlc_jax: Command, few_digits: Dataset) -> None:
    done = dlc_jax("train", "--dataset", "mnist-5k", "--epochs", 1, "--translate", 2)
    assert done.code == 2
    assert "add --shuffle" in done.err
    runs.configure(few_digits, seed=0, translate=2, shuffle=True)
