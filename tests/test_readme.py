"""Every code block of README does what README says."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
INSTALLING = [code for language, code in BLOCKS if "pip install" in code]
COMMANDS = [code for language, code in BLOCKS if language == "bash" and code not in INSTALLING]
SNIPPETS = [code for language, code in BLOCKS if language == "python"]


def shell(code: str, folder: Path, **environment: str) -> str:
    """Runs a block as a user would, who has activated the virtual environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_block_is_forgotten() -> None:
    assert len(INSTALLING) == 2
    assert len(INSTALLING) + len(COMMANDS) + len(SNIPPETS) == len(BLOCKS)
    assert README.count("```") == 2 * len(BLOCKS)


def test_the_snippets_run_one_after_the_other() -> None:
    namespace: dict[str, object] = {}
    for code in SNIPPETS:
        exec(compile(code, "README.md", "exec"), namespace)


@pytest.mark.parametrize("code", COMMANDS)
def test_the_commands_run(code: str, tmp_path: Path) -> None:
    for name in ("docs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert "test error" in shell(code, tmp_path)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh checkout, whose virtual environment finds this one's packages installed.

    So pip has nothing but the project itself to fetch and install.
    """
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=ignored, dirs_exist_ok=True)
    venv.create(folder / ".venv", with_pip=True)
    (site_packages,) = (folder / ".venv").glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "ours.pth").write_text("\n".join(ours))
    return folder


@pytest.mark.slow
def test_the_first_command_installs_and_trains(checkout: Path, tmp_path: Path) -> None:
    # As on a fresh machine, where nothing has been prepared yet.
    printed = shell(INSTALLING[0], checkout, TFDS_DATA_DIR=str(tmp_path))
    assert re.search(r"^test error \d\.\d\d % on mnist(-5k)? after 10 epochs", printed, re.M)
    (run,) = (checkout / "runs").iterdir()
    assert (run / "mistakes.png").exists()


@pytest.mark.slow
def test_the_second_command_installs_and_tests(checkout: Path) -> None:
    # The tests themselves are running already; here it is enough that it finds them.
    printed = shell(INSTALLING[1], checkout, PYTEST_ADDOPTS="--collect-only")
    assert re.search(r"^=* ?\d+ tests collected", printed, re.M)
