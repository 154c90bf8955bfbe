"""The documentation is true: commands and snippets run, links and names exist."""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]
from click.core import ParameterSource

from dlc_jax import cli
from dlc_jax.runs import recipes

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dlc_jax"
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]

INSTALLS = "installs packages"
MINUTES = "takes minutes to hours; its result is in docs/results.md"
TWO_COMMANDS = "run by the tests of README's two commands"
# Commands of the documentation that are not run, and why.
NOT_RUN = {
    "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/dlc-jax train": TWO_COMMANDS,
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest": (
        TWO_COMMANDS
    ),
    "python3 -m venv .venv\n.venv/bin/pip install -e '.[dev]'": INSTALLS,
    "pip install 'dlc-jax[tensorboard]'": INSTALLS,
    "tensorboard --logdir runs": "a server, which does not end",
    ".venv/bin/python -m pytest": "these tests",
    ".venv/bin/python -m pytest -m slow": "these tests",
    ".venv/bin/python -m pytest tests/test_{training,source,losses,layers,docs}.py": "these tests",
    "ruff check": "run by .ci/run",
    "ruff format": "run by .ci/run",
    "nox -s lower_bounds": "run by .ci/run",
    **dict.fromkeys(
        [
            "dlc-jax train mnist-lecture --seeds 3",
            "dlc-jax train --dataset mnist --seeds 3",
            "dlc-jax train --dataset mnist-5k --seeds 3",
        ],
        "run by tests/test_accuracy.py, except for two seeds on MNIST",
    ),
    **dict.fromkeys(
        [
            "dlc-jax train mnist-best",
            "dlc-jax train cifar10-lecture --seeds 3",
            "dlc-jax train cifar10-cpu",
            "dlc-jax train cifar10-fast",
            "dlc-jax train cifar10-resnet18",
            "python examples/cifar10_resnet.py 1",
            "python examples/cifar10_resnet_reference.py 1",
            "python examples/early_networks.py",
            "python examples/early_networks.py mnist",
            "python examples/neocognitron.py",
            "python benchmarks/cifar10.py",
            "python benchmarks/gpu.py",
            "python benchmarks/gpu.py --only lecture",
            "python benchmarks/lecture.py --rivals torch",
            "python benchmarks/lecture.py --rivals torch,torch-channels-last,flax",
            "python benchmarks/ops.py",
            "python benchmarks/scaling.py",
            "python benchmarks/startup.py",
        ],
        MINUTES,
    ),
}
PROGRAMS = ("dlc-jax", "python", "python3", "pip", "tensorboard", "srun", "ruff", "nox")
# Pages whose Python snippets run on every version of Python and with the oldest packages.
ON_ALL_VERSIONS = ("README.md", "docs/research.md", "docs/checkpoints.md")
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b")
# The packages and modules of dlc_jax; each may import those before it.
IMPORT_ORDER = (
    "typing",
    "errors",
    "utils",
    "ops",
    "nn",
    "sharding",
    "data",
    "models",
    "training",
    "runs",
    "explain",
    "cli",
)


@dataclass(frozen=True)
class Page:
    """A page of the documentation.

    Attributes:
      path: its file.
      blocks: language and content of its code blocks.
      spans: inline code outside of blocks.
      commands: commands in blocks and in inline code, in order.
    """

    path: Path
    blocks: list[tuple[str, str]]
    spans: list[str]
    commands: list[str]

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def runnable_commands(self) -> list[str]:
        return [command for command in dict.fromkeys(self.commands) if is_runnable(command)]

    def of_language(self, language: str) -> list[str]:
        return [code for name, code in self.blocks if name == language]


def is_runnable(command: str) -> bool:
    """Whether it is a whole command, and not only the name or the form of one."""
    is_name = len(command.split()) == 2 and command.startswith("dlc-jax ")
    is_form = "\n" not in command and bool(PLACEHOLDER.search(command))
    return not is_name and not is_form and command not in NOT_RUN


def read_page(path: Path) -> Page:
    page = Page(path, [], [], [])
    pattern = r"^```(\w+)\n(.*?)^```$|`([^`\n]+)`|<code>(.*?)</code>"
    for language, code, span, html in re.findall(pattern, path.read_text(), re.M | re.S):
        if language:
            page.blocks.append((language, code))
        else:
            page.spans.append(span or html)
        if language == "bash":
            page.commands.append(code.strip())
        elif not language:
            program, _, arguments = (span or html).partition(" ")
            if arguments and program.removeprefix(".venv/bin/") in PROGRAMS:
                page.commands.append(span or html)
    return page


