"""Training: tasks, states, steps, and the loop around them.

`train_steps` and `evaluate_steps` are pure functions of a task, a state and arrays; `train` is
the loop over epochs, with evaluation and callbacks.
"""

from dlc_jax.training import optimizers
from dlc_jax.training.classification import classification
from dlc_jax.training.divergence import DivergedError, is_finite
from dlc_jax.training.ensemble import Ensemble
from dlc_jax.training.loop import (
    Callback,
    EpochRecord,
    LambdaCallback,
    OutOfMemoryError,
    Progress,
    train,
)
from dlc_jax.training.scan import (
    evaluate,
    evaluate_steps,
    means,
    predict,
    predict_steps,
    train_steps,
)
from dlc_jax.training.state import TrainState, create_state, stack, unstack
from dlc_jax.training.supervised import Supervised
from dlc_jax.training.task import Metrics, Task, WeightedSum

__all__ = [
    "Callback",
    "DivergedError",
    "Ensemble",
    "EpochRecord",
    "LambdaCallback",
    "Metrics",
    "OutOfMemoryError",
    "Progress",
    "Supervised",
    "Task",
    "TrainState",
    "WeightedSum",
    "classification",
    "create_state",
    "evaluate",
    "evaluate_steps",
    "is_finite",
    "means",
    "optimizers",
    "predict",
    "predict_steps",
    "stack",
    "train",
    "train_steps",
    "unstack",
]
