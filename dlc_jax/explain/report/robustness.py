"""How a network fails, as pictures and tables."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from dlc_jax.errors import InputError
from dlc_jax.explain import adversarial, fooling
from dlc_jax.explain.adversarial import Attack
from dlc_jax.explain.classifier import View
from dlc_jax.explain.report.context import Named, Subject, Tick, one_by_one, part_of
from dlc_jax.explain.report.html import Picture, Table
from dlc_jax.explain.report.pictures import cells, curves, rows_of_images

Attacks = dict[str, Callable[[View, np.ndarray, np.ndarray], Attack]]

# So many of so many test images are attacked; and how much a pixel may change.
_ATTACKED, _SEARCHED = 50, 1000
_EPSILONS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
_AT_ONCE = 10
_GENERATIONS, _PIECES = 1000, 20


def draw_adversarial(subject: Subject, tick: Tick) -> Iterator[Picture | Table]:
    """Attacks on test images as curves and tables, and on the images as pictures."""
    pixels, labels = _right(subject)
    errors = {}
    for done, (name, attack) in enumerate(_by_epsilon(subject).items(), 1):
        errors[name] = [
            float(attack(subject.view, pixels, labels, epsilon=epsilon).success.mean())
            for epsilon in _EPSILONS
        ]
        tick(0.1 * done)
    yield Picture(
        "adversarial-errors",
        curves(
            np.array(_EPSILONS),
            100 * np.array(list(errors.values())).T,
            list(errors),
            f"Error on {len(pixels)} test images that the network gets right",
            xlabel="largest change of a pixel (epsilon)",
            ylabel="error (%)",
        ),
        "How often the network errs when each pixel may change by at most epsilon, of a range "
        "from 0 to 1: by the sign of the gradient (FGSM), and by many steps along it (PGD).",
    )
    attacks = _attacks(subject, _misleading(errors["PGD"]))
    made = {}
    for done, (name, attack) in enumerate(attacks.items()):
        made[name] = one_by_one(
            partial(attack, subject.view),
            part_of(tick, 0.2 + 0.5 * done / len(attacks), 0.2 + 0.5 * (done + 1) / len(attacks)),
            pixels,
            labels,
            at_once=_AT_ONCE,
        )
    yield _reports(made, len(pixels))
    if subject.other is not None:
        yield _transfer(subject, subject.other, attacks, made, pixels, labels)
    tick(0.8)
    for page, part in subject.pages():
        yield _attacked(part, page, attacks)


def _right(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """The first test images that the network gets right, and their labels."""
    pixels, labels = subject.test_examples(_SEARCHED)
    answers = np.asarray(jax.jit(View.logits)(subject.view, pixels)).argmax(1)
    places = np.flatnonzero(answers == labels)[:_ATTACKED]
    if not len(places):
        raise InputError(
            f"the network gets none of {len(pixels):,} test images right, which could be attacked; "
            "train it longer"
        )
    return pixels[places], labels[places]


def _by_epsilon(subject: Subject) -> dict[str, Any]:
    descent = partial(adversarial.projected_gradient_descent, key=subject.key)
    return {"FGSM": adversarial.fast_gradient_sign, "PGD": descent}


def _misleading(errors: list[float]) -> float:
    """The least epsilon with which an attack misleads the network about every second image."""
    return next(
        (e for e, error in zip(_EPSILONS, errors, strict=True) if error >= 0.5), _EPSILONS[-1]
    )


def _attacks(subject: Subject, epsilon: float) -> Attacks:
    # Half as far in the 2-norm as where every pixel has changed by epsilon.
    radius = epsilon * float(np.sqrt(np.prod(subject.dataset.image_shape))) / 2
    descent = partial(adversarial.projected_gradient_descent, key=subject.key)
    return {
        f"FGSM, {epsilon:g}": partial(adversarial.fast_gradient_sign, epsilon=epsilon),
        f"PGD, {epsilon:g}": partial(descent, epsilon=epsilon),
        f"PGD, 2-norm {radius:.2g}": partial(descent, epsilon=radius, norm="2"),
        "L-BFGS": adversarial.smallest_perturbation,
    }


def _reports(made: dict[str, Attack], count: int) -> Table:
    rows = []
    for name, attack in made.items():
        report = adversarial.report(attack)
        distances = (f"{report.distance_2:.3g}", f"{report.distance_inf:.3g}")
        success, confidence = 100 * report.success_rate, 100 * report.confidence
        rows.append((name, f"{success:.0f} %", *distances, f"{confidence:.0f} %"))
    return Table(
        "adversarial",
        ("attack", "success", "mean 2-norm", "mean largest change", "confidence"),
        rows,
        f"Of {count} test images that the network gets right: how many an attack makes it get "
        "wrong, by how much it changes these on average, and how sure the network then is.",
    )


def _transfer(
    subject: Subject,
    other: Named,
    attacks: Attacks,
    made: dict[str, Attack],
    pixels: np.ndarray,
    labels: np.ndarray,
) -> Table:
    sets: dict[str, Any] = {"unchanged": pixels}
    for name, attack in attacks.items():
        sets[f"{name}, made for this network"] = made[name].pixels
        theirs = one_by_one(
            partial(attack, other.view), lambda _: None, pixels, labels, at_once=_AT_ONCE
        )
        sets[f"{name}, made for {other.name}"] = theirs.pixels
    views = [subject.view, other.view]
    errors = 100 * np.asarray(adversarial.transfer(views, list(sets.values()), labels))
    return Table(
        "adversarial-transfer",
        ("images", "error of this network", f"error of {other.name}"),
        [(name, *(f"{e:.0f} %" for e in row)) for name, row in zip(sets, errors, strict=True)],
        f"How often two networks err on {len(pixels)} test images that this one gets right, and on "
        "the adversarial images that were made for each.",
    )


def _attacked(subject: Subject, page: str, attacks: Attacks) -> Picture:
    pixels, labels = subject.pixels, subject.predictions
    rows, titles = [cells(pixels, "pixels", subject.titles)], ["image"]
    for name, attack in attacks.items():
        images = np.asarray(attack(subject.view, pixels, labels).pixels)
        answers = subject.answers(jax.nn.softmax(subject.view.logits(images)))
        rows += [cells(images, "pixels", answers), cells(images - pixels, "signed")]
        titles += [name.replace(", ", "\n"), "difference"]
    return Picture(
        f"adversarial{page}",
        rows_of_images(rows, "Adversarial images", row_titles=titles),
        "Small changes that make the network answer otherwise. Above each image stands what it is "
        "taken for now; below it, what was changed.",
    )


def draw_fooling(subject: Subject, tick: Tick) -> Iterator[Picture]:
    """Images by gradient ascent and by evolution, and how evolution went."""
    shape = subject.dataset.image_shape
    by_gradient = fooling.by_gradient(
        subject.view, np.arange(len(subject.classes)), key=subject.key, image_shape=shape
    )
    found, histories = {"gradient": np.asarray(by_gradient)}, {}
    tick(0.1)
    for done, encoding in enumerate(("direct", "cppn")):
        images, histories[encoding] = _evolve(
            subject, encoding, part_of(tick, 0.1 + 0.45 * done, 0.55 + 0.45 * done)
        )
        found[encoding] = images[: len(subject.classes)]
    rows = [cells(images, "pixels", subject.confidences(images)) for images in found.values()]
    yield Picture(
        "fooling",
        rows_of_images(
            rows, "Images that are nothing to a person", row_titles=["gradient", *histories]
        ),
        "Above each image stands what the network takes it for, and how sure it is: made by "
        "gradient ascent, and by evolution of pixels (direct) and of pattern-producing networks "
        "(CPPN).",
    )
    yield Picture(
        "fooling-evolution",
        curves(
            np.arange(1, _GENERATIONS + 1),
            np.stack([history.mean(1) for history in histories.values()], 1),
            list(histories),
            "Probability of each class's best image, mean over the classes",
            xlabel="generation",
            ylabel="probability",
            xscale="log",
            ylim=(0, 1.02),
        ),
        "How evolution finds them: generations of mutated images, of which the network picks the "
        "best of each class.",
    )


def _evolve(subject: Subject, encoding: str, tick: Tick) -> tuple[np.ndarray, np.ndarray]:
    """The elites, and each generation's confidences."""
    evolved, history = None, []
    for done in range(_PIECES):
        evolved = fooling.by_evolution(
            subject.view,
            key=subject.key,
            image_shape=subject.dataset.image_shape,
            generations=_GENERATIONS // _PIECES,
            encoding=encoding,
            start=evolved,
        )
        history.append(np.asarray(evolved.history))
        tick((done + 1) / _PIECES)
    assert evolved is not None
    return np.asarray(evolved.elites), np.concatenate(history)
