"""Programs in worker processes, which take turns."""

import contextlib
import importlib.util
import json
import selectors
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dlc_jax.errors import InputError
from dlc_jax.utils import strict_json
from harness.command import module_environment

_ENVIRONMENT = {
    # Compilation is measured too.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    # So that the last line of an error is its reason.
    "JAX_TRACEBACK_FILTERING": "off",
    # The workers share a GPU's memory.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


class Worker:
    """A process that answers each line of JSON on standard input with one on standard output.

    Several processes can form one worker: all get the same request, and the first one's response
    is returned.

    Args:
      module: Name of a module of `baselines`.
      requires: Packages without which it can't run.
      arguments: Its command line.
      devices: Number of CPU devices in each process.
      processes: Number of processes. If there are several, they find each other by the arguments
        `--coordinator`, `--processes` and `--process`.

    Raises:
      InputError: A package is not installed.
    """

    def __init__(
        self,
        module: str,
        requires: Sequence[str] = (),
        arguments: Sequence[str] = (),
        *,
        devices: int = 1,
        processes: int = 1,
    ) -> None:
        missing = [package for package in requires if importlib.util.find_spec(package) is None]
        if missing:
            raise InputError(
                f"the baseline {module!r} needs {', '.join(missing)}, which is not installed; "
                "install it or leave the baseline out"
            )
        self.module = module
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", f"baselines.{module}", *arguments, *rank],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=module_environment(JAX_NUM_CPU_DEVICES=str(devices), **_ENVIRONMENT),
            )
            for rank in _rank_arguments(processes)
        ]

    def request(self, **request: Any) -> Any:
        """Sends a request and returns the response, once all processes have responded.

        Raises:
          InputError: A process ended; the message holds the last line of its error.
        """
        lines = {}
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(strict_json.dumps(request) + "\n")
                    process.stdin.flush()
                selector.register(process.stdout, selectors.EVENT_READ, process)
            # Responses are read in any order: if a process has ended, others may wait for it
            # forever. A response is a single line, so nothing stays in a buffer.
            while selector.get_map():
                for key, _ in selector.select():
                    lines[key.data.pid] = self._read_line(key.data)
                    selector.unregister(key.fileobj)
        return json.loads(lines[self._processes[0].pid])

    def _read_line(self, process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            _, errors = process.communicate()
            last = errors.strip().splitlines()[-1:] or ["no error message"]
            raise InputError(f"the baseline {self.module!r} ended: {last[0]}")
        return line

    def stop(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()


def _rank_arguments(processes: int) -> list[list[str]]:
    """Arguments by which several processes find each other; none for a single process."""
    if processes == 1:
        return [[]]
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        ["--coordinator", address, "--processes", str(processes), "--process", str(process)]
        for process in range(processes)
    ]


@contextlib.contextmanager
def running(*factories: Callable[[], Worker]) -> Iterator[list[Worker]]:
    """Starts workers, and stops them when the context ends."""
    with contextlib.ExitStack() as stack:
        workers = []
        for factory in factories:
            worker = factory()
            stack.callback(worker.stop)
            workers.append(worker)
        yield workers


def serve(respond: Callable[..., Any]) -> None:
    """Responds to requests of a `Worker`, in its process, until standard input ends.

    Args:
      respond: Called with the request's entries as keyword arguments; returns the response.
    """
    for line in sys.stdin:
        print(strict_json.dumps(respond(**json.loads(line))), flush=True)
