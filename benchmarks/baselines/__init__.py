"""The programs that are compared, dlc_jax's own among them; each runs in a worker process."""
