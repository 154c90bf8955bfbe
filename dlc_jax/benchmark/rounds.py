"""Contenders in processes of their own, asked in turn."""

import contextlib
import importlib.util
import json
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dlc_jax.errors import InputError
from dlc_jax.utils import strict_json

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

    Or several that are one program: each is asked the same, and the first one's answer counts.

    Args:
      name: a module of `dlc_jax.benchmark.contenders`.
      needs: the packages without which it can't run.
      arguments: its command line.
      cores: as how many devices JAX counts the CPU there, in each process.
      processes: how many there are; several are told `--coordinator`, `--processes` and
        `--process`, by which they find each other.
    """

    def __init__(
        self,
        name: str,
        needs: Sequence[str] = (),
        arguments: Sequence[str] = (),
        *,
        cores: int = 1,
        processes: int = 1,
    ) -> None:
        missing = [package for package in needs if importlib.util.find_spec(package) is None]
        if missing:
            raise InputError(
                f"the rival {name!r} needs {', '.join(missing)}, which is not installed; install "
                "it or leave the rival out"
            )
        self.name = name
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", f"dlc_jax.benchmark.contenders.{name}", *arguments, *where],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"JAX_NUM_CPU_DEVICES": str(cores)} | _ENVIRONMENT,
            )
            for where in _places(processes)
        ]

    def ask(self, **request: Any) -> Any:
        """What it answers, once all of its processes have answered.

        Raises:
          InputError: one ended instead; the message holds the last line of its complaint.
        """
        lines = {}
        with selectors.DefaultSelector() as waiting:
            for process in self._processes:
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(strict_json.dumps(request) + "\n")
                    process.stdin.flush()
                waiting.register(process.stdout, selectors.EVENT_READ, process)
            # Whichever is first: one that ended must not be waited for behind one that waits for
            # it. Each answers with a single line, so that none is left in a buffer.
            while waiting.get_map():
                for key, _ in waiting.select():
                    lines[key.data.pid] = self._line(key.data)
                    waiting.unregister(key.fileobj)
        return json.loads(lines[self._processes[0].pid])

    def _line(self, process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            _, complaint = process.communicate()
            last = complaint.strip().splitlines()[-1:] or ["without a word"]
            raise InputError(f"the contender {self.name!r} ended: {last[0]}")
        return line

    def stop(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()


def _places(processes: int) -> list[list[str]]:
    """What each of several processes is told of the others; a single one is told nothing."""
    if processes == 1:
        return [[]]
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        ["--coordinator", address, "--processes", str(processes), "--process", str(process)]
        for process in range(processes)
    ]


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
        print(strict_json.dumps(respond(**json.loads(line))), flush=True)
