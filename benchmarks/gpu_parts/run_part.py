"""Runs a part of the GPU benchmark in its own process."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from harness import machine

from dlc_jax.errors import one_line
from dlc_jax.utils import strict_json
from dlc_jax.utils.files import write_atomically
from gpu_parts.settings import Settings


def main() -> None:
    """Measures a part, and writes its results whenever there are new ones."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--function", required=True, help="module:name")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    settings = Settings(arguments.folder, arguments.seconds, arguments.rehearse, arguments.profile)
    description = machine.describe()
    all_results: dict[str, Any] = {}

    def save(results: dict[str, Any]) -> None:
        all_results.update(results)
        text = strict_json.dumps({"machine": description, "results": all_results})
        write_atomically(arguments.results, text.encode())

    module, name = arguments.function.split(":")
    save({})
    try:
        getattr(importlib.import_module(f"gpu_parts.{module}"), name)(settings, save)
    except Exception as error:
        save({"failed": f"{type(error).__name__}: {one_line(error)}"})
        raise


if __name__ == "__main__":
    main()
