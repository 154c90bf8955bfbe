"""The lecture's epoch against its rivals: `dlc-jax bench lecture` with the same options."""

import sys

from dlc_jax.cli import main

if __name__ == "__main__":
    main(["bench", "lecture", *sys.argv[1:]])
