"""Saliency maps (Simonyan et al. 2014, section 3).

"Deep inside convolutional networks: visualising image classification models and saliency maps".
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dlc_jax.explain.argument_checks import check_labels
from dlc_jax.explain.classifier import ImageClassifier, Pixels
from dlc_jax.explain.relu_rules import ReluRule, check_relu_rule, override_relu_gradient
from dlc_jax.typing import AnyArray


def input_gradient(
    classifier: ImageClassifier,
    pixels: Pixels,
    labels: Int[AnyArray, " batch"],
    *,
    rule: ReluRule = "gradient",
) -> Float[Array, "batch height width channels"]:
    """Computes the gradient of each label's logit with respect to the image's pixels.

    With the rule "guided" it is guided backpropagation (Springenberg et al. 2015, "Striving for
    simplicity: the all convolutional net", section 3.4).

    Args:
      classifier: The classifier.
      pixels: Images with pixels from 0 to 1.
      labels: Classes to explain.
      rule: Backward pass of rectifiers; see `relu_rules.override_relu_gradient`.

    Returns:
      Gradients, in units of the logit for a change of a pixel by 1.

    Raises:
      InputError: Pixels or labels do not match the network, or there is no such rule.

    Example:
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> pixels = np.zeros((2, 8, 8, 1))
      >>> input_gradient(tiny_classifier(), pixels, np.array([0, 2]), rule="guided").shape
      (2, 8, 8, 1)
    """
    check_labels(classifier, pixels, labels)
    check_relu_rule(rule)
    return _input_gradient(classifier, jnp.asarray(pixels), jnp.asarray(labels), rule=rule)


@partial(jax.jit, static_argnames="rule")
def _input_gradient(
    classifier: ImageClassifier, pixels: Array, labels: Array, *, rule: ReluRule
) -> Array:
    def label_logits(pixels: Array) -> Array:
        return jnp.take_along_axis(classifier.logits(pixels), labels[:, None], 1).sum()

    return jax.grad(override_relu_gradient(label_logits, rule))(pixels)


def saliency_map(
    classifier: ImageClassifier,
    pixels: Pixels,
    labels: Int[AnyArray, " batch"],
    *,
    rule: ReluRule = "gradient",
) -> Float[Array, "batch height width"]:
    """Computes the absolute input gradient, the largest of each pixel's channels (section 3.1).

    Args:
      classifier: The classifier.
      pixels: Images with pixels from 0 to 1.
      labels: Classes to explain.
      rule: Backward pass of rectifiers; the paper's is "gradient".

    Returns:
      Saliency maps, in units of the logit for a change of a pixel by 1.

    Raises:
      InputError: See `input_gradient`.

    Example:
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> saliency_map(tiny_classifier(), np.zeros((2, 8, 8, 1)), np.array([0, 2])).shape
      (2, 8, 8)
    """
    check_labels(classifier, pixels, labels)
    check_relu_rule(rule)
    return _saliency_map(classifier, jnp.asarray(pixels), jnp.asarray(labels), rule=rule)


@partial(jax.jit, static_argnames="rule")
def _saliency_map(
    classifier: ImageClassifier, pixels: Array, labels: Array, *, rule: ReluRule
) -> Array:
    return jnp.abs(_input_gradient(classifier, pixels, labels, rule=rule)).max(-1)
