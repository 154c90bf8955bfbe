"""Results of scaling as lines to read, as a file with pictures, and as a page of Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlc_jax.benchmark import machine
from dlc_jax.benchmark.interconnect import (
    ACCELERATORS,
    FRACTION_OF_PEAK,
    LINKS,
    Link,
    here,
    ring_all_reduce_seconds,
)
from dlc_jax.benchmark.scaling import NETWORKS
from dlc_jax.cli.progress import table
from dlc_jax.errors import InputError
from dlc_jax.runs import plots
from dlc_jax.utils.files import write_atomically

# Nobody joins more for such networks; by then a ring is no longer the algorithm to take either.
_MOST = 10_000
_EXAMPLE = ("resnet50", "1gbe")
_HOW = {"weak": "a batch of {} for each device", "strong": "a batch of {} for all together"}
_BLOCKS = ("measured", "paper", "sources")
_END = "<!-- end -->"


def lines(results: dict[str, Any]) -> list[str]:
    """What was measured, and what follows on paper, as tables."""
    cores = results["cores"]
    shown = [
        f"the lecture network's training on {results['device']}, epochs of "
        f"{results['images']:,} images, medians of {results['rounds']}",
        f"efficiency is relative to as many times one device; of the cores: of which there are "
        f"{cores}, so that from {cores} devices on nothing can be gained",
    ]
    for how, title in _HOW.items():
        shown += [f"{title.format(results['batch_size'])}:", *_indented(_cells(results, how))]
    return shown + paper_lines(results)


def paper_lines(results: dict[str, Any]) -> list[str]:
    """What follows on paper."""
    shown = [
        "the number of devices from which on communication takes as long as computation, or, in "
        "brackets, as the backward pass, behind which it might hide; with a batch for each device "
        "also what the all-reduce tends to, of the time of computation, latencies apart",
    ]
    for name, network in results["networks"].items():
        shown.append(f"{NETWORKS[name].title}, batch {network['batch_size']}:")
        shown += _indented(_paper_rows(results, [name]))
    return shown


def _indented(rows: Sequence[dict[str, str]]) -> list[str]:
    return [f"  {line}" for line in table(rows).splitlines()]


def keep(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes the results and their two pictures; returns the files."""
    path = machine.keep_apart(folder, "scaling", results)
    measured = path.with_suffix(".png")
    plots.save(plots.scaling(results["measured"], results["cores"], results["device"]), measured)
    paper = path.with_name(f"{path.stem}-on-paper.png")
    plots.save(plots.bounds(_panels(results)), paper)
    return [path, measured, paper]


def _panels(results: dict[str, Any]) -> list[list[plots.Bound]]:
    """This machine's networks above, those of the first accelerator, an estimate, below."""
    above, below = here(results), ACCELERATORS[0].title
    panels = []
    for computer, note in ((above, ""), (below, ", estimated")):
        rows = [row for row in results["on_paper"] if row["computer"] == computer]
        panels.append(
            [
                plots.Bound(
                    f"{NETWORKS[name].title}\n{computer}{note}",
                    next(row["batch_s"] for row in rows if row["network"] == name),
                    network["batch_size"],
                    network["bytes"],
                    {
                        LINKS[row["link"]].title: (
                            LINKS[row["link"]].bytes_per_second,
                            LINKS[row["link"]].latency,
                        )
                        for row in rows
                        if row["network"] == name
                    },
                )
                for name, network in results["networks"].items()
            ]
        )
    return panels


def renew(page: Path, results: dict[str, Any]) -> None:
    """Puts the results' tables into a page, between its markers.

    Args:
      page: a Markdown file, see `check`.
      results: as `dlc_jax.benchmark.scaling.run` returns them.

    Raises:
      InputError: the page does not suit.
    """
    write_atomically(page, renewed(check(page), results).encode())


def check(page: Path) -> str:
    """The text of a page that tables can be put into.

    Args:
      page: a Markdown file with the lines `<!-- scaling: NAME -->` and `<!-- end -->` around each
        of three places, NAME being measured, paper and sources.

    Raises:
      InputError: it can't be read, or a marker is missing.
    """
    try:
        text = page.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read the page {str(page)!r} ({error}); name another") from error
    for block in _BLOCKS:
        _, found, after = text.partition(_begin(block))
        if not found or _END not in after:
            raise InputError(
                f"{str(page)!r} has no lines '{_begin(block).strip()}' and '{_END.strip()}', "
                "between which tables would go; add them"
            )
    return text


