"""Import and first training step: `dlc-jax bench startup` with the same options."""

import sys

from dlc_jax.cli import main

if __name__ == "__main__":
    main(["bench", "startup", *sys.argv[1:]])
