"""A whole pass over a split as one call on the device."""

from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dlc_jax.data import shuffling
from dlc_jax.data.augmentation import Augmentation, Changes, shift
from dlc_jax.data.dataset import AnyArray, Examples, Normalise
from dlc_jax.errors import InputError
from dlc_jax.nn.losses import average_probabilities, cross_entropy, misclassified
from dlc_jax.sharding.mesh import everywhere, spread
from dlc_jax.training.state import TrainState
from dlc_jax.training.step import Metrics, eval_step, train_step

Tree = TypeVar("Tree")
# Examples, and what is done to them.
_Changed: TypeAlias = tuple[Examples, Changes | None]
_NONE = Augmentation()


def train_epoch(
    state: TrainState,
    train: Examples,
    normalise: Normalise,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    key: PRNGKeyArray | None = None,
    augmentation: Augmentation = _NONE,
    label_smoothing: float = 0.0,
    examples: int | None = None,
) -> tuple[TrainState, Metrics]:
    """One `train_step` for each batch.

    Nothing passes between host and device until it returns. Where the batch size does not
    divide the number of examples, the last batch is smaller.

    Args:
      state: the network in training.
      train: uint8 images [examples, height, width, channels] and labels [examples], best
        put on the device beforehand (`jax.device_put`).
      normalise: what to apply to each batch of images.
      batch_size: examples an update.
      mesh: devices to spread each batch over, as `dlc_jax.sharding.mesh.device_mesh(batch_size)`;
        the arguments must lie on them (`dlc_jax.sharding.mesh.replicate`).
      key: of the order of the examples and of their augmentation, the same for all epochs;
        without one they are taken in the order in which they stand, as they are.
      augmentation: what to do to the normalised images.
      label_smoothing: see `dlc_jax.nn.losses.cross_entropy`.
      examples: so many of the epoch alone, from where the state stands in it; by default the
        whole epoch. They end with a full batch, or with the epoch.

    Returns:
      The state after the epoch, and each step's loss and error, [steps]. Where fewer than
      `examples` are left of the epoch, which inside `jax.jit` can't be told beforehand, all of
      them are NaN.

    Raises:
      InputError: fewer examples are left of the epoch.
    """
    count = len(train.labels)
    if examples is not None and not isinstance(state.step, jax.core.Tracer):
        _check_left(int(state.step), count, batch_size, examples)
    return _train_epoch(
        state,
        train,
        normalise,
        batch_size=batch_size,
        mesh=mesh,
        key=key,
        augmentation=augmentation,
        label_smoothing=label_smoothing,
        examples=examples,
    )


