"""A training run from its configuration to its folder of results."""

from dlc_jax.runs.asking import evaluate, explain, predict, read_images
from dlc_jax.runs.configuration import AnyDataset, configure
from dlc_jax.runs.keeping import Saving
from dlc_jax.runs.results import draw, over_seeds, percent, summarise
from dlc_jax.runs.training import Outcome, follow, reports, resume, train, train_together

__all__ = [
    "AnyDataset",
    "Outcome",
    "Saving",
    "configure",
    "draw",
    "evaluate",
    "explain",
    "follow",
    "over_seeds",
    "percent",
    "predict",
    "read_images",
    "reports",
    "resume",
    "summarise",
    "train",
    "train_together",
]
