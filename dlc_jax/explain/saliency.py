"""Which pixels a class's logit depends on (Simonyan et al. 2014, section 3).

("Deep inside convolutional networks: visualising image classification models and saliency maps".)
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dlc_jax.data.examples import AnyArray
from dlc_jax.explain.checks import check_labels
from dlc_jax.explain.rectifiers import Rule, with_rectifiers
from dlc_jax.explain.view import Pixels, View


def gradient(
    view: View, pixels: Pixels, labels: Int[AnyArray, " batch"], *, rule: Rule = "gradient"
) -> Float[Array, "batch height width channels"]:
    """The gradient of each image's logit of its label with respect to its pixels.

    Args:
      view: the network.
      pixels: the images, from 0 to 1.
      labels: the classes asked for.
      rule: what passes back through rectifiers; see `rectifiers.with_rectifiers`.

    Returns:
      By how much the logit grows, to first order, for each unit by which a pixel does.

    Raises:
      InputError: pixels or labels do not suit the network, or there is no such rule.
    """
    check_labels(view, pixels, labels)

    def total(pixels: Array) -> Array:
        return jnp.take_along_axis(view.logits(pixels), jnp.asarray(labels)[:, None], 1).sum()

    return jax.grad(with_rectifiers(total, rule))(jnp.asarray(pixels))


def saliency(
    view: View, pixels: Pixels, labels: Int[AnyArray, " batch"], *, rule: Rule = "gradient"
) -> Float[Array, "batch height width"]:
    """The gradient's absolute value, the largest of a pixel's channels.

    Args:
      view: the network.
      pixels: the images, from 0 to 1.
      labels: the classes asked for.
      rule: what passes back through rectifiers; the paper's is "gradient".

    Raises:
      InputError: see `gradient`.
    """
    return jnp.abs(gradient(view, pixels, labels, rule=rule)).max(-1)
