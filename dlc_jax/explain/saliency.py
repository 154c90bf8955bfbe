"""Which pixels a class's logit depends on (Simonyan et al. 2014, section 3).

("Deep inside convolutional networks: visualising image classification models and saliency maps".)
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dlc_jax.data.dataset import AnyArray
from dlc_jax.explain.checks import check_labels
from dlc_jax.explain.classifier import Pixels, View
from dlc_jax.explain.rectifiers import Rule, check_rule, with_rectifiers


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
    check_rule(rule)
    return _gradient(view, jnp.asarray(pixels), jnp.asarray(labels), rule=rule)


@partial(jax.jit, static_argnames="rule")
def _gradient(view: View, pixels: Array, labels: Array, *, rule: Rule) -> Array:
    def total(pixels: Array) -> Array:
        return jnp.take_along_axis(view.logits(pixels), labels[:, None], 1).sum()

    return jax.grad(with_rectifiers(total, rule))(pixels)


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
    check_labels(view, pixels, labels)
    check_rule(rule)
    return _saliency(view, jnp.asarray(pixels), jnp.asarray(labels), rule=rule)


@partial(jax.jit, static_argnames="rule")
def _saliency(view: View, pixels: Array, labels: Array, *, rule: Rule) -> Array:
    return jnp.abs(_gradient(view, pixels, labels, rule=rule)).max(-1)
