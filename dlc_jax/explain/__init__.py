"""Explanations of trained networks, one module per method.

All methods are pure functions of an `ImageClassifier` and pixels from 0 to 1:

- on given images: `filters`, `saliency`, `deconvnet`, `occlusion`, `grad_cam`;
- images made by gradient ascent: `activation_maximization`, `deep_dream`;
- robustness: `adversarial`, `fooling`.

They work inside `jax.jit`, and check their arguments before they compute anything. `explain_run`
writes pictures, tables and an HTML report (see `report`).
"""

from dlc_jax.explain.classifier import ImageClassifier
from dlc_jax.explain.explain_run import explain_run

__all__ = ["ImageClassifier", "explain_run"]
