"""Every code block of README does what README says."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from click.core import ParameterSource

from dlc_jax import cli
from dlc_jax.runs import recipes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
INSTALLING = [code for language, code in BLOCKS if "pip install" in code]
COMMANDS = [code for language, code in BLOCKS if language == "bash" and code not in INSTALLING]
SNIPPETS = [code for language, code in BLOCKS if language == "python"]
SLURM = [code for language, code in BLOCKS if language == "sbatch"]
KUBERNETES = [code for language, code in BLOCKS if language == "yaml"]


def shell(code: str, folder: Path, **environment: str) -> str:
    """Runs a block as a user would, who has activated the virtual environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with socket.create_server(("127.0.0.1", 0)) as free:
        code = code.replace("127.0.0.1:12345", f"127.0.0.1:{free.getsockname()[1]}")
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
    assert len(SLURM) == len(KUBERNETES) == 1
    assert len(INSTALLING) + len(COMMANDS) + len(SNIPPETS) + 2 == len(BLOCKS)
    assert README.count("```") == 2 * len(BLOCKS)


@pytest.mark.slow
@pytest.mark.versions
def test_the_snippets_run_one_after_the_other() -> None:
    namespace: dict[str, object] = {}
    for code in SNIPPETS:
        exec(compile(code, "README.md", "exec"), namespace)


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("code", COMMANDS)
def test_the_commands_run(code: str, tmp_path: Path) -> None:
    for name in ("docs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert "test error" in shell(code, tmp_path)


@pytest.fixture
def trainings(tmp_path: Path) -> Callable[[str], list[str]]:
    """Runs a script twice: without a run, and with one that is not at its end.

    It returns the commands that it gave to `dlc-jax` or to `srun`, which only note them.
    """
    for name in ("dlc-jax", "srun"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/commands\n')
        program.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])

    def run(script: str) -> list[str]:
        folder = tmp_path / "runs" / "resnet18"
        for epochs in (None, 3):
            if epochs:
                folder.mkdir(parents=True)
                (folder / "config.json").touch()
                (folder / "summary.json").write_text(json.dumps({"epochs": epochs}, indent=2))
            subprocess.run(
                ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, check=False
            )
        return (tmp_path / "commands").read_text().splitlines()

    return run


def asked_of_train(command: str) -> dict[str, object]:
    """What a command line of `dlc-jax train` tells, without what it leaves as it is."""
    program, train, *arguments = command.split()
    assert (program, train) == ("dlc-jax", "train")
    context = cli.commands.commands["train"].make_context("train", arguments)
    given = context.params.keys() - {
        name
        for name in context.params
        if context.get_parameter_source(name) == ParameterSource.DEFAULT
    }
    return {name: context.params[name] for name in given}


NEW = {"recipe": "cifar10-resnet18", "name": "resnet18", "distributed": True}
AGAIN = {"resume": "runs/resnet18", "distributed": True}


def test_the_slurm_script_begins_a_run_and_goes_on_with_it(
    trainings: Callable[[str], list[str]],
) -> None:
    commands = trainings(SLURM[0])
    assert [asked_of_train(line.removeprefix("srun ")) for line in commands] == [NEW, AGAIN]


def test_the_kubernetes_job_begins_a_run_and_goes_on_with_it_until_all_epochs_are_done(
    trainings: Callable[[str], list[str]], tmp_path: Path
) -> None:
    *_, job = yaml.safe_load_all(KUBERNETES[0])
    (script,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [*map(asked_of_train, trainings(script))] == [NEW, AGAIN]
    epochs = recipes.find("cifar10-resnet18").epochs
    for done, status in ((epochs - 1, 1), (epochs, 0)):
        summary = json.dumps({"model": "resnet18", "epochs": done, "run": ""}, indent=2)
        (tmp_path / "runs" / "resnet18" / "summary.json").write_text(summary)
        path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
        ended = subprocess.run(
            ["sh", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, check=False
        )
        assert ended.returncode == status


def test_the_kubernetes_job_has_what_jax_asks_the_cluster_for() -> None:
    service, account, role, binding, job = yaml.safe_load_all(KUBERNETES[0])
    pod = job["spec"]["template"]["spec"]
    # The first process is JOB-0.SUBDOMAIN: pods are numbered, and a headless service names them.
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    # JAX looks for a label of a JobSet among the job's.
    assert job["metadata"]["labels"]
    allowed = {(*rule["resources"], *rule["verbs"]) for rule in role["rules"]}
    assert allowed == {("pods", "list"), ("jobs", "get")}
    names = {each["metadata"]["name"] for each in (account, role)}
    assert names == {binding["roleRef"]["name"], pod["serviceAccountName"]}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]


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
@pytest.mark.usefixtures("optimised")
def test_the_first_command_installs_and_trains(checkout: Path, tmp_path: Path) -> None:
    # As on a fresh machine, where nothing has been prepared yet.
    printed = shell(INSTALLING[0], checkout, TFDS_DATA_DIR=str(tmp_path))
    found = re.search(r"^test error (\d\.\d\d) % on mnist(-5k)? after 10 epochs", printed, re.M)
    assert found
    assert float(found[1]) <= 3.5
    (run,) = (checkout / "runs").iterdir()
    assert (run / "mistakes.png").exists()


@pytest.mark.slow
def test_the_second_command_installs_and_tests(checkout: Path) -> None:
    # The tests themselves are running already; here it is enough that it finds some.
    printed = shell(INSTALLING[1], checkout, PYTEST_ADDOPTS="--collect-only tests/test_names.py")
    assert re.search(r"^=* ?\d+(/\d+)? tests collected", printed, re.M)
