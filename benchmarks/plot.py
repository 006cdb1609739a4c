"""Pictures of CSV rows: step times and peak memory by side, one panel a network. Needs matplotlib (`.[bench]`)."""

from __future__ import annotations

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
    "native": "#c2410c",
    "exact": "#f0a070",
}

Rows = list[dict[str, str]]


def write_plots(paths: Sequence[Path], out: Path) -> list[Path]:
    """Draw step.svg and memory.svg, each where the files hold rows for it. Raises ValueError without matplotlib."""
    rows = [row for path in paths for row in read_rows(path) if row.get("status") == "ok"]
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
    return written


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
        panel.grid(axis="y", linewidth=0.4, alpha=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel(label)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(sides), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
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
