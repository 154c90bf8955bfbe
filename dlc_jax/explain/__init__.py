"""What a trained network sees, and how it fails: pure functions of a network's view and pixels."""

from dlc_jax.explain.view import View

__all__ = ["View"]
