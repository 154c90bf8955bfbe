"""The methods by name, each as pictures and tables of a subject."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dlc_jax.errors import InputError
from dlc_jax.explain.report import attribution as seeing
from dlc_jax.explain.report import robustness as failing
from dlc_jax.explain.report import synthesis as imagining
from dlc_jax.explain.report.context import Subject, Tick
from dlc_jax.explain.report.html import Picture, Table


@dataclass(frozen=True)
class Method:
    """A way of looking into a network.

    Attributes:
      summary: what it shows, and whose it is.
      draw: makes its pictures and tables, and calls its second argument with the fraction that
        is done.
    """

    summary: str
    draw: Callable[[Subject, Tick], Iterator[Picture | Table]]


METHODS: dict[str, Method] = {
    "filters": Method(
        "The first layer's filters, and every stage's feature maps.", seeing.draw_filters
    ),
    "saliency": Method(
        "Gradients by pixel, three ways (Simonyan et al. 2014; Springenberg et al. 2015; Zeiler "
        "and Fergus 2014).",
        seeing.draw_saliency,
    ),
    "deconvnet": Method(
        "What excites feature maps most (Zeiler and Fergus 2014).", seeing.draw_deconvnet
    ),
    "occlusion": Method(
        "What a grey square hides (Zeiler and Fergus 2014).", seeing.draw_occlusion
    ),
    "grad-cam": Method("Class activation maps (Selvaraju et al. 2017).", seeing.draw_grad_cam),
    "maximise": Method("An image for each class (Simonyan et al. 2014).", imagining.draw_maximised),
    "dream": Method("Deep Dream (Mordvintsev et al. 2015).", imagining.draw_dreams),
    "adversarial": Method(
        "Small changes that mislead (Szegedy et al. 2014; Goodfellow et al. 2015; Madry et al. "
        "2018).",
        failing.draw_adversarial,
    ),
    "fooling": Method(
        "Nothing to a person, and something for sure to the network (Nguyen et al. 2015).",
        failing.draw_fooling,
    ),
}


def find(name: str) -> list[str]:
    """The methods called `name`: one, or every one for "all".

    Raises:
      InputError: there is none of that name.
    """
    if name == "all":
        return list(METHODS)
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}; choose from all, {', '.join(METHODS)}")
    return [name]
