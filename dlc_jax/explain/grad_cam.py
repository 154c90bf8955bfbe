"""Where the feature maps that speak for a class answer: Grad-CAM (Selvaraju et al. 2017).

("Grad-CAM: visual explanations from deep networks via gradient-based localization".) Where global
averages of the maps are all that a linear classifier reads, it is the class activation map of Zhou
et al. 2016 ("Learning deep features for discriminative localization"), divided by the number of
positions.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Var
from jaxtyping import Float, Int

from dlc_jax.data.dataset import AnyArray
from dlc_jax.explain import jaxprs
from dlc_jax.explain.checks import check_labels, check_spatial_stage
from dlc_jax.explain.classifier import Pixels, View


def grad_cam(
    view: View, pixels: Pixels, labels: Int[AnyArray, " batch"], stage: str
) -> Float[Array, "batch height width"]:
    """A stage's feature maps, weighted by how much they speak for a class (section 3).

    The weight of a map is the mean over its positions of the logit's gradient (equation 1), and
    of the weighted sum the negative part is set to zero (equation 2).

    Args:
      view: the network.
      pixels: the images, from 0 to 1.
      labels: the classes asked for.
      stage: whose feature maps; the paper's is the last with positions.

    Returns:
      The sum resized to the images, bilinearly; non-negative, in units of the logit.

    Raises:
      InputError: pixels or labels do not suit the network, or it has no such stage with feature
        maps.
    """
    image_shape = check_labels(view, pixels, labels)
    check_spatial_stage(view, image_shape, stage)
    return _grad_cam(view, jnp.asarray(pixels), jnp.asarray(labels), stage=stage)


@partial(jax.jit, static_argnames="stage")
def _grad_cam(view: View, pixels: Array, labels: Array, *, stage: str) -> Array:
    activations, gradients = _at_stage(view, pixels, labels, stage)
    weights = gradients.mean((1, 2))
    heat = jax.nn.relu(jnp.einsum("bhwm,bm->bhw", activations, weights))
    return jax.image.resize(heat, pixels.shape[:3], "bilinear")


def _at_stage(
    view: View, pixels: Array, labels: Array, stage: str
) -> tuple[Float[Array, "batch rows columns maps"], Float[Array, "batch rows columns maps"]]:
    """A stage's activations, and the gradient of the labels' logits with respect to them."""
    closed, args, structure = jaxprs.trace(view.traced_stages, pixels)
    by_name = jax.tree.unflatten(structure, closed.jaxpr.outvars)

    # A view only shows a stage. What the rest of the network makes of another value is asked by
    # adding to the stage's variable, where the equations that follow read it.
    def logits(added: Array) -> tuple[Array, Array]:
        def change(variable: Var, value: Any, read: Any) -> Any:
            del read
            return value + added if variable is by_name[stage] else value

        results = jaxprs.evaluate(closed, args, change=change)
        stages = jax.tree.unflatten(structure, results)
        of_labels = jnp.take_along_axis(stages["logits"], labels[:, None], 1)
        return of_labels.sum(), stages[stage]

    aval = by_name[stage].aval
    gradients, activations = jax.grad(logits, has_aux=True)(jnp.zeros(aval.shape, aval.dtype))
    return activations, gradients
