"""What a trained network sees, and how it fails: pure functions of a network's view and pixels.

A `View` is a network as a function of pixels from 0 to 1. What there is to ask of it:

- `filters`, `saliency`, `deconvnet`, `occlusion`, `class_activation`: what it sees in images;
- `maximisation`, `dream`: what it would like to see (on `ascent`);
- `adversarial`, `fooling`: how it fails.

Functions work under `jit`, `vmap` and `grad`; what they refuse (`checks`), they refuse before they
compute anything. `rectifiers` and `jaxprs` change what happens inside a network without its help.
`gallery` makes pictures, tables and a report of all this.
"""

from dlc_jax.explain.classifier import View

__all__ = ["View"]
