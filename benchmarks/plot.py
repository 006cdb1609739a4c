"""Pictures of CSV rows: step times and peak memory by side, quality against seconds, scaling. Needs matplotlib."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import read_rows

#: One colour a side in every picture: the baselines grey, ours in colour.
COLOURS = {
    "eager": "#c9c9c9",
    "eager, tuned allocator": "#b3b3b3",
    "channels-last": "#9a9a9a",
    "compile": "#6b6b6b",
    "onnxruntime": "#4a5a78",
    "native": "#c2410c",
    "exact": "#f0a070",
}

#: One colour a published loop, and for momentum beside it.
LOOPS = {"release": "#1d4ed8", "paper": "#15803d", "photoguard": "#7e22ce", "mist": "#c2410c"}

Rows = list[dict[str, str]]


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("csv", nargs="+", type=Path, metavar="CSV")
    text = "folder of the pictures (default: docs)"
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help=text)


def run(options: Namespace) -> int:
    """The command."""
    for path in write_plots(options.csv, options.out):
        print(path)
    return 0


def write_plots(paths: Sequence[Path], out: Path) -> list[Path]:
    """Draw step.svg, memory.svg, quality.svg and scaling.svg, each where the files hold rows for it.

    Raises ValueError without matplotlib.
    """
    rows = [row for path in paths for row in read_rows(path) if row.get("status", "ok") == "ok"]
    times = [row for row in rows if "p50_ms" in row and row["case"].startswith("step.")]
    memory = [
        row | ({} if row["allocator"] == "default" else {"backend": f"{row['backend']}, {row['allocator']} allocator"})
        for row in rows
        if "allocations" in row and row["peak_megabytes"] and row["case"].startswith("step.")
    ]
    out.mkdir(parents=True, exist_ok=True)
    written = []
    if times:
        written.append(_draw(times, "p50_ms", "milliseconds an image, one step", out / "step.svg"))
    if memory:
        written.append(_draw(memory, "peak_megabytes", "MB an image above the weights, one step", out / "memory.svg"))
    quality = [row for row in rows if "optimizer" in row]
    if quality:
        written.append(_draw_quality(quality, out / "quality.svg"))
    scaling = [row for row in rows if "p50_ms" in row and row["case"].startswith("scaling.")]
    if scaling:
        written.append(_draw_scaling(scaling, out / "scaling.svg"))
    return written


def _draw_quality(rows: Rows, path: Path) -> Path:
    """Latent distance left, and LPIPS, against seconds an image: published loops dashed, momentum beside them solid."""
    pyplot = pyplot_or_error()
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4))
    for loop in dict.fromkeys(row["beside"] for row in rows):
        for ours in (False, True):
            own = [row for row in rows if row["beside"] == loop and (row["optimizer"] != loop) == ours]
            own.sort(key=lambda row: int(row["steps"]))
            seconds = [float(row["seconds"]) / int(row["photographs"]) for row in own]
            left = [100 * float(row["distance"]) / float(row["start"]) for row in own]
            style = {
                "color": LOOPS.get(loop, "#555555"),
                "linestyle": "-" if ours else "--",
                "marker": "o" if ours else "s",
                "markerfacecolor": None if ours else "white",
                "label": f"momentum beside {loop}" if ours else loop,
            }
            panels[0].plot(seconds, left, **style)
            panels[1].plot(seconds, [float(row["lpips"]) for row in own], **style)
            for row, across, up in zip(own, seconds, left, strict=True):
                panels[0].annotate(row["steps"], (across, up), (3, 3), textcoords="offset points", fontsize=7)
    for panel, label in zip(panels, ("latent distance left, %", "LPIPS"), strict=True):
        panel.set_xscale("log")
        panel.set_xlabel("seconds an image (points: steps)")
        panel.set_ylabel(label)
    return _finish(figure, panels, path, columns=4)


def _draw_scaling(rows: Rows, path: Path) -> Path:
    """Megapixels a second by what grows: images, their size, threads."""
    pyplot = pyplot_or_error()
    kinds = list(dict.fromkeys(row["case"].split(".")[1] for row in rows))
    figure, panels = pyplot.subplots(1, len(kinds), figsize=(1 + 4 * len(kinds), 4), squeeze=False)
    for kind, panel in zip(kinds, panels[0], strict=True):
        for side in dict.fromkeys(row["backend"] for row in rows):
            own = [row for row in rows if row["case"].split(".")[1] == kind and row["backend"] == side]
            own.sort(key=_grown)
            rates = [float(row["images_per_second"]) * int(row["shape"].split("x")[-1]) ** 2 / 1e6 for row in own]
            panel.plot([_grown(row) for row in own], rates, marker="o", label=side, color=COLOURS.get(side, "#9a9a9a"))
        values = sorted({_grown(row) for row in rows if row["case"].split(".")[1] == kind})
        panel.set_xscale("log", base=2)
        panel.set_xticks(values, [str(value) for value in values])
        panel.set_xlabel({"size": "side, pixels"}.get(kind, kind))
        panel.set_ylim(bottom=0)
    panels[0][0].set_ylabel("megapixels a second")
    return _finish(figure, panels[0], path, columns=2)


def _grown(row: dict[str, str]) -> int:
    return int(row["case"].split(".")[2])


def _draw(rows: Rows, column: str, label: str, path: Path) -> Path:
    pyplot = pyplot_or_error()
    networks = list(dict.fromkeys(row["case"].split(".")[1] for row in rows))
    figure, panels = pyplot.subplots(1, len(networks), figsize=(1 + 4 * len(networks), 4), squeeze=False)
    sides = [side for side in COLOURS if any(row["backend"] == side for row in rows)]
    for network, panel in zip(networks, panels[0], strict=True):
        shown = [row for row in rows if row["case"].split(".")[1] == network]
        cases = list(dict.fromkeys(row["case"] for row in shown))
        width = 0.8 / len(sides)
        for number, side in enumerate(sides):
            own = [row for row in shown if row["backend"] == side]
            places = [cases.index(row["case"]) + (number - (len(sides) - 1) / 2) * width for row in own]
            heights = [float(row[column]) / int(row["images"]) for row in own]
            panel.bar(places, heights, width, label=side, color=COLOURS[side])
        names = [case.split(".", 2)[2].replace(".b", "\nbatch ").replace(".lpips", "\nLPIPS") for case in cases]
        panel.set_xticks(range(len(cases)), names, fontsize=8)
        panel.set_title(network)
    panels[0][0].set_ylabel(label)
    return _finish(figure, panels[0], path, columns=len(sides))


def _finish(figure: Any, panels: Any, path: Path, columns: int) -> Path:
    """Grid, one legend below all panels, and the file."""
    for panel in panels:
        panel.grid(axis="y", linewidth=0.4, alpha=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.05 + 0.04 * -(-len(labels) // columns), 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot_or_error().close(figure)
    return path


def pyplot_or_error() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError(f"plots need matplotlib ({error}): pip install -e '.[bench]'") from error
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "shade_fast"  # the same rows give the same file
    from matplotlib import pyplot

    return pyplot
