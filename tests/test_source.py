"""Batches of a source: each example once an epoch, in one order on any devices, padded."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import two_devices

from dlc_jax.data import ArraySource, BatchPlan, Records, Source, StreamingSource
from dlc_jax.data.dataset import Examples
from dlc_jax.data.shuffling import epoch_permutation
from dlc_jax.errors import InputError

KEY = jax.random.key(7)


def numbered(count: int) -> Examples:
    """Examples whose images and labels are their indices."""
    labels = np.arange(count, dtype=np.int32)
    return Examples(labels.astype(np.uint8).reshape(-1, 1, 1, 1), labels)


def make(kind: str, count: int, batch_size: int, **options: Any) -> Source:
    if kind == "memory":
        return ArraySource(numbered(count), batch_size, **options)
    return StreamingSource(Records.from_arrays(numbered(count)), batch_size, **options)


def labels_by_step(source: Source, start: int, stop: int, max_steps: int | None = None) -> Any:
    """For each step the epoch, and the labels of its examples without padding."""
    steps = []
    for chunk in source.chunks(start, stop, max_steps):
        weight = np.asarray(chunk.weights)
        labels = np.asarray(chunk.examples.labels)
        np.testing.assert_array_equal(labels, chunk.index)
        np.testing.assert_array_equal(np.asarray(chunk.examples.images)[..., 0, 0, 0], labels)
        for step in range(len(labels)):
            own = labels[step][weight[step] > 0].tolist()
            steps.append((int(np.asarray(chunk.epoch)[step]), own))
    return steps


@settings(max_examples=100, deadline=None)
@given(
    num_examples=st.integers(1, 40),
    batch_size=st.integers(1, 40),
    multiple=st.integers(1, 5),
    start=st.integers(0, 30),
    steps=st.integers(0, 30),
    max_steps=st.none() | st.integers(1, 12),
    parts=st.none() | st.integers(1, 4),
)
def test_a_plan_takes_each_example_once_an_epoch_and_its_chunks_every_step_once(
    num_examples: int,
    batch_size: int,
    multiple: int,
    start: int,
    steps: int,
    max_steps: int | None,
    parts: int | None,
) -> None:
    batch_size = min(batch_size, num_examples)
    plan = BatchPlan(num_examples, batch_size, multiple)
    positions, weight = plan.positions(np.arange(plan.steps_per_epoch))
    assert positions.shape == (plan.steps_per_epoch, plan.padded_batch_size)
    assert plan.padded_batch_size % multiple == 0
    assert plan.padded_batch_size - batch_size < multiple
    real = positions if weight is None else positions[weight > 0]
    np.testing.assert_array_equal(np.ravel(real), np.arange(num_examples))
    assert (weight is None) == (not plan.is_padded)
    chunks = list(plan.chunks(start, start + steps, max_steps, parts))
    every = [step for first, count in chunks for step in range(first, first + count)]
    assert every == list(range(start, start + steps))
    for first, count in chunks:
        assert first // plan.steps_per_epoch == (first + count - 1) // plan.steps_per_epoch
        assert count <= (parts or count)


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_without_a_key_examples_come_in_their_own_order(kind: str) -> None:
    steps = labels_by_step(make(kind, 5, 2), 0, 6)
    assert steps == [(epoch, own) for epoch in (0, 1) for own in ([0, 1], [2, 3], [4])]


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize("devices", [1, 2])
def test_with_a_key_each_epoch_is_its_permutation(kind: str, devices: int) -> None:
    mesh = two_devices() if devices == 2 else None
    steps = labels_by_step(make(kind, 23, 5, key=KEY, mesh=mesh), 0, 10, max_steps=3)
    for epoch in (0, 1):
        own = [label for number, labels in steps if number == epoch for label in labels]
        assert own == np.asarray(epoch_permutation(KEY, epoch, 23)).tolist()
    assert [len(labels) for _, labels in steps] == [5, 5, 5, 5, 3] * 2


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize("start", [3, 5, 7])
def test_a_source_continues_from_any_step(kind: str, start: int) -> None:
    source = make(kind, 23, 5, key=KEY)
    whole = labels_by_step(source, 0, 15, max_steps=2)
    assert labels_by_step(source, start, 15, max_steps=2) == whole[start:]


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize("devices", [1, 2])
def test_chunks_are_those_announced(kind: str, devices: int) -> None:
    mesh = two_devices() if devices == 2 else None
    for key in (None, KEY):
        source = make(kind, 23, 5, key=key, mesh=mesh)
        sizes = set()
        for chunk in source.chunks(2, 20, 3):
            sizes.add(len(chunk.index))
            expected = source.abstract(len(chunk.index))
            assert str(jax.tree.structure(chunk)) == str(jax.tree.structure(expected))
            for array, like in zip(*map(jax.tree.leaves, (chunk, expected)), strict=True):
                assert (array.shape, array.dtype) == (like.shape, like.dtype)
                if mesh is not None:
                    assert array.sharding.is_equivalent_to(like.sharding, array.ndim)
        assert sizes == set(source.sizes(2, 20, 3))


def test_each_network_of_an_ensemble_has_its_own_order() -> None:
    keys = jax.random.split(KEY, 3)
    together = ArraySource(numbered(23), 5, key=keys)
    [chunk] = together.chunks(5, 10)
    for network, key in enumerate(keys):
        [alone] = ArraySource(numbered(23), 5, key=key).chunks(5, 10)
        for ours, expected in zip(*map(jax.tree.leaves, (chunk, alone)), strict=True):
            np.testing.assert_array_equal(ours[:, network], expected)


def test_a_source_keeps_its_examples_when_the_callers_arrays_change() -> None:
    examples = numbered(6)
    for key in (None, KEY):
        source = ArraySource(examples, 2, key=key)
        before = labels_by_step(source, 0, 3)
        examples.labels[:] = 0
        examples.images[:] = 0
        assert labels_by_step(ArraySource(numbered(6), 2, key=key), 0, 3) == before
        assert labels_by_step(source, 0, 3) == before
        examples = numbered(6)


@pytest.mark.parametrize("batch_size", [0, -1, 6])
def test_batch_sizes_that_do_not_fit_are_refused(batch_size: int) -> None:
    with pytest.raises(InputError, match=f"{batch_size} does not fit 5 .* from 1 to 5"):
        ArraySource(numbered(5), batch_size)


def test_labels_of_64_bits_become_those_of_32() -> None:
    images = np.zeros((6, 1, 1, 1), np.uint8)
    source = ArraySource(Examples(images, np.arange(6)), 2)
    [chunk] = source.chunks(0, 3)
    assert chunk.examples.labels.dtype == source.abstract(3).examples.labels.dtype == np.int32
