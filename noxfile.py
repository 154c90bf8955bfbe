"""The tests on every supported Python, and on the oldest supported packages.

`nox` runs everything, `nox -s tests-3.12` one session, and `nox -s tests-3.12 -- -m versions` only
those tests that a version of Python or JAX can break. A Python that is not installed is an error.
"""

import re
import tomllib
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
OLDEST, NEWEST = "3.11", "3.13"

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = True
nox.options.download_python = "never"
nox.options.sessions = [*(f"tests-{python}" for python in PYTHONS), "lower_bounds", "lint"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, with the newest release of each dependency."""
    session.install("-e", ".[test]")
    _test(session)


@nox.session(python=OLDEST)
def lower_bounds(session: nox.Session) -> None:
    """The tests, with the oldest release of each dependency that pyproject.toml admits."""
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("".join(f"{bound}\n" for bound in oldest()))
    session.install("-e", ".[test]", "--constraint", str(constraints))
    # Old packages use what others among them have deprecated since.
    _test(session, "-W", "default::DeprecationWarning")


@nox.session(python=NEWEST)
def lint(session: nox.Session) -> None:
    """Linters and types."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


def _test(session: nox.Session, *options: str) -> None:
    """Runs what was asked for, by default all tests."""
    for arguments in [session.posargs] if session.posargs else [[], ["-m", "slow"]]:
        session.run("python", "-m", "pytest", *options, *arguments)


def oldest() -> list[str]:
    """The lower bounds of all dependencies, as `name==version`.

    Tools of the tests are left out: a newer one of them breaks nobody's installation.
    """
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]["tensorboard"]
    bounds = (
        re.fullmatch(r"([\w-]+)>=([\w.]+)", each) for each in project["dependencies"] + optional
    )
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]
