from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Command, new_state, normal
from flax import nnx
from numpy.lib.stride_tricks import sliding_window_view

from dlc_jax import data, models, runs, sharding, training
from dlc_jax.data import Dataset, Examples, Normalise
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.errors import InputError
from dlc_jax.models import airbench
from dlc_jax.models.summary import summarise
from dlc_jax.nn.losses import cross_entropy
from dlc_jax.runs import recipes

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipes_network_dataset_and_optimizer_exist(name: str) -> None:
    recipe = recipes.find(name)
    assert recipe.dataset in data.names()
    model = models.abstract(
        recipe.model,
        image_shape=SHAPES[recipe.dataset],
        num_classes=10,
        dtype=recipe.jax_dtype,
        **recipe.model_options,
    )
    params = nnx.state(model, nnx.Param)
    jax.eval_shape(recipe.create_optimizer(50_000).init, params)
    assert recipe.augmentation.flip in ("none", "random", "alternating")


@pytest.mark.versions
@pytest.mark.parametrize("name", recipes.names())
def test_an_epoch_and_a_test_of_every_recipe_can_be_traced_over_two_devices(name: str) -> None:
    recipe = recipes.find(name)
    shape = SHAPES[recipe.dataset]
    count = 3 * recipe.batch_size
    optimizer = recipe.create_optimizer(count)
    images = jax.ShapeDtypeStruct((count, *shape), jnp.uint8)
    examples: Any = Examples(images, jax.ShapeDtypeStruct((count,), jnp.int32))  # type: ignore[arg-type]
    channels = jax.ShapeDtypeStruct(shape[2:], jnp.float32)
    normalise = jax.eval_shape(Normalise, channels, channels)

    def create(normalise: Normalise, images: Any, key: Any) -> training.TrainState:
        model = models.create(
            recipe.model,
            image_shape=shape,
            num_classes=10,
            rngs=nnx.Rngs(0),
            dtype=recipe.jax_dtype,
            **recipe.model_options,
        )
        return training.create_state(model.prepared(normalise(images), key), optimizer)

    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(create, normalise, images, key)
    mesh = sharding.device_mesh(recipe.batch_size, jax.devices()[:2])
    epoch = partial(
        training.train_epoch,
        batch_size=recipe.batch_size,
        mesh=mesh,
        augmentation=recipe.augmentation,
        label_smoothing=recipe.label_smoothing,
    )
    after, metrics = jax.eval_shape(epoch, state, examples, normalise, key=key)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics.loss.shape == (3,)
    test = partial(
        training.evaluate,
        mesh=mesh,
        mirrored=recipe.mirrored_test,
        translated=recipe.translated_test,
    )
    logits, _ = jax.eval_shape(test, state, examples, normalise)
    assert logits.shape == (count, 10)


def test_the_default_recipe_is_the_lectures_program() -> None:
    recipe = recipes.Recipe()
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
    summary = summarise(models.abstract(recipe.model), SHAPES["cifar10"])
    assert summary.parameters / 1e6 == pytest.approx(1.97, abs=0.01)
    # The paper's listing leaves the last, smaller batch of an epoch out, and ends after 9.9.
    steps = recipe.epochs * -(-50_000 // recipe.batch_size)
    assert steps == pytest.approx(9.9 * 48, rel=0.04)
    # Section 3: 3.6e14 operations. Two an addition with its product; gradients cost as much as
    # the values, once for the images and once for the weights.
    operations = 3 * 2 * summary.multiply_adds * recipe.epochs * 50_000
    assert operations == pytest.approx(3.6e14, rel=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recipes.find("cifar-cpu"), "'cifar-cpu'.*cifar10-cpu"),
        (lambda: recipes.Recipe(schedule="linear").create_optimizer(10), "'linear'.*triangular"),
        (lambda: recipes.Recipe(optimizer="adan").create_optimizer(10), "'adan'.*muon"),
        (lambda: recipes.Recipe(dtype="float8").jax_dtype, "'float8'.*bfloat16"),
    ],
)
def test_what_is_not_there_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_label_smoothing_is_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 10)).astype(np.float32), rng.integers(0, 10, 20)
    ours = jax.jit(cross_entropy, static_argnums=2)(logits, labels, 0.2)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.2)
    expected = loss(torch.tensor(logits), torch.tensor(labels)).item()
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_networks_with_targets_of_their_own_refuse_label_smoothing() -> None:
    def loss(x: jax.Array) -> jax.Array:
        model = models.create("lenet5", rngs=nnx.Rngs(0))
        return model.loss(model.stages(x), jnp.zeros(1, jnp.int32), 0.1)

    with pytest.raises(InputError, match=r"LeNet5.*0\.1.*leave it out"):
        jax.eval_shape(loss, jnp.zeros((1, 28, 28, 1)))


