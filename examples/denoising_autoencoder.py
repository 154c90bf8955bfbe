"""A task that is not classification: an autoencoder that restores digits with missing pixels.

(Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders".)
Run it again after an interruption, and it continues from its last checkpoint.
"""

from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: the cores of a CPU count as devices

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dlc_jax import data, nn, runs, sharding, training
from dlc_jax.runs import plots
from dlc_jax.cli.progress import epochs as epoch_bar


class Autoencoder(nnx.Module):
    def __init__(self, key: jax.Array) -> None:
        self.encoder = nn.Linear(784, 500, rngs=nnx.Rngs(key))
        self.decoder = nn.Linear(500, 784, rngs=nnx.Rngs(key))

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.sigmoid(self.decoder(nnx.relu(self.encoder(x))))


def remove_pixels(batch: data.Batch, key: jax.Array | None) -> dict[str, jax.Array]:
    epoch_key = jax.random.fold_in(jax.random.key(0) if key is None else key, batch.epoch)
    keys = jax.vmap(lambda index: jax.random.fold_in(epoch_key, index))(batch.index)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (784,)))(keys)
    clean = nn.flatten(batch.examples) / 255
    return {"clean": clean, "noisy": clean * kept}


def squared_error(model: Autoencoder, images: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    restored = model(images["noisy"])
    return ((restored - images["clean"]) ** 2).mean(1), restored


def psnr(restored: jax.Array, images: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {"psnr": -10 * jnp.log10(((restored - images["clean"]) ** 2).mean(1))}  # decibels


def main(name: str = "mnist-5k", folder: Path = Path("denoiser"), epochs: int = 20) -> None:
    digits, key, mesh = data.load(name), jax.random.key(0), sharding.cpu_mesh(100)
    task = training.Supervised(Autoencoder, squared_error, optax.adam(1e-3), psnr, remove_pixels)
    train = data.ArraySource(digits.train.images, 100, key=key, mesh=mesh)
    test = data.ArraySource(digits.test.images, 500, mesh=mesh)
    with runs.CheckpointManager(folder, keep=2) as manager, epoch_bar(epochs) as bar:
        progress = manager.newest(task.init(key)) or training.Progress(task.init(key))
        callbacks = [training.OnEpoch(bar.update), runs.Checkpointer(manager, 0)]
        options = {"key": key, "test": test, "mesh": mesh, "callbacks": callbacks}
        records = training.train(task, train, num_epochs=epochs, progress=progress, **options)
    print(f"restored digits: {records[-1].test['psnr']:.1f} dB; see {folder / 'restored.png'}")
    batch = data.Batch.of(digits.test.images[:12])
    rows = [*remove_pixels(batch, None).values(), task.predict(progress.state, batch)]
    images = (255 * jnp.concatenate(rows)).reshape(-1, 28, 28, 1).astype(jnp.uint8)
    plots.save(plots.grid(images, "digits, without half of their pixels, restored"), folder / "restored.png")


if __name__ == "__main__":
    main()
