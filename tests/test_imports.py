import subprocess
import sys

import pytest

HEAVY = ("tensorflow_datasets", "grain", "tensorflow", "matplotlib", "pandas", "torch", "click")


@pytest.mark.versions
@pytest.mark.parametrize("module", ["dlc_jax", "dlc_jax.ops", "dlc_jax.training", "dlc_jax.data"])
def test_importing_the_library_imports_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.versions
@pytest.mark.parametrize("module", ["dlc_jax", "dlc_jax.ops"])
def test_operations_import_only_jax(module: str) -> None:
    script = f"import sys, {module}; assert not {{'flax', 'optax'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_plain_arrays_train_where_tfds_is_not_installed() -> None:
    script = """
import sys
for name in ("tensorflow_datasets", "mlxtend", "matplotlib", "click"):
    sys.modules[name] = None  # makes importing it fail
import numpy as np, optax
from flax import nnx
from dlc_jax import data, models, training
from dlc_jax.data.source import ArraySource
import jax
images = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 1), np.uint8)
examples = data.Examples(images, np.arange(20, dtype=np.int32) % 10)
model = models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
task = training.classification(lambda key: model, optax.sgd(0.1), data.Normalize.fit(images))
source = ArraySource(examples, batch_size=10)
progress = training.Progress(task.init(jax.random.key(0)))
_, record = training.train(task, source, num_epochs=1, progress=progress, test=source)
assert record.losses.shape == (2,) and record.step == 2
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_submodule_is_an_attribute_of_the_package() -> None:
    import dlc_jax

    assert all(getattr(dlc_jax, name).__name__ == f"dlc_jax.{name}" for name in dlc_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = dlc_jax.nonsense
