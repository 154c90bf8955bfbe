"""Single operations against PyTorch: `dlc-jax bench ops` with the same options."""

import sys

from dlc_jax.cli import main

if __name__ == "__main__":
    main(["bench", "ops", *sys.argv[1:]])
