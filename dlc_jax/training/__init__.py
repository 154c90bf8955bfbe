"""Training and evaluation as pure functions of a state and of arrays."""

from dlc_jax.losses import cross_entropy
from dlc_jax.training import optimizers
from dlc_jax.training.epoch import evaluate, evaluate_ensemble, train_ensemble, train_epoch
from dlc_jax.training.fit import EpochReport, NoRoom, fit, fit_ensemble
from dlc_jax.training.state import TrainState, create_state, stack, unstack
from dlc_jax.training.step import Metrics, couples_examples, eval_step, train_step

__all__ = [
    "EpochReport",
    "Metrics",
    "NoRoom",
    "TrainState",
    "couples_examples",
    "create_state",
    "cross_entropy",
    "eval_step",
    "evaluate",
    "evaluate_ensemble",
    "fit",
    "fit_ensemble",
    "optimizers",
    "stack",
    "train_ensemble",
    "train_epoch",
    "train_step",
    "unstack",
]
