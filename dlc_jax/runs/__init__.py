"""Runs: a recipe trained on a dataset; its folder has configuration, checkpoints and results."""

from dlc_jax.runs.callbacks import CheckpointOptions, RunOptions
from dlc_jax.runs.checkpoint import CheckpointCallback, CheckpointManager
from dlc_jax.runs.config import AnyDataset, RunConfig, configure
from dlc_jax.runs.evaluate import evaluate
from dlc_jax.runs.folder import Run
from dlc_jax.runs.predict import predict
from dlc_jax.runs.recipe import Recipe
from dlc_jax.runs.seeds import train_seeds
from dlc_jax.runs.summary import seed_statistics
from dlc_jax.runs.train import TrainResult, resume, train, train_vmapped

__all__ = [
    "AnyDataset",
    "CheckpointCallback",
    "CheckpointManager",
    "CheckpointOptions",
    "Recipe",
    "Run",
    "RunConfig",
    "RunOptions",
    "TrainResult",
    "configure",
    "evaluate",
    "predict",
    "resume",
    "seed_statistics",
    "train",
    "train_seeds",
    "train_vmapped",
]
