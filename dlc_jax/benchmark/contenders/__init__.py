"""The programs that are compared, each run as a process by `dlc_jax.benchmark.rounds`."""
