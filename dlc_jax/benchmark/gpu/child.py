"""One part of the GPU's benchmark, in a process of its own."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from dlc_jax.benchmark import machine
from dlc_jax.benchmark.gpu.part import Settings
from dlc_jax.errors import one_line
from dlc_jax.utils import strict_json
from dlc_jax.utils.files import write_atomically


def main() -> None:
    """Measures a part, and writes what it has found as often as there is something new."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--function", required=True, help="as module:name")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    settings = Settings(arguments.folder, arguments.seconds, arguments.rehearse, arguments.profile)
    described = machine.describe()
    found: dict[str, Any] = {}

    def keep(results: dict[str, Any]) -> None:
        found.update(results)
        text = strict_json.dumps({"machine": described, "results": found})
        write_atomically(arguments.results, text.encode())

    module, name = arguments.function.split(":")
    keep({})
    try:
        getattr(importlib.import_module(f"dlc_jax.benchmark.gpu.{module}"), name)(settings, keep)
    except Exception as error:
        keep({"failed": f"{type(error).__name__}: {one_line(error)}"})
        raise


if __name__ == "__main__":
    main()
