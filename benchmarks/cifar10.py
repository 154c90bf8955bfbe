"""Time to an accuracy on CIFAR-10: `dlc-jax bench cifar10` with the same options."""

import sys

from dlc_jax.cli import main

if __name__ == "__main__":
    main(["bench", "cifar10", *sys.argv[1:]])
