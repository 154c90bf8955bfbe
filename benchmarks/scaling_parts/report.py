"""Results of the scaling benchmark as text, as a file with figures, and in a Markdown page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import machine
from harness.tables import markdown_table, text_table

from dlc_jax.errors import InputError
from dlc_jax.utils.files import write_atomically
from scaling_parts.interconnect import (
    ACCELERATORS,
    FRACTION_OF_PEAK,
    LINKS,
    Link,
    measured_machine,
    ring_all_reduce_seconds,
)
from scaling_parts.networks import NETWORKS

if TYPE_CHECKING:
    from harness import plots

# With more devices, a ring is not the best algorithm.
_MAX_DEVICES = 10_000
_EXAMPLE = ("resnet50", "1gbe")
_SCALINGS = {"weak": "a batch of {} for each device", "strong": "a batch of {} for all together"}
_BLOCKS = ("measured", "paper", "sources")
_END = "<!-- end -->"


def lines(results: dict[str, Any]) -> list[str]:
    """Returns the measurements and the estimates as tables of text."""
    cores = results["cores"]
    shown = [
        f"the lecture network's training on {results['device']}, epochs of "
        f"{results['images']:,} images, medians of {results['rounds']}",
        "efficiency is relative to one device's rate times the number of devices; of the cores: "
        f"times at most {cores}, the number of cores",
    ]
    for scaling, title in _SCALINGS.items():
        title = title.format(results["batch_size"])
        shown += [f"{title}:", *_indented(_cells(results, scaling))]
    return shown + estimate_lines(results)


def estimate_lines(results: dict[str, Any]) -> list[str]:
    """Returns the estimates as tables of text."""
    shown = [
        "the smallest number of devices at which communication takes as long as computation or, in "
        "brackets, as the backward pass, which it might overlap; with a batch for each device also "
        "the limit of the all-reduce's duration without latency, relative to the computation's",
    ]
    for name, network in results["networks"].items():
        shown.append(f"{NETWORKS[name].title}, batch {network['batch_size']}:")
        shown += _indented(_estimate_rows(results, [name]))
    return shown


def _indented(rows: Sequence[dict[str, str]]) -> list[str]:
    return [f"  {line}" for line in text_table(rows)]


def save(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes the results and two figures; returns the files."""
    from harness import plots

    path = machine.save_file(folder, "scaling", results)
    measured = plots.scaling(results["measured"], results["cores"], results["device"])
    estimated = plots.communication_bounds(_panels(results))
    return [
        path,
        plots.save(measured, path.with_suffix(".png")),
        plots.save(estimated, path.with_name(f"{path.stem}-on-paper.png")),
    ]


