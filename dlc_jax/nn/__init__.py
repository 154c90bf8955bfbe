"""Layers and losses for Flax NNX networks."""

from dlc_jax.nn.buffer import Buffer
from dlc_jax.nn.layers import (
    BatchNorm,
    Conv,
    Dropout,
    Linear,
    PooledConv,
    PReLU,
    adaptive_avg_pool,
    ceil_mode_padding,
    flatten,
    gelu,
    local_response_norm,
    set_example_weights,
)
from dlc_jax.nn.losses import (
    cross_entropy,
    log_mean_softmax,
    misclassification_log_odds,
    misclassified,
)

__all__ = [
    "BatchNorm",
    "Buffer",
    "Conv",
    "Dropout",
    "Linear",
    "PReLU",
    "PooledConv",
    "adaptive_avg_pool",
    "ceil_mode_padding",
    "cross_entropy",
    "flatten",
    "gelu",
    "local_response_norm",
    "log_mean_softmax",
    "misclassification_log_odds",
    "misclassified",
    "set_example_weights",
]