def _begin(block: str) -> str:
    return f"<!-- scaling: {block} -->\n"


def renewed(text: str, results: dict[str, Any]) -> str:
    """A page's text with the results' tables between its markers."""
    for block, content in blocks(results).items():
        before, begin, after = text.partition(_begin(block))
        text = before + begin + content + "\n" + after[after.index(_END) :]
    return text


def blocks(results: dict[str, Any]) -> dict[str, str]:
    """The page's tables and the sentences that have numbers in them, by the markers' names."""
    return dict(
        zip(_BLOCKS, map("\n".join, (_measured(results), _paper(results), _sources())), strict=True)
    )


def _measured(results: dict[str, Any]) -> list[str]:
    name = machine.slug(results)
    return [
        f"[{results['device']}](results/{name}-scaling.json), {results['date']}, JAX "
        f"{results['versions']['jax']}, medians of {results['rounds']} rounds of "
        f"{results['images']:,} images:",
        "",
        *_markdown(_measured_rows(results)),
        "",
        f"![Images a second against devices and processes](results/{name}-scaling.png)",
    ]


def _measured_rows(results: dict[str, Any]) -> list[dict[str, str]]:
    """Of both ways side by side."""
    both = zip(*(_cells(results, how, f"{how}: ") for how in _HOW), strict=True)
    return [weak | strong for weak, strong in both]


def _cells(results: dict[str, Any], how: str, prefix: str = "") -> list[dict[str, str]]:
    return [
        {
            "devices": str(row["count"]),
            "processes": str(row["count"] if row["kind"] == "processes" else 1),
            f"{prefix}batch": str(row[how]["batch_size"]),
            f"{prefix}images/s": f"{row[how]['images_per_s']:,.0f}",
            f"{prefix}efficiency": f"{100 * row[how]['efficiency']:.0f} %",
            f"{prefix}of the cores": f"{100 * row[how]['efficiency_of_cores']:.0f} %",
        }
        for row in results["measured"]
    ]


def _paper(results: dict[str, Any]) -> list[str]:
    name = machine.slug(results)
    return [
        *[_answer(results, network) for network in results["networks"]],
        "",
        *_markdown(_network_rows(results)),
        "",
        *_example(results),
        "",
        *_markdown(_paper_rows(results)),
        "",
        f"![Time of computation and of the all-reduce](results/{name}-scaling-on-paper.png)",
    ]


def _find(results: dict[str, Any], network: str, link: str, computer: str) -> dict[str, Any]:
    wanted = {"network": network, "link": link, "computer": computer}
    return next(row for row in results["on_paper"] if wanted.items() <= row.items())


def _answer(results: dict[str, Any], network: str) -> str:
    h100, size = ACCELERATORS[0].title, results["networks"][network]["batch_size"]
    slow, fast = (_find(results, network, link, here(results)) for link in ("1gbe", "10gbe"))
    nvlink, ndr = (_find(results, network, link, h100) for link in ("nvlink4", "ndr"))
    return (
        f"- **{NETWORKS[network].title}**. A batch of {size} shared by machines such as this one "
        f"is bound from **{_count(slow['strong'], size)}** machines on over 1 Gb/s Ethernet, "
        f"**{_count(fast['strong'], size)}** over 10 Gb/s; shared by H100s, as estimated, from "
        f"**{_count(nvlink['strong'], size)}** on over NVLink 4, **{_count(ndr['strong'], size)}** "
        f"over InfiniBand NDR. With a batch of {size} for each: from {_count(slow['weak'])} "
        f"machines over 1 Gb/s Ethernet, {_count(fast['weak'])} over 10 Gb/s; from "
        f"{_count(nvlink['weak'])} H100s over NVLink 4, {_count(ndr['weak'])} over InfiniBand NDR."
    )


def _count(count: int | None, most: int = _MOST) -> str:
    if count is None:
        return "never"
    return f"> {most:,}" if count > most else f"{count:,}"