PAGES = {path.relative_to(ROOT).as_posix(): read_page(path) for path in FILES}
INSTALL_AND_TRAIN, INSTALL_AND_TEST = PAGES["README.md"].of_language("bash")
[SLURM] = PAGES["docs/devices.md"].of_language("sbatch")
[KUBERNETES] = PAGES["docs/devices.md"].of_language("yaml")
every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def shell(code: str, folder: Path, **environment: str) -> str:
    """Runs a block as a user would who has activated the virtual environment."""
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.versions if name in ON_ALL_VERSIONS else ())
        for name, page in PAGES.items()
        if page.of_language("python")
    ],
)
def test_the_python_snippets_of_a_page_run_one_after_the_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for code in PAGES[name].of_language("python"):
        exec(compile(code, name, "exec"), namespace)


@dataclass(frozen=True)
class Reader:
    """A reader who goes through the pages in one folder, and types each command once.

    Attributes:
      folder: the folder.
      done: commands that have been run.
    """

    folder: Path
    done: set[str]

    def run(self, block: str) -> None:
        # Lines that share variables or processes of the shell stay together.
        independent = all(line.startswith(("dlc-jax ", "python ")) for line in block.splitlines())
        for command in block.splitlines() if independent else [block]:
            if command in self.done:
                continue
            printed = shell(command, self.folder, JAX_DISABLE_MOST_OPTIMIZATIONS="0")
            if "dlc-jax train" in command:
                assert "test error" in printed
            self.done.add(command)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    for name in ("docs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return Reader(folder, set())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.versions if name == "README.md" else ())
        for name, page in PAGES.items()
        if page.runnable_commands
    ],
)
def test_the_commands_of_a_page_run_one_after_the_other(name: str, reader: Reader) -> None:
    for block in PAGES[name].runnable_commands:
        reader.run(block)


def test_no_code_block_is_forgotten() -> None:
    known = {"bash", "python", "sbatch", "yaml", "text"}
    for page in PAGES.values():
        assert page.text.count("```") == 2 * len(page.blocks)
        assert {language for language, _ in page.blocks} <= known
    assert len(PAGES["README.md"].of_language("python")) == 1


def test_the_commands_that_are_not_run_are_in_the_documentation() -> None:
    commands = {command for page in PAGES.values() for command in page.commands}
    assert NOT_RUN.keys() <= commands


def simple_commands(page: Page) -> Iterator[list[str]]:
    """The commands without variables of the shell, as lists of words."""
    for command in page.commands:
        if "$" in command:
            continue
        for line in command.replace(" && ", "\n").splitlines():
            # An optional argument of a form, such as [IMAGE...].
            words = shlex.split(re.sub(r"\[[A-Z.]+\]", "", line))
            while re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


@every_page
def test_the_commands_have_arguments_that_exist(page: Page) -> None:
    for program, *arguments in simple_commands(page):
        if program == "dlc-jax" and len(arguments) == 1:
            assert arguments[0] in cli.commands.commands
        elif program == "dlc-jax":
            parameters = parse(arguments)
            recipe = parameters.get("recipe")
            assert recipe is None or recipe.isupper() or recipes.find(recipe)
        elif program == "python" and arguments[0].endswith(".py"):
            assert (ROOT / arguments[0]).exists()


def parse(arguments: list[str]) -> dict[str, Any]:
    """The parameters of `dlc-jax` that are given."""
    name, *rest = arguments
    context = cli.commands.commands[name].make_context(name, rest)
    return {
        parameter: value
        for parameter, value in context.params.items()
        if context.get_parameter_source(parameter) != ParameterSource.DEFAULT
    }


@every_page
def test_the_options_in_the_text_exist(page: Page) -> None:
    options = {"--help"}
    for command in cli.commands.commands.values():
        for parameter in command.get_params(click.Context(command)):
            options |= {*parameter.opts, *parameter.secondary_opts}
    assert {span.split()[0] for span in page.spans if span.startswith("--")} <= options


@every_page
def test_the_files_in_the_text_exist(page: Page) -> None:
    for name in re.findall(r"(?<![\w/.-])(?:examples|benchmarks|tests)/\w+\.py", page.text):
        assert (ROOT / name).exists(), name
    for names in re.findall(r"tests/test_{([\w,]+)}\.py", page.text):
        for name in names.split(","):
            assert (ROOT / "tests" / f"test_{name}.py").exists(), name
    for span in page.spans:
        if re.fullmatch(r"(dlc_jax|docs|examples|benchmarks|tests)/[\w./-]*", span):
            assert (ROOT / span).exists(), span
        elif re.fullmatch(r"\w+\.py", span):
            assert [*PACKAGE.rglob(span)], span


@every_page
def test_the_names_in_the_text_exist(page: Page) -> None:
    packages = "|".join(IMPORT_ORDER[1:])
    for span in page.spans:
        found = re.match(rf"(?:dlc_jax\.)?((?:{packages})(?:\.\w+)+)", span)
        if found and not found[1].endswith((".py", ".png")):
            assert resolves(found[1]), span


