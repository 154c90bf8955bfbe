"""Training and evaluation as pure functions of a state and of arrays."""

from dlc_jax.losses import cross_entropy
from dlc_jax.training import optimizers
from dlc_jax.training.epoch import evaluate, train_epoch
from dlc_jax.training.fit import EpochReport, fit
from dlc_jax.training.state import TrainState, create_state
from dlc_jax.training.step import Metrics, eval_step, train_step

__all__ = [
    "EpochReport",
    "Metrics",
    "TrainState",
    "create_state",
    "cross_entropy",
    "eval_step",
    "evaluate",
    "fit",
    "optimizers",
    "train_epoch",
    "train_step",
]
