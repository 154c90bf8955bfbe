"""Losses and label checks."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from dlc_jax import models
from dlc_jax.data import Dataset, Examples
from dlc_jax.errors import InputError
from dlc_jax.nn.losses import cross_entropy


@pytest.mark.parametrize("network", [None, "lenet5", "perceptron"])
def test_loss_of_an_invalid_label_is_nan(network: str | None) -> None:
    def loss(label: Any) -> Any:
        labels = label[None]
        if network is None:
            return cross_entropy(np.arange(10, dtype=np.float32)[None], labels)
        model: Any = models.create(network, rngs=nnx.Rngs(0))
        return model.loss(model.stages(np.ones((1, 28, 28, 1), np.float32)), labels)

    losses = np.asarray(jax.jit(jax.vmap(loss))(np.array([-1, 0, 9, 10])))[:, 0]
    assert np.isnan(losses).tolist() == [True, False, False, True]


def test_cross_entropy_accepts_all_integer_dtypes_and_no_others() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    labels = np.array([3, 99])
    expected = cross_entropy(logits, labels)
    for dtype in (np.int8, np.uint8, np.uint32):
        np.testing.assert_array_equal(cross_entropy(logits, labels.astype(dtype)), expected)
    with pytest.raises(TypeError, match="integer"):
        cross_entropy(logits, labels + 0.5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda labels: labels - 1, "train label -1, but 10 classes; use labels from 0 to 9"),
        (lambda labels: labels + 1, "train label 10, but 10 classes"),
        (lambda labels: labels[:-1], "230 train images and 229 labels"),
    ],
)
def test_dataset_with_invalid_labels_raises(
    few_digits: Dataset, labels: Callable[[Any], Any], message: str
) -> None:
    images, right = few_digits.train
    train = Examples(images, labels(np.asarray(right)))
    with pytest.raises(InputError, match=message):
        Dataset("few", "1", train, few_digits.test, few_digits.class_names, "made here")


def test_cross_entropy_with_label_smoothing_equals_numpy() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 1, 0])
    targets = 0.9 * np.eye(3)[labels] + 0.1 / 3
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(targets * log_softmax).sum(1)
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.1), expected, rtol=1e-5)
