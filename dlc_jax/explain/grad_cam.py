"""Grad-CAM (Selvaraju et al. 2017).

"Grad-CAM: visual explanations from deep networks via gradient-based localization". For a network
that ends with global average pooling and a linear layer it is the class activation map of Zhou et
al. 2016 ("Learning deep features for discriminative localization"), divided by the number of
positions and rectified.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Var
from jaxtyping import Float, Int

from dlc_jax.explain import jaxpr_interpreter
from dlc_jax.explain.argument_checks import check_labels, check_spatial_stage
from dlc_jax.explain.classifier import ImageClassifier, Pixels
from dlc_jax.typing import AnyArray


def grad_cam(
    classifier: ImageClassifier, pixels: Pixels, labels: Int[AnyArray, " batch"], stage: str
) -> Float[Array, "batch height width"]:
    """Computes class activation maps, rectified weighted sums of a stage's maps (section 3).

    The weight of a map is the mean over its positions of the gradient of the label's logit
    (equation 1); the negative part of the sum is set to zero (equation 2).

    Args:
      classifier: The classifier.
      pixels: Images with pixels from 0 to 1.
      labels: Classes to explain.
      stage: Name of a stage with feature maps; the paper uses the last one.

    Returns:
      Class activation maps, resized to the images bilinearly; non-negative, in units of the logit.

    Raises:
      InputError: Pixels or labels do not match the network, or it has no such stage with feature
        maps.

    Example:
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> grad_cam(tiny_classifier(), np.zeros((2, 8, 8, 1)), np.array([0, 2]), "conv").shape
      (2, 8, 8)
    """
    image_shape = check_labels(classifier, pixels, labels)
    check_spatial_stage(classifier, image_shape, stage)
    return _grad_cam(classifier, jnp.asarray(pixels), jnp.asarray(labels), stage=stage)


@partial(jax.jit, static_argnames="stage")
def _grad_cam(classifier: ImageClassifier, pixels: Array, labels: Array, *, stage: str) -> Array:
    activations, gradients = _activations_and_gradients(classifier, pixels, labels, stage)
    weights = gradients.mean((1, 2))
    heatmaps = jax.nn.relu(jnp.einsum("bhwm,bm->bhw", activations, weights))
    return jax.image.resize(heatmaps, pixels.shape[:3], "bilinear")


def _activations_and_gradients(
    classifier: ImageClassifier, pixels: Array, labels: Array, stage: str
) -> tuple[Float[Array, "batch rows columns maps"], Float[Array, "batch rows columns maps"]]:
    """A stage's activations, and the gradients of the labels' logits with respect to them."""
    closed, args, structure = jaxpr_interpreter.trace(classifier.stages_inline, pixels)
    variables = jax.tree.unflatten(structure, closed.jaxpr.outvars)

    # The gradient with respect to zeros that are added to the stage's variable in the jaxpr.
    def label_logits(perturbation: Array) -> tuple[Array, Array]:
        def replace(variable: Var, value: Any, read: Any) -> Any:
            del read
            return value + perturbation if variable is variables[stage] else value

        results = jaxpr_interpreter.eval_jaxpr(closed, args, replace=replace)
        stages = jax.tree.unflatten(structure, results)
        logits = jnp.take_along_axis(stages["logits"], labels[:, None], 1)
        return logits.sum(), stages[stage]

    aval = variables[stage].aval
    zeros = jnp.zeros(aval.shape, aval.dtype)
    gradients, activations = jax.grad(label_logits, has_aux=True)(zeros)
    return activations, gradients