def _check_left(step: int, count: int, batch_size: int, examples: int) -> None:
    begin = step % -(-count // batch_size) * batch_size
    end = begin + examples
    if examples < 1 or end > count or (end % batch_size and end < count):
        raise InputError(
            f"{examples} examples can't be trained on from where the state stands, before example "
            f"{begin} of an epoch of {count} in batches of {batch_size}; take as many as end with "
            f"a full batch or with the epoch, up to {count - begin}"
        )


@partial(
    jax.jit, static_argnames=("batch_size", "mesh", "augmentation", "label_smoothing", "examples")
)
def _train_epoch(
    state: TrainState,
    train: Examples,
    normalise: Normalise,
    *,
    batch_size: int,
    mesh: Mesh | None,
    key: PRNGKeyArray | None,
    augmentation: Augmentation,
    label_smoothing: float,
    examples: int | None,
) -> tuple[TrainState, Metrics]:
    changes, order = None, None
    epoch, step = jnp.divmod(state.step, -(-len(train.labels) // batch_size))
    if key is not None:
        _, drawing = shuffling.split(key)
        changes = augmentation.draw(drawing, epoch, train.images.shape)
        order = shuffling.order(key, epoch, len(train.labels))
    if examples is not None:
        order = jnp.arange(len(train.labels)) if order is None else order
        fits = step * batch_size + examples <= len(order)
        order = lax.dynamic_slice(order, (step * batch_size,), (examples,))
    if order is not None:
        train, changes = jax.tree.map(lambda array: jnp.asarray(array)[order], (train, changes))
    full, last = _batches((train, changes), batch_size)
    how: dict[str, Any] = {"augmentation": augmentation, "label_smoothing": label_smoothing}
    parts = []
    if full is not None:
        shares, rest_size = _shares(full, mesh)
        steps = partial(_steps, rest_size=rest_size, **how)
        state, metrics = spread(steps, mesh, in_axes=(None, None, 1), out_axes=None)(
            state, normalise, shares
        )
        parts.append(metrics)
    if last is not None:
        state, metrics = _step(state, normalise, (last, None), axis_name=None, **how)
        parts.append(jax.tree.map(jnp.atleast_1d, metrics))
    result = state, jax.tree.map(lambda *values: jnp.concatenate(values), *parts)
    if examples is not None:
        result = _nan_unless(fits, result)
    return everywhere(result, mesh)


def _nan_unless(right: Bool[Array, ""], tree: Tree) -> Tree:
    """The arrays as they are, or if something is wrong NaN in place of all floating-point ones."""

    def checked(array: Array) -> Array:
        floating = jnp.issubdtype(array.dtype, jnp.floating)
        return jnp.where(right, array, jnp.nan) if floating else array

    return jax.tree.map(checked, tree)


@partial(jax.jit, static_argnames=("batch_size", "mesh", "augmentation", "label_smoothing"))
def train_batch(
    state: TrainState,
    batch: Examples,
    normalise: Normalise,
    changes: Changes | None = None,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    augmentation: Augmentation = _NONE,
    label_smoothing: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """A step of `train_epoch`, for batches that come one by one.

    Args:
      state: the network in training.
      batch: uint8 images [batch, height, width, channels] and labels [batch], as
        `dlc_jax.data.stream` gives them.
      normalise: as for `train_epoch`.
      changes: what is done to the examples of the whole epoch; see `changes_of_epoch`.
      batch_size: examples an update; an epoch's last batch may have fewer.
      mesh: devices, which share full batches evenly.
      augmentation: as for `train_epoch`.
      label_smoothing: likewise.

    Returns:
      The next state, and the step's loss and error; NaN where the changes are for another batch
      than one of this size.
    """
    size = len(batch.labels)
    right: Any = None
    if changes is not None:
        count = len(changes.mirrored)
        start = state.step % -(-count // batch_size) * batch_size
        # The epoch's last batch may have fewer examples, and no other.
        right = size == jnp.minimum(batch_size, count - start)
        changes = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), changes)
    how: dict[str, Any] = {"augmentation": augmentation, "label_smoothing": label_smoothing}
    even = mesh if mesh is not None and size % mesh.size == 0 else None
    step = spread(partial(_step, **how), even, in_axes=(None, None, 0), out_axes=None)
    result = step(state, normalise, ((batch, changes), None))
    return everywhere(result if right is None else _nan_unless(right, result), mesh)


@partial(jax.jit, static_argnames=("shape", "mesh", "augmentation"))
def changes_of_epoch(
    key: PRNGKeyArray,
    epoch: Int[AnyArray, ""],
    shape: tuple[int, ...],
    *,
    augmentation: Augmentation,
    mesh: Mesh | None = None,
) -> Changes:
    """What `train_epoch` does to an epoch's examples, in the order in which it takes them.

    Args:
      key: as for `train_epoch`.
      epoch: how many epochs there were before this one.
      shape: of all images, [images, height, width, channels].
      augmentation: as for `train_epoch`.
      mesh: the devices that shall have them.
    """
    _, drawing = shuffling.split(key)
    order = shuffling.order(key, epoch, shape[0])
    changes = augmentation.draw(drawing, epoch, shape)
    return everywhere(jax.tree.map(lambda array: array[order], changes), mesh)


@partial(jax.jit, static_argnames=("batch_size", "augmentation", "label_smoothing"))
def train_ensemble(
    states: TrainState,
    train: Examples,
    normalise: Normalise,
    *,
    batch_size: int,
    keys: PRNGKeyArray | None = None,
    augmentation: Augmentation = _NONE,
    label_smoothing: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """`train_epoch` for several networks at once, each of which sees the examples its own way.

    Args:
      states: the networks in training, stacked: each leaf [networks, ...]; see
        `dlc_jax.training.stack`.
      train: as for `train_epoch`, and the same for all networks.
      normalise: likewise.
      batch_size: examples an update of one network.
      keys: one for each network, [networks]; without them, as for `train_epoch`.
      augmentation: as for `train_epoch`.
      label_smoothing: likewise.

    Returns:
      The states after the epoch, and each network's loss and error by step, [networks, steps].
    """

    def one(state: TrainState, key: PRNGKeyArray | None) -> tuple[TrainState, Metrics]:
        how: dict[str, Any] = {"augmentation": augmentation, "label_smoothing": label_smoothing}
        return train_epoch(state, train, normalise, batch_size=batch_size, key=key, **how)

    return jax.vmap(one)(states, keys)


@partial(jax.jit, static_argnames=("batch_size", "mesh", "mirrored", "translated"))
def evaluate(
    state: TrainState,
    examples: Examples,
    normalise: Normalise,
    *,
    batch_size: int = 500,
    mesh: Mesh | None = None,
    mirrored: bool = False,
    translated: int = 0,
) -> tuple[Float[Array, "examples classes"], Metrics]:
    """The logits of all examples in evaluation mode, with their mean loss and error.

    Args:
      state: the network.
      examples: uint8 images [examples, height, width, channels] and labels [examples].
      normalise: the same as in training.
      batch_size: examples at a time; it bounds the memory and changes nothing else.
      mesh: devices to spread each batch over, as for `train_epoch`.
      mirrored: whether each image's logits are the mean of its own and of its mirror image's.
      translated: by how many pixels images are moved up and left, and down and right; an
        image's logits then count as much as those of both of these together (Jordan 2024,
        section 3.5). 0 for no such images.
    """
    devices = 1 if mesh is None else mesh.size
    full, rest = _batches(examples, max(batch_size // devices, 1) * devices)
    looks: dict[str, Any] = {"mirrored": mirrored, "translated": translated}
    parts = []
    if full is not None:
        some = partial(_logits, **looks)
        logits = spread(some, mesh, in_axes=(None, None, 1), out_axes=1)(state, normalise, full)
        parts.append(everywhere(logits.reshape(-1, logits.shape[-1]), mesh))
    if rest is not None:
        parts.append(_logits_of_batch(state, normalise, rest, **looks))
    logits = jnp.concatenate(parts)
    loss = cross_entropy(logits, examples.labels)
    return logits, Metrics(loss, misclassified(logits, examples.labels).mean())


@partial(jax.jit, static_argnames=("batch_size", "mirrored", "translated"))
def evaluate_ensemble(
    states: TrainState, examples: Examples, normalise: Normalise, **how: Any
) -> tuple[Float[Array, "examples classes"], Metrics]:
    """`evaluate` of several networks as one, whose probabilities are the mean of theirs.

    Args:
      states: the networks, stacked: each leaf [networks, ...]; see `dlc_jax.training.stack`.
      examples: as for `evaluate`.
      normalise: likewise.
      **how: further arguments of `evaluate`: `batch_size`, `mirrored`, `translated`.

    Returns:
      The logarithms of the mean probabilities, with the ensemble's mean loss and error.
    """
    logits, _ = jax.vmap(lambda state: evaluate(state, examples, normalise, **how))(states)
    together = average_probabilities(logits)
    loss = cross_entropy(together, examples.labels)
    return together, Metrics(loss, misclassified(together, examples.labels).mean())


def _steps(
    state: TrainState, normalise: Normalise, batches: Any, **how: Any
) -> tuple[TrainState, Metrics]:
    return lax.scan(lambda state, batch: _step(state, normalise, batch, **how), state, batches)


def _step(
    state: TrainState,
    normalise: Normalise,
    shares: tuple[_Changed, _Changed | None],
    *,
    augmentation: Augmentation,
    **how: Any,
) -> tuple[TrainState, Metrics]:
    def seen(share: _Changed) -> Examples:
        examples, changes = share
        images = normalise(examples.images)
        if changes is not None:
            images = augmentation.apply(images, changes)
        return Examples(images, examples.labels)

    batch, rest = shares
    return train_step(state, seen(batch), None if rest is None else seen(rest), **how)


def _logits(
    state: TrainState,
    normalise: Normalise,
    batches: Examples,
    *,
    axis_name: str | None,
    **looks: Any,
) -> Float[Array, "batches batch classes"]:
    del axis_name
    return lax.map(lambda batch: _logits_of_batch(state, normalise, batch, **looks), batches)


def _logits_of_batch(
    state: TrainState, normalise: Normalise, batch: Examples, *, mirrored: bool, translated: int
) -> Float[Array, "batch classes"]:
    def logits(images: Array) -> Array:
        own, _ = eval_step(state, Examples(images, batch.labels))
        if not mirrored:
            return own
        return (own + eval_step(state, Examples(images[:, :, ::-1], batch.labels))[0]) / 2

    images = normalise(batch.images)
    if not translated:
        return logits(images)
    corners = [jnp.full((len(images), 2), corner) for corner in (0, 2 * translated)]
    moved = [logits(shift(images, corner, translated, "reflect")) for corner in corners]
    return logits(images) / 2 + sum(moved) / 4


def _shares(batches: Tree, mesh: Mesh | None) -> tuple[tuple[Tree, Tree | None], int]:
    """What devices share evenly of each batch, and one more example for each, if any are left.

    Returns:
      Both, [batches, examples, ...]; and how many of the second count, the others repeat them.
    """
    devices = 1 if mesh is None else mesh.size
    size = jax.tree.leaves(batches)[0].shape[1]
    left = size % devices
    even = jax.tree.map(lambda array: array[:, : size - left], batches)
    if not left:
        return (even, None), 0
    again = size - left + np.arange(devices) % left
    return (even, jax.tree.map(lambda array: array[:, again], batches)), left


def _batches(tree: Tree, batch_size: int) -> tuple[Tree | None, Tree | None]:
    """The full batches, [batches, batch_size, ...], and what is left over, if there are any."""
    count = len(jax.tree.leaves(tree)[0])
    if not count:
        raise InputError("there are no examples")
    full = count // batch_size * batch_size
    stacked = jax.tree.map(
        lambda array: array[:full].reshape(-1, batch_size, *array.shape[1:]), tree
    )
    left = jax.tree.map(lambda array: array[full:], tree) if full < count else None
    return stacked if full else None, left