def _network_rows(results: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "network": NETWORKS[name].title,
            "parameters": f"{network['parameters']:,}",
            "gradients": _bytes(network["bytes"]),
            "multiply-adds an image": f"{network['multiply_adds'] / 1e6:,.4g} million",
            "step measured": f"{network['step_images']} images, {_time(network['step_s'])}",
            "batch": f"{network['batch_size']} ({NETWORKS[name].source})",
            "a batch here": _time(_find(results, name, "10gbe", here(results))["batch_s"]),
            "by an H100 in bfloat16, estimated": _time(
                _find(results, name, "ndr", ACCELERATORS[0].title)["batch_s"]
            ),
        }
        for name, network in results["networks"].items()
    ]


def _paper_rows(results: dict[str, Any], names: Sequence[str] = ()) -> list[dict[str, str]]:
    """Of some networks, or of all side by side."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in results["on_paper"]:
        if names and row["network"] not in names:
            continue
        estimated = ", estimated" if row["estimated"] else ""
        cells = rows.setdefault(
            (row["computer"], row["link"]),
            {"computers": row["computer"] + estimated, "joined by": LINKS[row["link"]].title},
        )
        prefix = "" if names else f"{NETWORKS[row['network']].title.split(',')[0]}: "
        size = results["networks"][row["network"]]["batch_size"]
        strong, hidden = (_count(row[how], size) for how in ("strong", "strong_overlapped"))
        cells[f"{prefix}shared batch"] = f"{strong} ({hidden})"
        weak, hidden = (_count(row[how]) for how in ("weak", "weak_overlapped"))
        share = float(f"{100 * row['all_reduce_s'] / row['batch_s']:.2g}")
        cells[f"{prefix}a batch each"] = f"{weak} ({hidden}), {share:,g} %"
    return list(rows.values())


def _example(results: dict[str, Any]) -> list[str]:
    name, over = _EXAMPLE
    if name not in results["networks"]:
        return []
    network, link = results["networks"][name], LINKS[over]
    row = _find(results, name, over, here(results))
    count = row["strong"]
    return [
        f"Worked out for {NETWORKS[name].title.split(',')[0]} on machines such as this one over "
        f"{link.title}: a step of {network['step_images']} images takes "
        f"{_time(network['step_s'])}, the batch of {network['batch_size']} therefore *T* = "
        f"{network['step_s']:.4g} s × {network['batch_size']} / {network['step_images']} = "
        f"{row['batch_s']:.4g} s. Its {network['parameters']:,} gradients are *B* = "
        f"{network['bytes'] / 1e6:.1f} MB, the link sends *W* = "
        f"{link.bytes_per_second / 1e9:.4g} GB/s, and 2 *B* / *W* = "
        f"{_time(row['all_reduce_s'])}, which is {100 * row['all_reduce_s'] / row['batch_s']:.2g} "
        f"% of *T*. {_both(row, network['bytes'], link, count - 1)}, "
        f"{_both(row, network['bytes'], link, count)}: the batch is bound from {count:,} machines "
        "on."
    ]


def _both(row: dict[str, Any], size: int, link: Link, count: int) -> str:
    reduce = ring_all_reduce_seconds(size, count, link.bytes_per_second, link.latency)
    return (
        f"{count:,} machines compute for *T* / {count:,} = {1e3 * row['batch_s'] / count:.2f} ms "
        f"and communicate for {1e3 * reduce:.2f} ms"
    )


def _sources() -> list[str]:
    links = [
        {
            "interconnect": link.title,
            "bytes a second, one direction": _bytes(link.bytes_per_second) + "/s",
            "published": link.source,
            "latency of a message": f"{1e6 * link.latency:g} µs ({link.latency_source})",
        }
        for link in LINKS.values()
    ]
    peaks = [
        {
            "accelerator": accelerator.title,
            "peak, dense": f"{accelerator.peak / 1e12:g} TFLOP/s",
            f"{100 * FRACTION_OF_PEAK:g} % of it": f"{reached / 1e12:.3g} TFLOP/s",
            "published": accelerator.source,
        }
        for accelerator in ACCELERATORS
        for reached in [FRACTION_OF_PEAK * accelerator.peak]
    ]
    return [*_markdown(links), "", *_markdown(peaks)]


def _markdown(rows: Sequence[dict[str, str]]) -> list[str]:
    head = list(rows[0])
    ruler = ["---", *("---:" for _ in head[1:])] if len(head) > 5 else ["---"] * len(head)
    cells = [head, ruler, *(list(row.values()) for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:g} B"