EPOCH: dict[str, Any] = {
    "batch_size": 46,
    "augmentation": Augmentation("alternating", 2, "reflect", 3),
    "label_smoothing": 0.1,
}


def test_a_shuffled_augmented_epoch_is_the_same_on_one_device_and_on_several(
    few_digits: Dataset,
) -> None:
    normalise, key = Normalise.fit(few_digits.train.images), jax.random.key(0)
    arguments = new_state(), few_digits.train, normalise
    one, metrics = training.train_epoch(*arguments, key=key, **EPOCH)
    mesh = sharding.cpu_mesh(46)
    arguments_there, key_there = sharding.replicate((arguments, key), mesh)
    several, theirs = training.train_epoch(*arguments_there, key=key_there, mesh=mesh, **EPOCH)
    np.testing.assert_allclose(theirs.loss, metrics.loss, rtol=1e-5)
    for ours, expected in zip(*map(jax.tree.leaves, (several.params, one.params)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


class Echo(nnx.Module):
    """A network whose statistics keep the labels of the batches that it saw."""

    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.ones(()))
        self.seen = nnx.BatchStat(jnp.zeros((2, 10), jnp.int32))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        marks = x[:, 0, 0, 0].astype(jnp.int32)
        self.seen[...] = self.seen[...].at[self.count[...]].set(marks)
        self.count[...] = self.count[...] + 1
        return x.reshape(len(x), -1)[:, :2] * self.scale[...]


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    marks = np.arange(20, dtype=np.uint8)
    examples = Examples(np.broadcast_to(marks[:, None, None, None], (20, 2, 2, 1)), marks % 2)
    as_they_are = Normalise(np.zeros(1, np.float32), np.ones(1, np.float32))
    state = training.create_state(Echo(), optax.sgd(0.0))
    orders = []
    for _ in range(2):
        state, _ = training.train_epoch(
            state, examples, as_they_are, batch_size=10, key=jax.random.key(0)
        )
        seen = np.asarray(state.stats["seen"][...]).reshape(-1)
        np.testing.assert_array_equal(np.sort(seen), marks)
        orders.append(seen.tolist())
        state.stats["count"][...] = jnp.zeros((), jnp.int32)
    assert orders[0] != orders[1]
    assert orders[0] != marks.tolist()


@pytest.mark.parametrize("batch_size", [25, 40])
def test_a_mirrored_evaluation_is_the_mean_of_both(few_digits: Dataset, batch_size: int) -> None:
    normalise = Normalise.fit(few_digits.train.images)
    mirrored = few_digits.test._replace(images=few_digits.test.images[:, :, ::-1])
    logits = [
        training.evaluate(new_state(), split, normalise)[0] for split in (few_digits.test, mirrored)
    ]
    result, _ = training.evaluate(
        new_state(), few_digits.test, normalise, batch_size=batch_size, mirrored=True
    )
    np.testing.assert_allclose(result, (logits[0] + logits[1]) / 2, rtol=1e-4, atol=1e-6)


def test_images_moved_in_the_test_count_as_much_as_those_that_are_not(
    few_digits: Dataset,
) -> None:
    normalise = Normalise(np.zeros(1, np.float32), np.ones(1, np.float32))

    def logits(images: np.ndarray, **looks: Any) -> jax.Array:
        examples = few_digits.test._replace(images=images)
        return training.evaluate(new_state(), examples, normalise, batch_size=40, **looks)[0]

    images = np.asarray(few_digits.test.images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    moved = (logits(padded[:, :-2, :-2]) + logits(padded[:, 2:, 2:])) / 2
    expected = (logits(images) + moved) / 2
    np.testing.assert_allclose(logits(images, translated=1), expected, rtol=1e-4, atol=1e-4)


def test_a_whitening_layer_makes_uncorrelated_numbers_of_variance_one(digits: Dataset) -> None:
    images = np.asarray(digits.train.images[:500], np.float32)
    # Noise, so that no direction is without variance.
    images = (images - images.mean()) / images.std() + 0.5 * normal(0, images.shape)
    kernel = jax.jit(airbench.whitening_kernel)(images)
    assert kernel.shape == (2, 2, 1, 8)
    patches = sliding_window_view(np.asarray(images)[..., 0], (2, 2), (1, 2)).reshape(-1, 4)
    whitened = patches @ np.asarray(kernel).reshape(4, 8)
    np.testing.assert_allclose(whitened[:, 4:], -whitened[:, :4], atol=1e-5)
    moments = whitened[:, :4].T @ whitened[:, :4] / len(whitened)
    np.testing.assert_allclose(moments, np.eye(4), atol=0.01)


@pytest.mark.parametrize(("inputs", "features"), [(3, 8), (8, 3)])
def test_kernels_that_begin_as_the_identity_copy_their_inputs(inputs: int, features: int) -> None:
    kernel = normal(0, (3, 3, inputs, features))
    x = normal(1, (2, 6, 6, inputs))
    y = jax.lax.conv_general_dilated(
        x,
        airbench.identity_first(kernel),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    same = min(inputs, features)
    np.testing.assert_allclose(y[..., :same], x[..., :same], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised", "undrawn")
def test_the_cpu_recipe_learns_digits_within_an_epoch(digits: Dataset, tmp_path: Any) -> None:
    recipe = recipes.find("cifar10-cpu")
    # Digits are not what they are in a mirror.
    upright: dict[str, Any] = {"flip": "none", "mirrored_test": False}
    digits = digits.first(2000)
    config = runs.configure(digits, recipe, seed=0, epochs=1, batch_size=50, **upright)
    outcome = runs.train(config, digits, tmp_path, "run")
    assert outcome.summary["test_error_percent"] < 10
    again = runs.evaluate([outcome.run], digits)
    assert again["test_error_percent"] == outcome.summary["test_error_percent"]


@pytest.mark.slow
def test_the_fast_recipe_learns_in_bfloat16_as_in_float32_and_keeps_float32() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 230).astype(np.int32)
    # Bright and dark ones, with noise: on images without any, such as digits, bfloat16 makes
    # maps constant, which this network's batch normalisation can't divide by their deviation.
    noise = rng.normal(size=(230, 32, 32, 3))
    images = (100 + 60 * labels[:, None, None, None] + 30 * noise).clip(0, 255).astype(np.uint8)
    examples = Examples(images, labels)
    few = Examples(images[:46], labels[:46])
    dataset = Dataset("noise", "1", examples, few, ("dark", "bright"), "drawn here")
    # The recipe's rate is for batches of 1,024.
    small: dict[str, Any] = {"batch_size": 46, "learning_rate": 1.5 * 46 / 1024, "epochs": 3}
    small |= {"model_options": {"widths": [4, 8, 8]}, "mirrored_test": False, "translated_test": 0}
    recipe = recipes.find("cifar10-fast")
    assert recipe.jax_dtype == jnp.bfloat16
    losses = {}
    for dtype in ("bfloat16", "float32"):
        config = runs.configure(dataset, recipe, seed=0, dtype=dtype, **small)
        *_, last = runs.reports(config, dataset)
        losses[dtype] = float(last.losses.mean())
        assert {leaf.dtype for leaf in jax.tree.leaves(last.state.params)} == {jnp.dtype("float32")}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert losses["bfloat16"] < np.log(2) - 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("optimised", "undrawn")
def test_the_best_recipe_learns_digits_in_a_short_run(digits: Dataset, tmp_path: Any) -> None:
    upright: dict[str, Any] = {"flip": "none", "mirrored_test": False, "dtype": "float32"}
    short: dict[str, Any] = {"epochs": 2, "batch_size": 50, "learning_rate": 0.05}
    short |= {"examples": 1500, "model_options": {"widths": [32, 64, 64]}}
    recipe = recipes.find("mnist-best")
    config = runs.configure(digits, recipe, seed=0, **upright | short)
    outcome = runs.train(config, digits, tmp_path, "run")
    assert outcome.summary["test_error_percent"] < 30


def test_a_part_of_the_training_images_is_the_first_of_them(
    few_digits: Dataset, tmp_path: Any
) -> None:
    config = runs.configure(few_digits, seed=0, epochs=1, batch_size=10, examples=40)
    part = few_digits.first(40)
    assert config.normalise.mean == pytest.approx(np.asarray(part.train.images).mean(), rel=1e-5)
    outcome = runs.train(config, few_digits, tmp_path, "part")
    alone = runs.configure(part, seed=0, epochs=1, batch_size=10)
    whole = runs.train(alone, part, tmp_path, "alone")
    assert outcome.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    with pytest.raises(InputError, match="230 training examples, not 231"):
        few_digits.first(231)


def test_several_seeds_have_a_mean_with_its_standard_error() -> None:
    summaries = [
        {"dataset": "d", "model": "m", "seed": seed, "test_error_percent": e, "train_seconds": 2.0}
        for seed, e in enumerate([1.0, 2.0, 6.0])
    ]
    result = runs.over_seeds(summaries)
    assert result["seeds"] == [0, 1, 2]
    assert result["test_error_percent"] == pytest.approx(
        {"mean": 3.0, "standard_deviation": 7**0.5, "standard_error": (7 / 3) ** 0.5}, rel=1e-4
    )
    assert result["train_seconds"]["standard_deviation"] == 0


def test_images_are_not_silently_left_unchanged_without_shuffling(
    dlc_jax: Command, few_digits: Dataset
) -> None:
    done = dlc_jax("train", "--dataset", "mnist-5k", "--epochs", 1, "--translate", 2)
    assert done.code == 2
    assert "add --shuffle" in done.err
    runs.configure(few_digits, seed=0, translate=2, shuffle=True)