def resolves(name: str) -> bool:
    """Whether there is a module, or an attribute of one, of this name in the package."""
    parts = ["dlc_jax", *name.split(".")]
    for count in range(len(parts), 1, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            if attribute in getattr(value, "__dataclass_fields__", {}):
                return True
            if not hasattr(value, attribute):
                return False
            value = getattr(value, attribute)
        return True
    return False


@pytest.mark.parametrize("path", [*FILES, ROOT / "benchmarks" / "README.md"], ids=str)
def test_the_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", path.read_text()):
        link = "".join(target)
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), link
        if anchor:
            assert anchor in anchors(file), link


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short_and_all_pages_are_in_both_indices() -> None:
    readme, index = (ROOT / "README.md").read_text(), (ROOT / "docs" / "README.md").read_text()
    assert len(readme.encode()) <= 8000
    for path in (ROOT / "docs").glob("*.md"):
        if path.name != "README.md":
            assert f"(docs/{path.name}" in readme
            assert f"({path.name}" in index


def test_the_pictures_are_shown() -> None:
    text = "".join(page.text for page in PAGES.values())
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.name in text


def test_the_tree_on_the_architecture_page_is_that_of_the_package() -> None:
    [tree] = PAGES["docs/architecture.md"].of_language("text")
    listed = re.findall(r"^  (\w+)(?:/|\.py) ", tree, re.M)
    assert tuple(listed) == IMPORT_ORDER
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__main__", "__pycache__"} == {*IMPORT_ORDER}


def test_packages_import_only_those_before_them() -> None:
    forbidden = [
        f"{path.relative_to(ROOT)}:{line} imports {package}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for own in [path.relative_to(PACKAGE).parts[0].removesuffix(".py")]
        if own in IMPORT_ORDER
        for package, line in imported_packages(path)
        if package in IMPORT_ORDER[IMPORT_ORDER.index(own) + 1 :]
    ]
    assert not forbidden


def imported_packages(path: Path) -> Iterator[tuple[str, int]]:
    """The packages of dlc_jax that a file imports, inside functions too, with line numbers."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("dlc_jax."):
                yield name.split(".")[1], getattr(node, "lineno", 0)


@pytest.fixture
def run_twice(tmp_path: Path) -> Callable[[str], list[str]]:
    """Runs a script twice: without a run, and with an unfinished one.

    It returns the commands that the script gave to `dlc-jax` or `srun`, which only record them.
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


def train_parameters(command: str) -> dict[str, Any]:
    """The parameters that a command gives to `dlc-jax train`."""
    program, *arguments = command.removeprefix("srun ").split()
    assert (program, arguments[0]) == ("dlc-jax", "train")
    return parse(arguments)


NEW = {"recipe": "cifar10-resnet18", "name": "resnet18", "distributed": True}
RESUMED = {"resume": "runs/resnet18", "distributed": True}


def test_the_slurm_script_starts_a_run_and_resumes_it(
    run_twice: Callable[[str], list[str]],
) -> None:
    assert [train_parameters(line) for line in run_twice(SLURM)] == [NEW, RESUMED]


def test_the_kubernetes_job_starts_a_run_and_resumes_it_until_all_epochs_are_done(
    run_twice: Callable[[str], list[str]], tmp_path: Path
) -> None:
    *_, job = yaml.safe_load_all(KUBERNETES)
    [script] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [train_parameters(line) for line in run_twice(script)] == [NEW, RESUMED]
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
    service, account, role, binding, job = yaml.safe_load_all(KUBERNETES)
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
    """A fresh checkout whose virtual environment also finds the packages of this one.

    So pip only has to install the project itself.
    """
    folder = tmp_path_factory.mktemp("checkout")
    # .gitignore is copied, since hatchling leaves out the files that it matches.
    ignored = shutil.ignore_patterns(".[!g]*", ".git", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=ignored, dirs_exist_ok=True)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    venv.create(folder / ".venv", with_pip=True)
    [site_packages] = (folder / ".venv").glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "ours.pth").write_text("\n".join(ours))
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_first_command_installs_and_trains(checkout: Path, tmp_path: Path) -> None:
    # As on a new machine, where no dataset has been prepared.
    printed = shell(INSTALL_AND_TRAIN, checkout, TFDS_DATA_DIR=str(tmp_path))
    found = re.search(r"^test error (\d\.\d\d) % on mnist(-5k)? after 10 epochs", printed, re.M)
    assert found
    # Single seeds vary: six had 3.1 to 3.9 %, a standard deviation of 0.3.
    assert float(found[1]) <= 4.4
    [run] = (checkout / "runs").iterdir()
    assert (run / "mistakes.png").exists()


@pytest.mark.slow
def test_the_second_command_installs_and_tests(checkout: Path) -> None:
    # The tests themselves are running already; it is enough that it finds some.
    printed = shell(INSTALL_AND_TEST, checkout, PYTEST_ADDOPTS="--collect-only tests/test_names.py")
    assert re.search(r"^=* ?\d+(/\d+)? tests collected", printed, re.M)
