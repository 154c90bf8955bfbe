import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc_jax import cli
from dlc_jax.utils.environment import prepare_jax

# JAX reads this when it is imported. Batches are split over two devices on any machine, so that
# most tests compile the same few programs.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Programs run once or twice here: optimizing them would take longer than it saves.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
prepare_jax()
# In the background of a script, this process and those that it starts would ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dlc_jax import data, runs, training
from dlc_jax.data import Dataset, Examples
from dlc_jax.explain import ImageClassifier
from dlc_jax.runs import callbacks
from dlc_jax.runs.folder import Run

# Compiling a whole function is much faster than compiling its operations one by one.
logits_of = jax.jit(ImageClassifier.logits)
activations_of = jax.jit(ImageClassifier.activations, static_argnames="stage")


def normal(seed: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normally distributed numbers from NumPy: JAX would compile a program for each shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


class OneLayer(nnx.Module):
    """A network for digits that compiles quickly, for tests that work with any network."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(28 * 28, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x.reshape(len(x), -1))


def new_state(
    seed: int = 0, optimizer: optax.GradientTransformation | None = None
) -> training.TrainState:
    """The state of a `OneLayer` before training."""
    return training.create_state(OneLayer(nnx.Rngs(seed)), optimizer or optax.sgd(0.01))


@dataclass(frozen=True)
class Finished:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


Command = Callable[..., Finished]


@pytest.fixture
def dlc_jax(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Runs `dlc-jax` with the given arguments in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["dlc-jax", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ending:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(ending.value.code, int)
        return Finished(ending.value.code, out, err)

    return run


@pytest.fixture
def dlc_jax_process(tmp_path: Path) -> Command:
    """Runs `dlc-jax` with the given arguments in another process."""

    def run(*arguments: object, **environment: str) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "dlc_jax", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """`mnist-5k`."""
    return data.load("mnist-5k")


@pytest.fixture(scope="session")
def prepared_mnist() -> Path:
    """The folder in which full MNIST is prepared."""
    folder = data.find("mnist")
    if folder is None:
        pytest.skip(f"full MNIST is not prepared in {data.data_folder()} (TFDS_DATA_DIR)")
    return folder


@pytest.fixture(scope="session")
def mnist(prepared_mnist: Path) -> Dataset:
    """Full MNIST, if it is prepared."""
    return data.load("mnist")


@pytest.fixture(scope="session")
def few_digits(digits: Dataset) -> Dataset:
    """230 training and 50 test digits."""
    return Dataset(
        "few",
        "1",
        Examples(*(array[:230] for array in digits.train)),
        Examples(*(array[:50] for array in digits.test)),
        digits.class_names,
        "the first of mnist-5k",
    )


@pytest.fixture(scope="session")
def run(few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two epochs."""
    config = runs.configure(few_digits, epochs=2, batch_size=50, learning_rate=0.1, seed=0)
    run = runs.train(config, few_digits, tmp_path_factory.mktemp("runs"), "run").run
    assert run is not None
    return run


@pytest.fixture(scope="session")
def lecture_run(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The lecture's network after five epochs of 4,000 digits."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Workers share it.
        folder = folder.parent
    kept = folder / "lecture"
    if not kept.exists():
        config = runs.configure(digits, epochs=5, seed=0)
        result = runs.train(config, digits, tmp_path_factory.mktemp("runs"), "digits")
        assert result.run is not None
        with contextlib.suppress(OSError):
            result.run.folder.rename(kept)
    return Run.open(kept)


@pytest.fixture(scope="session")
def lecture(lecture_run: Run) -> ImageClassifier:
    """The classifier of the same run."""
    return ImageClassifier.from_run(lecture_run)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no pictures, which take longer than some trainings."""
    monkeypatch.setattr(callbacks, "draw", lambda *_: [])


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiles programs with all optimizations, as for users, in other processes too."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    # JAX's cache ignores the setting, and the programs round differently.
    jax.clear_caches()
    yield
    jax.config.update(name, before)
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Counting the maps is slow, and is done after every 20th test only.
_NUM_TESTS = itertools.count()


@pytest.fixture(autouse=True)
def _limit_memory_maps() -> Iterator[None]:
    """Clears compiled programs before a process has too many memory maps.

    Each program has some, and Linux aborts a process with more than 65,530.
    """
    yield
    if next(_NUM_TESTS) % 20:
        return
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
