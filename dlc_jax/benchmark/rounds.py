"""Contenders in processes of their own, asked in turn."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dlc_jax.errors import InputError

_ENVIRONMENT = {
    # Compiling is measured too.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    # The last line of a complaint should be its reason.
    "JAX_TRACEBACK_FILTERING": "off",
    # The contenders share a GPU's memory.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}

Report = Callable[[str, int, int], None]


class Contender:
    """A process that answers one JSON line on standard output to each on standard input.

    Args:
      name: a module of `dlc_jax.benchmark.contenders`.
      needs: the packages without which it can't run.
      arguments: its command line.
      cores: as how many devices JAX counts the CPU there.
    """

    def __init__(
        self,
        name: str,
        needs: Sequence[str] = (),
        arguments: Sequence[str] = (),
        *,
        cores: int = 1,
    ) -> None:
        missing = [package for package in needs if importlib.util.find_spec(package) is None]
        if missing:
            raise InputError(
                f"the rival {name!r} needs {', '.join(missing)}, which is not installed; install "
                "it or leave the rival out"
            )
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"dlc_jax.benchmark.contenders.{name}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(cores)} | _ENVIRONMENT,
        )

    def ask(self, **request: Any) -> Any:
        """What it answers.

        Raises:
          InputError: it ended instead; the message holds the last line of its complaint.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            _, complaint = self._process.communicate()
            last = complaint.strip().splitlines()[-1:] or ["without a word"]
            raise InputError(f"the contender {self.name!r} ended: {last[0]}")
        return json.loads(line)

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def contenders(
    *factories: Callable[[], Contender],
) -> Iterator[list[Contender]]:
    """Contenders that are stopped whatever happens."""
    with contextlib.ExitStack() as stack:
        started = []
        for factory in factories:
            contender = factory()
            stack.callback(contender.stop)
            started.append(contender)
        yield started


def answer(respond: Callable[..., Any]) -> None:
    """The other side of `Contender`: answers each request until standard input ends.

    Args:
      respond: called with the request's entries as keyword arguments.
    """
    for line in sys.stdin:
        print(json.dumps(respond(**json.loads(line))), flush=True)
