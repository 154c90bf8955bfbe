"""The library leaves the state of the process alone, and ignores settings of the user."""

import logging
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
import pytest
from cycler import cycler

from dlc_jax import runs
from dlc_jax.cli import stdio
from dlc_jax.data import Dataset
from dlc_jax.explain import explain_run
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run
from dlc_jax.utils import signals
from dlc_jax.utils.drawing import to_png


def process_state() -> dict[str, Any]:
    """State of the process that a library must not change."""
    loggers = {
        name: logging.getLogger(name)
        for name in ("root", "absl", "jax", "matplotlib", "orbax", "dlc_jax", "filelock")
    }
    numpy_state: Any = np.random.get_state()
    return {
        "loggers": {
            name: (log.level, log.disabled, log.propagate, [*log.filters], [*log.handlers])
            for name, log in loggers.items()
        },
        "matplotlib": dict(matplotlib.rcParams),
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
        "jax": dict(jax.config.values),
        "python": random.getstate(),
        "numpy": (numpy_state[1].tolist(), numpy_state[2:]),
        "printing": np.get_printoptions(),
        "errors": np.geterr(),
    }


@pytest.fixture
def unchanged() -> Iterator[None]:
    before = process_state()
    yield
    for name, value in process_state().items():
        assert value == before[name], name


@pytest.mark.usefixtures("unchanged")
def test_training_and_explaining_leave_the_process_unchanged(
    few_digits: Dataset, tmp_path: Path
) -> None:
    levels = {name: logging.getLogger(name).level for name in ("absl", "matplotlib")}
    config = runs.configure(few_digits, epochs=1, batch_size=50, seed=0)
    run = runs.train(config, few_digits, tmp_path, "run").run
    assert run is not None
    runs.evaluate([run], few_digits)
    explain_run(run, few_digits, ["filters"], output_dir=tmp_path / "explain")
    assert levels == {name: logging.getLogger(name).level for name in levels}


def test_figures_ignore_matplotlib_settings() -> None:
    def draw() -> bytes:
        figure = plots.curves([np.linspace(2, 1, 5)], [0.5], "a title")
        return to_png(figure)

    expected = draw()
    user_settings: list[dict[Any, Any]] = [
        {"text.usetex": True},
        {"savefig.dpi": 10, "savefig.bbox": "tight", "savefig.transparent": True},
        {"figure.autolayout": True, "figure.facecolor": "black"},
        {"font.family": "No Such Font", "font.size": 40},
        {"axes.prop_cycle": cycler(color=["k"]), "image.cmap": "hot"},
        {"lines.linestyle": "--", "axes.spines.top": False, "axes.formatter.use_locale": True},
    ]
    for settings in user_settings:
        with matplotlib.rc_context(settings):
            before = dict(matplotlib.rcParams)
            assert draw() == expected, settings
            assert dict(matplotlib.rcParams) == before
    with matplotlib.style.context("dark_background"):
        assert draw() == expected
    with matplotlib.style.context("grayscale"):
        assert draw() == expected


def test_pyplot_gets_no_figures(run: Run) -> None:
    import matplotlib.pyplot as plt

    open_figures = plt.get_fignums()
    to_png(plots.curves([np.ones(2)], [0.5], "a title"))
    assert plt.get_fignums() == open_figures


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with signals.raise_on_sigterm(), signals.defer_signals():
                assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
        except BaseException as error:  # shown by the assertion below
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_a_signal_handler_that_is_not_pythons_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    # `signal.signal` returns None if C code has installed the handler.
    replaced: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: replaced.append(handler))
    monkeypatch.setattr(signal, "getsignal", lambda number: replaced[0])
    with signals.raise_on_sigterm():
        pass
    assert replaced[1] is signal.SIG_DFL


def test_the_command_restores_loggers() -> None:
    before = process_state()["loggers"]
    with stdio.usable():
        assert process_state()["loggers"] != before
    assert process_state()["loggers"] == before
