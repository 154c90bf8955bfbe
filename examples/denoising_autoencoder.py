"""An autoencoder that restores missing pixels (Vincent et al. 2008): not a classification task."""

from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: uses all cores of a CPU, and caches compiled programs

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dlc_jax import data, nn, runs, sharding, training
from dlc_jax.runs import plots
from dlc_jax.training.epoch_bar import epoch_bar


class Autoencoder(nnx.Module):
    def __init__(self, key: jax.Array) -> None:
        self.encoder = nn.Linear(784, 500, rngs=nnx.Rngs(key))
        self.decoder = nn.Linear(500, 784, rngs=nnx.Rngs(key))

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.sigmoid(self.decoder(nnx.relu(self.encoder(x))))


def remove_pixels(batch: data.Batch, key: jax.Array | None) -> dict[str, jax.Array]:
    key = jax.random.fold_in(jax.random.key(0) if key is None else key, batch.epoch)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch.index)
    clean = nn.flatten(batch.examples) / 255
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (784,)))(keys)
    return {"clean": clean, "noisy": clean * kept}


def loss(model: Autoencoder, images: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    restored = model(images["noisy"])
    return ((restored - images["clean"]) ** 2).mean(1), restored


def psnr(restored: jax.Array, images: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {"psnr": -10 * jnp.log10(((restored - images["clean"]) ** 2).mean(1))}  # in decibels


digits, key, mesh = data.load("mnist-5k"), jax.random.key(0), sharding.cpu_mesh(100)
task = training.Supervised(Autoencoder, loss, optax.adam(1e-3), psnr, remove_pixels)
source = data.ArraySource(digits.train.images, 100, key=key, mesh=mesh)
test = data.ArraySource(digits.test.images, 500, mesh=mesh)
# An interrupted program continues from its last checkpoint when it is run again.
with runs.CheckpointManager(Path("denoiser"), max_to_keep=2) as manager, epoch_bar(20) as bar:
    progress = manager.restore_latest(task.init(key)) or training.Progress(task.init(key))
    callbacks = [bar, runs.CheckpointCallback(manager, interval_seconds=0)]
    records = training.train(
        task, source, num_epochs=20, progress=progress, key=key, test=test, callbacks=callbacks
    )
print(f"peak signal-to-noise ratio {records[-1].test['psnr']:.1f} dB; see denoiser.png")
shown = data.Batch.from_examples(digits.test.images[:12])
rows = [*remove_pixels(shown, None).values(), task.predict(progress.state, shown)]
images = (255 * jnp.concatenate(rows)).reshape(-1, 28, 28, 1).astype(jnp.uint8)
plots.save(plots.grid(images, "digits, with missing pixels, restored"), Path("denoiser.png"))
