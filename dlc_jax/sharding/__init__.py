"""Devices and processes: meshes, arrays on them, and data parallelism.

The module `processes` connects several processes, on one machine or on many.
"""

from dlc_jax.sharding.data_parallel import data_parallel
from dlc_jax.sharding.mesh import (
    BATCH,
    batch_sharding,
    constrain_batch,
    cpu_mesh,
    device_get,
    device_mesh,
    put_batch,
    replicate,
)

__all__ = [
    "BATCH",
    "batch_sharding",
    "constrain_batch",
    "cpu_mesh",
    "data_parallel",
    "device_get",
    "device_mesh",
    "put_batch",
    "replicate",
]