def _panels(results: dict[str, Any]) -> "list[list[plots.Communication]]":
    """A row of networks on this machine, and a row on the first accelerator."""
    from harness import plots

    above, below = measured_machine(results), ACCELERATORS[0].title
    panels = []
    for computer, note in ((above, ""), (below, ", estimated")):
        rows = [row for row in results["on_paper"] if row["computer"] == computer]
        panels.append(
            [
                plots.Communication(
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


def update_page(page: Path, results: dict[str, Any]) -> None:
    """Replaces the tables between the markers of a page.

    Args:
      page: A Markdown file, see `read_page`.
      results: Results of `benchmarks/scaling.py`.

    Raises:
      InputError: The page can't be read, or a marker is missing.
    """
    write_atomically(page, with_tables(read_page(page), results).encode())


def read_page(page: Path) -> str:
    """Reads a page with markers for the tables.

    Args:
      page: A Markdown file with three pairs of lines `<!-- scaling: NAME -->` and `<!-- end -->`,
        for the names measured, paper and sources.

    Raises:
      InputError: It can't be read, or a marker is missing.
    """
    try:
        text = page.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read the page {str(page)!r} ({error}); name another") from error
    for block in _BLOCKS:
        _, marker, after = text.partition(_marker(block))
        if not marker or _END not in after:
            raise InputError(
                f"{str(page)!r} has no lines '{_marker(block).strip()}' and '{_END.strip()}', "
                "for the tables between them; add them"
            )
    return text


def _marker(block: str) -> str:
    return f"<!-- scaling: {block} -->\n"


def with_tables(text: str, results: dict[str, Any]) -> str:
    """Returns a page's text with the tables of the results between its markers."""
    for block, content in _blocks(results).items():
        before, marker, after = text.partition(_marker(block))
        text = before + marker + content + "\n" + after[after.index(_END) :]
    return text


def _blocks(results: dict[str, Any]) -> dict[str, str]:
    """The page's tables, and the sentences with numbers in them, by the markers' names."""
    contents = _measured(results), _estimates(results), _sources()
    return dict(zip(_BLOCKS, map("\n".join, contents), strict=True))


def _measured(results: dict[str, Any]) -> list[str]:
    name = machine.slug(results)
    return [
        f"[{results['device']}](results/{name}-scaling.json), {results['date']}, JAX "
        f"{results['versions']['jax']}, medians of {results['rounds']} rounds of "
        f"{results['images']:,} images:",
        "",
        *markdown_table(_measured_rows(results)),
        "",
        f"![Images per second by devices and processes](results/{name}-scaling.png)",
    ]


def _measured_rows(results: dict[str, Any]) -> list[dict[str, str]]:
    """Weak and strong scaling side by side."""
    both = zip(*(_cells(results, scaling, f"{scaling}: ") for scaling in _SCALINGS), strict=True)
    return [weak | strong for weak, strong in both]


def _cells(results: dict[str, Any], scaling: str, prefix: str = "") -> list[dict[str, str]]:
    return [
        {
            "devices": str(row["count"]),
            "processes": str(row["count"] if row["kind"] == "processes" else 1),
            f"{prefix}batch": str(row[scaling]["batch_size"]),
            f"{prefix}images/s": f"{row[scaling]['images_per_s']:,.0f}",
            f"{prefix}efficiency": f"{100 * row[scaling]['efficiency']:.0f} %",
            f"{prefix}of the cores": f"{100 * row[scaling]['efficiency_of_cores']:.0f} %",
        }
        for row in results["measured"]
    ]


def _estimates(results: dict[str, Any]) -> list[str]:
    name = machine.slug(results)
    return [
        "The smallest numbers of devices at which communication bounds training, of machines such "
        "as this one and, as estimated, of H100s:",
        "",
        *[_answer(results, network) for network in results["networks"]],
        "",
        *markdown_table(_network_rows(results)),
        "",
        *_example(results),
        "",
        *markdown_table(_estimate_rows(results)),
        "",
        f"![Time of computation and of the all-reduce](results/{name}-scaling-on-paper.png)",
    ]


def _find(results: dict[str, Any], network: str, link: str, computer: str) -> dict[str, Any]:
    wanted = {"network": network, "link": link, "computer": computer}
    return next(row for row in results["on_paper"] if wanted.items() <= row.items())


def _answer(results: dict[str, Any], network: str) -> str:
    h100, size = ACCELERATORS[0].title, results["networks"][network]["batch_size"]
    slow, fast = (
        _find(results, network, link, measured_machine(results)) for link in ("1gbe", "10gbe")
    )
    nvlink, ndr = (_find(results, network, link, h100) for link in ("nvlink4", "ndr"))
    return (
        f"- **{NETWORKS[network].title}**. If all share a batch of {size}: "
        f"**{_count(slow['strong'], size)}** machines over 1 Gb/s Ethernet or "
        f"**{_count(fast['strong'], size)}** over 10 Gb/s Ethernet; "
        f"**{_count(nvlink['strong'], size)}** H100s over NVLink 4 or "
        f"**{_count(ndr['strong'], size)}** over InfiniBand NDR. If each has a batch of {size}: "
        f"{_count(slow['weak'])} machines over 1 Gb/s Ethernet or {_count(fast['weak'])} over 10 "
        f"Gb/s Ethernet; {_count(nvlink['weak'])} H100s over NVLink 4 or {_count(ndr['weak'])} "
        "over InfiniBand NDR."
    )


def _count(count: int | None, maximum: int = _MAX_DEVICES) -> str:
    if count is None:
        return "never"
    return f"> {maximum:,}" if count > maximum else f"{count:,}"


def _network_rows(results: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "network": NETWORKS[name].title,
            "parameters": f"{network['parameters']:,}",
            "gradients": _bytes(network["bytes"]),
            "multiply-adds per image": f"{network['multiply_adds'] / 1e6:,.4g} million",
            "measured step": f"{network['step_images']} images, {_time(network['step_s'])}",
            "batch": f"{network['batch_size']} ({NETWORKS[name].source})",
            "time of a batch here": _time(
                _find(results, name, "10gbe", measured_machine(results))["batch_s"]
            ),
            "on an H100 in bfloat16, estimated": _time(
                _find(results, name, "ndr", ACCELERATORS[0].title)["batch_s"]
            ),
        }
        for name, network in results["networks"].items()
    ]


def _estimate_rows(results: dict[str, Any], names: Sequence[str] = ()) -> list[dict[str, str]]:
    """A row for each computer and link, of some networks, or of all side by side."""
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
        strong, hidden = (_count(row[key], size) for key in ("strong", "strong_overlapped"))
        cells[f"{prefix}shared batch"] = f"{strong} ({hidden})"
        weak, hidden = (_count(row[key]) for key in ("weak", "weak_overlapped"))
        share = float(f"{100 * row['all_reduce_s'] / row['batch_s']:.2g}")
        cells[f"{prefix}a batch each"] = f"{weak} ({hidden}), {share:,g} %"
    return list(rows.values())


def _example(results: dict[str, Any]) -> list[str]:
    name, over = _EXAMPLE
    if name not in results["networks"]:
        return []
    network, link = results["networks"][name], LINKS[over]
    row = _find(results, name, over, measured_machine(results))
    count = row["strong"]
    return [
        f"An example is {NETWORKS[name].title.split(',')[0]} on machines such as this one over "
        f"{link.title}. A step of {network['step_images']} images takes "
        f"{_time(network['step_s'])}, so the batch of {network['batch_size']} takes *T* = "
        f"{network['step_s']:.4g} s × {network['batch_size']} / {network['step_images']} = "
        f"{row['batch_s']:.4g} s. The {network['parameters']:,} gradients are *B* = "
        f"{network['bytes'] / 1e6:.1f} MB, and the link sends *W* = "
        f"{link.bytes_per_second / 1e9:.4g} GB/s, so 2 *B* / *W* = {_time(row['all_reduce_s'])}, "
        f"{100 * row['all_reduce_s'] / row['batch_s']:.2g} % of *T*. If machines share the batch, "
        f"{_both(row, network['bytes'], link, count - 1)}, and "
        f"{_both(row, network['bytes'], link, count)}. Communication therefore bounds {count:,} or "
        "more machines."
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
            "rate in one direction": _bytes(link.bytes_per_second) + "/s",
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
    return [*markdown_table(links), "", *markdown_table(peaks)]


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
