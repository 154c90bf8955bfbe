"""Training and evaluation as pure functions of a state and of arrays."""

from dlc_jax.nn.losses import cross_entropy
from dlc_jax.training import optimizers
from dlc_jax.training.epoch import (
    changes_of_epoch,
    evaluate,
    evaluate_ensemble,
    train_batch,
    train_ensemble,
    train_epoch,
)
from dlc_jax.training.fit import Diverged, EpochReport, NoRoom, fit, fit_ensemble
from dlc_jax.training.programs import evaluate_records
from dlc_jax.training.state import TrainState, create_state, stack, unstack
from dlc_jax.training.step import Metrics, couples_examples, eval_step, train_step

__all__ = [
    "Diverged",
    "EpochReport",
    "Metrics",
    "NoRoom",
    "TrainState",
    "changes_of_epoch",
    "couples_examples",
    "create_state",
    "cross_entropy",
    "eval_step",
    "evaluate",
    "evaluate_ensemble",
    "evaluate_records",
    "fit",
    "fit_ensemble",
    "optimizers",
    "stack",
    "train_batch",
    "train_ensemble",
    "train_epoch",
    "train_step",
    "unstack",
]
