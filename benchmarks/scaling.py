"""Throughput by devices and processes: `dlc-jax bench scaling` with the same options."""

import sys

from dlc_jax.cli import main

if __name__ == "__main__":
    main(["bench", "scaling", *sys.argv[1:]])
