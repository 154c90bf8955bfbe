"""Devices and processes: meshes, arrays on them, and data parallelism."""

from dlc_jax.sharding.mesh import *  # noqa: F403
