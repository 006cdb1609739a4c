"""A picture of `quality`'s rows: the latent distance left against each bound, one line a way to protect.

python -m benchmarks frontier ROWS.csv [ROWS.csv ...] --out docs/frontier.svg      (needs matplotlib: .[bench])
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from benchmarks.plot import pyplot_or_error
from benchmarks.rows import read_rows

#: The published loops grey, ours in colour.
COLOURS = {"release": "#9a9a9a", "paper": "#4a4a4a", "momentum": "#c2410c"}


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("csv", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/frontier.svg"))


def run(options: Namespace) -> int:
    """The command."""
    rows = [row for path in options.csv for row in read_rows(path)]
    pyplot = pyplot_or_error()
    alone, both = ([row for row in rows if bool(row["lpips"]) == bounded] for bounded in (False, True))
    panels = {
        "linf alone, in uint8 levels": (alone, lambda row: 255 * float(row["linf"])),
        "LPIPS, with linf 16/255": (both, lambda row: float(row["lpips"])),
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True)
    for panel, (label, (shown, place)) in zip(axes, panels.items(), strict=True):
        for name in dict.fromkeys((row["optimizer"], row["steps"]) for row in shown):
            own = sorted((row for row in shown if (row["optimizer"], row["steps"]) == name), key=place)
            values = [float(row["left"]) for row in own]
            panel.plot([place(row) for row in own], values, "o-", color=COLOURS[name[0]], label=" ".join(name))
        panel.set_xlabel(label)
        panel.grid(linewidth=0.4, alpha=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("share of the latent distance left")
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None})
    print(options.out)
    return 0
