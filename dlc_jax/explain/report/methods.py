"""The methods by name, and how each is drawn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dlc_jax.errors import InputError
from dlc_jax.explain.report import attribution, robustness, synthesis
from dlc_jax.explain.report.context import ExplainContext, ProgressFn
from dlc_jax.explain.report.html import Picture, Table


@dataclass(frozen=True)
class Method:
    """An explanation method.

    Attributes:
      summary: Description and reference.
      draw: Draws its pictures and tables, and reports the progress.
    """

    summary: str
    draw: Callable[[ExplainContext, ProgressFn], Iterator[Picture | Table]]


METHODS: dict[str, Method] = {
    "filters": Method(
        "Filters of the first layer, and feature maps of all stages.", attribution.draw_filters
    ),
    "saliency": Method(
        "Gradients with respect to the pixels, with three rules for rectifiers (Simonyan et al. "
        "2014; Springenberg et al. 2015; Zeiler and Fergus 2014).",
        attribution.draw_saliency,
    ),
    "deconvnet": Method(
        "Images with the strongest activations of feature maps, projected to pixels (Zeiler and "
        "Fergus 2014).",
        attribution.draw_deconvnet,
    ),
    "occlusion": Method(
        "Probability of the predicted class with a part of the image covered (Zeiler and Fergus "
        "2014).",
        attribution.draw_occlusion,
    ),
    "grad-cam": Method("Class activation maps (Selvaraju et al. 2017).", attribution.draw_grad_cam),
    "activation-maximization": Method(
        "Images that maximize the logit of each class (Simonyan et al. 2014).",
        synthesis.draw_activation_maximization,
    ),
    "deep-dream": Method("DeepDream (Mordvintsev et al. 2015).", synthesis.draw_deep_dream),
    "adversarial": Method(
        "Adversarial examples (Szegedy et al. 2014; Goodfellow et al. 2015; Madry et al. 2018).",
        robustness.draw_adversarial,
    ),
    "fooling": Method(
        "Unrecognizable images that are classified with high confidence (Nguyen et al. 2015).",
        robustness.draw_fooling,
    ),
}


def select_methods(name: str) -> list[str]:
    """Returns the names of the methods to draw: one, or all of them for "all".

    Args:
      name: Name of a method, or "all".

    Raises:
      InputError: There is no such method.

    Example:
      >>> select_methods("saliency")
      ['saliency']
    """
    if name == "all":
        return list(METHODS)
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}; choose from all, {', '.join(METHODS)}")
    return [name]
