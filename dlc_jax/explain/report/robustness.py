"""Pictures and tables of adversarial examples and fooling images."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from dlc_jax.errors import InputError
from dlc_jax.explain import adversarial, fooling
from dlc_jax.explain.adversarial import AttackResult
from dlc_jax.explain.classifier import ImageClassifier
from dlc_jax.explain.report.context import (
    ExplainContext,
    NamedClassifier,
    ProgressFn,
    map_batches,
    subprogress,
)
from dlc_jax.explain.report.html import Picture, Table
from dlc_jax.explain.report.pictures import image_grid, image_row, line_plot

# Attacks by name, as functions of a classifier, pixels and labels.
Attacks: TypeAlias = dict[str, Callable[[ImageClassifier, np.ndarray, np.ndarray], AttackResult]]

# Images to attack: the first that are classified correctly, of the first test images.
_MAX_ATTACKED, _TEST_IMAGES, _BATCH_SIZE = 50, 1000, 10
_EPSILONS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
_GENERATIONS, _PROGRESS_UPDATES = 1000, 20


def draw_adversarial(context: ExplainContext, progress: ProgressFn) -> Iterator[Picture | Table]:
    """Draws attacks on test images as curves and tables, and attacks on the given images."""
    pixels, labels = _correctly_classified(context)
    errors = _errors_by_epsilon(context, pixels, labels, subprogress(progress, 0, 0.2))
    yield Picture(
        "adversarial-errors",
        line_plot(
            np.array(_EPSILONS),
            100 * np.array(list(errors.values())).T,
            list(errors),
            f"Error on {len(pixels)} correctly classified test images",
            xlabel="largest change of a pixel (epsilon)",
            ylabel="error (%)",
        ),
        "Error of the network if each pixel, from 0 to 1, may change by at most epsilon: with the "
        "fast gradient sign method (FGSM) and projected gradient descent (PGD).",
    )
    attacks = _attacks(context, _half_error_epsilon(errors["PGD"]))
    results = {}
    for done, (name, attack) in enumerate(attacks.items()):
        start, end = (0.2 + 0.5 * count / len(attacks) for count in (done, done + 1))
        results[name] = map_batches(
            partial(attack, context.classifier),
            pixels,
            labels,
            batch_size=_BATCH_SIZE,
            progress=subprogress(progress, start, end),
        )
    yield _attack_table(results, len(pixels))
    if context.transfer is not None:
        yield _transfer_table(context, context.transfer, attacks, results, pixels, labels)
    progress(0.8)
    for suffix, page in context.pages():
        yield _attack_picture(page, suffix, attacks)


def _correctly_classified(context: ExplainContext) -> tuple[np.ndarray, np.ndarray]:
    """The first test images that are classified correctly, and their labels."""
    pixels, labels = context.test_examples(_TEST_IMAGES)
    predictions = np.asarray(context.classifier.logits(pixels)).argmax(1)
    indices = np.flatnonzero(predictions == labels)[:_MAX_ATTACKED]
    if not len(indices):
        raise InputError(
            f"the network misclassifies all of {len(pixels):,} test images, so that none can be "
            "attacked; train it longer"
        )
    return pixels[indices], labels[indices]


def _errors_by_epsilon(
    context: ExplainContext, pixels: np.ndarray, labels: np.ndarray, progress: ProgressFn
) -> dict[str, list[float]]:
    attacks: dict[str, Any] = {
        "FGSM": adversarial.fast_gradient_sign,
        "PGD": partial(adversarial.projected_gradient_descent, key=context.key),
    }
    errors = {}
    for done, (name, attack) in enumerate(attacks.items(), 1):
        errors[name] = [
            float(attack(context.classifier, pixels, labels, epsilon=epsilon).success.mean())
            for epsilon in _EPSILONS
        ]
        progress(done / len(attacks))
    return errors


def _half_error_epsilon(errors: list[float]) -> float:
    """The smallest epsilon with an error of at least one half."""
    epsilons = (e for e, error in zip(_EPSILONS, errors, strict=True) if error >= 0.5)
    return next(epsilons, _EPSILONS[-1])


def _attacks(context: ExplainContext, epsilon: float) -> Attacks:
    # Half of the Euclidean norm of a change of every pixel by epsilon.
    radius = epsilon * float(np.sqrt(np.prod(context.dataset.image_shape))) / 2
    pgd = partial(adversarial.projected_gradient_descent, key=context.key)
    return {
        f"FGSM, {epsilon:g}": partial(adversarial.fast_gradient_sign, epsilon=epsilon),
        f"PGD, {epsilon:g}": partial(pgd, epsilon=epsilon),
        f"PGD, 2-norm {radius:.2g}": partial(pgd, epsilon=radius, norm="2"),
        "L-BFGS": adversarial.lbfgs_attack,
    }


def _attack_table(results: dict[str, AttackResult], count: int) -> Table:
    rows = []
    for name, result in results.items():
        summary = adversarial.summarize_attack(result)
        distances = f"{summary.l2_distance:.3g}", f"{summary.linf_distance:.3g}"
        success, confidence = 100 * summary.success_rate, 100 * summary.confidence
        rows.append((name, f"{success:.0f} %", *distances, f"{confidence:.0f} %"))
    return Table(
        "adversarial",
        ("attack", "success", "mean 2-norm", "mean largest change", "confidence"),
        rows,
        f"Attacks on {count} correctly classified test images: success rate and, over the images "
        "on which an attack succeeds, the mean size of the perturbation and the mean confidence.",
    )


def _transfer_table(
    context: ExplainContext,
    other: NamedClassifier,
    attacks: Attacks,
    results: dict[str, AttackResult],
    pixels: np.ndarray,
    labels: np.ndarray,
) -> Table:
    sets: dict[str, Any] = {"unchanged": pixels}
    for name, attack in attacks.items():
        sets[f"{name}, made for this network"] = results[name].pixels
        other_attack = partial(attack, other.classifier)
        other_result = map_batches(other_attack, pixels, labels, batch_size=_BATCH_SIZE)
        sets[f"{name}, made for {other.name}"] = other_result.pixels
    classifiers = [context.classifier, other.classifier]
    errors = 100 * np.asarray(adversarial.transfer_errors(classifiers, list(sets.values()), labels))
    return Table(
        "adversarial-transfer",
        ("images", "error of this network", f"error of {other.name}"),
        [(name, *(f"{e:.0f} %" for e in row)) for name, row in zip(sets, errors, strict=True)],
        f"Errors of two networks on {len(pixels)} test images that this one classifies correctly, "
        "and on adversarial examples made for each network.",
    )


def _attack_picture(context: ExplainContext, suffix: str, attacks: Attacks) -> Picture:
    pixels, labels = context.pixels, context.predictions
    rows, titles = [image_row(pixels, "pixels", context.titles)], ["image"]
    for name, attack in attacks.items():
        images = np.asarray(attack(context.classifier, pixels, labels).pixels)
        predictions = context.prediction_titles(context.classifier.probabilities(images))
        rows += [image_row(images, "pixels", predictions), image_row(images - pixels, "signed")]
        titles += [name.replace(", ", "\n"), "difference"]
    return Picture(
        f"adversarial{suffix}",
        image_grid(rows, "Adversarial examples", row_titles=titles),
        "Small perturbations that change the prediction. Above each image: its prediction; below "
        "it: the perturbation.",
    )


def draw_fooling(context: ExplainContext, progress: ProgressFn) -> Iterator[Picture]:
    """Draws fooling images by gradient ascent and by evolution, and the course of evolution."""
    num_classes = len(context.class_names)
    images = {
        "gradient": np.asarray(
            fooling.fooling_images_by_gradient(
                context.classifier,
                np.arange(num_classes),
                key=context.key,
                image_shape=context.dataset.image_shape,
            )
        )
    }
    histories = {}
    progress(0.1)
    encodings: tuple[fooling.EncodingName, ...] = ("direct", "cppn")
    for done, encoding in enumerate(encodings):
        part = subprogress(progress, 0.1 + 0.45 * done, 0.55 + 0.45 * done)
        elites, histories[encoding] = _evolve(context, encoding, part)
        images[encoding] = elites[:num_classes]
    rows = [image_row(each, "pixels", context.class_titles(each)) for each in images.values()]
    yield Picture(
        "fooling",
        image_grid(rows, "Fooling images", row_titles=["gradient", *histories]),
        "Unrecognizable images, with their class and the network's confidence above: made by "
        "gradient ascent, and by evolution of pixels (direct) and of compositional "
        "pattern-producing networks (CPPN).",
    )
    yield Picture(
        "fooling-evolution",
        line_plot(
            np.arange(1, _GENERATIONS + 1),
            np.stack([history.mean(1) for history in histories.values()], 1),
            list(histories),
            "Confidence of each class's best image, mean over the classes",
            xlabel="generation",
            ylabel="confidence",
            xscale="log",
            ylim=(0, 1.02),
        ),
        "Course of evolution: mean confidence of the best images after each generation.",
    )


def _evolve(
    context: ExplainContext, encoding: fooling.EncodingName, progress: ProgressFn
) -> tuple[np.ndarray, np.ndarray]:
    """The best images, and the confidences after each generation."""
    result, history = None, []
    for done in range(_PROGRESS_UPDATES):
        result = fooling.fooling_images_by_evolution(
            context.classifier,
            key=context.key,
            image_shape=context.dataset.image_shape,
            generations=_GENERATIONS // _PROGRESS_UPDATES,
            encoding=encoding,
            resume_from=result,
        )
        history.append(np.asarray(result.history))
        progress((done + 1) / _PROGRESS_UPDATES)
    assert result is not None
    return np.asarray(result.images), np.concatenate(history)
