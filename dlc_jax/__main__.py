"""`python -m dlc_jax` runs `dlc-jax`."""

from dlc_jax.cli import main

if __name__ == "__main__":
    main()
