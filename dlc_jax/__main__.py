"""`python -m dlc_jax` is `dlc-jax`."""

from dlc_jax.cli import main

if __name__ == "__main__":
    main()
