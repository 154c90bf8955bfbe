"""Networks and datasets with different images or classes are not combined."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc_jax import runs
from dlc_jax.data import Dataset
from dlc_jax.errors import InputError
from dlc_jax.explain import explain_run
from dlc_jax.runs.folder import Run

CLOTHES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "shoe", "bag", "boot")


def with_classes(run: Run, names: tuple[str, ...]) -> Run:
    return Run(run.folder, dataclasses.replace(run.config, class_names=names))


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (CLOTHES, "'top' as class 0"),
        (tuple("0123456798"), "'9' as class 8"),
        (tuple("012345678"), "9 classes"),
        (tuple("0123456789a"), "11 classes"),
    ],
)
def test_different_classes_or_another_order_are_an_error(
    run: Run, few_digits: Dataset, tmp_path: Path, names: tuple[str, ...], difference: str
) -> None:
    other = with_classes(run, names)
    train, test = (
        split._replace(labels=np.minimum(split.labels, len(names) - 1))
        for split in (few_digits.train, few_digits.test)
    )
    data = dataclasses.replace(few_digits, train=train, test=test, class_names=names)
    calls: list[Callable[[], Any]] = [
        lambda: runs.evaluate([run, other], few_digits),
        lambda: runs.evaluate([run], data),
        lambda: explain_run(run, data, ["filters"], output_dir=tmp_path),
        lambda: explain_run(
            run, few_digits, ["adversarial"], output_dir=tmp_path, transfer_run=other
        ),
        lambda: runs.train(run.config, data, tmp_path),
        lambda: runs.resume(run, data),
        lambda: runs.train_vmapped([run.config, other.config], few_digits, tmp_path, [None, None]),
    ]
    for call in calls:
        with pytest.raises(InputError) as error:
            call()
        assert difference in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_another_image_shape_is_an_error(run: Run, few_digits: Dataset) -> None:
    other = Run(run.folder, dataclasses.replace(run.config, image_shape=(32, 32, 3)))
    with pytest.raises(InputError, match=r"images of 32x32x3, while .* has images of 28x28x1"):
        runs.evaluate([run, other], few_digits)
