"""Tables in Markdown from CSV files of rows, printed or put between a document's marks; never typed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.rows import read_rows
from benchmarks.time_to_quality import Comparison, compare

Rows = list[dict[str, str]]

#: The side that the others are compared with.
OURS = "native"


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("csv", nargs="+", type=Path, metavar="CSV")
    text = "write them between these files' marks instead"
    parser.add_argument("--into", nargs="+", type=Path, metavar="FILE", help=text)


def run(options: Namespace) -> int:
    """The command."""
    for into in options.into or [None]:
        write_tables(options.csv, into)
    return 0


def write_tables(paths: Sequence[Path], into: Path | None) -> None:
    """Print every table that the files' rows make, or put them into a document.

    There a table of this name stands between `<!-- table NAME -->` and `<!-- end -->`, which stay. Raises ValueError
    for files without rows, and for a document without any of the tables' marks.
    """
    texts = {name: table for name, table in tables(paths).items() if table}
    if into is None:
        print("\n\n".join(f"## {name}\n\n{table}" for name, table in texts.items()))
        return
    text = into.read_text()
    filled = 0
    for name, table in texts.items():
        begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, mark, after = text.partition(begin)
        if mark:
            text = f"{before}{begin}\n{table}\n\n{end}{after.partition(end)[2]}"
            filled += 1
    if not filled:
        raise ValueError(f"{into} has no mark for any of the tables {', '.join(texts)}")
    into.write_text(text)


def tables(paths: Sequence[Path]) -> dict[str, str]:
    """Name -> table, from the rows of all files together."""
    rows = [row for path in paths for row in read_rows(path)]
    timed = [row for row in rows if "p50_ms" in row]
    return {
        "machine": machine(rows),
        "step": times([row for row in timed if row["case"].startswith("step.")]),
        "pipeline": times([row for row in timed if row["case"].startswith("pipeline.")]),
        "ops": times([row for row in timed if row["case"].startswith("ops.")]),
        "error": by_side([row for row in timed if row.get("error")], "error", "{:.1e}"),
        "memory": memory([row for row in rows if "allocations" in row]),
        "allocations": allocations([row for row in rows if "allocations" in row]),
        "scaling": scaling([row for row in timed if row["case"].startswith("scaling.")]),
        "time to quality": quality([row for row in rows if "optimizer" in row]),
        "summary": summary(rows),
    }


def machine(rows: Rows) -> str:
    """Where, and with what, the rows were measured."""
    columns = ("device", "threads", "torch", "shade_fast", "commit")
    return markdown(columns, dict.fromkeys(tuple(row[column] for column in columns) for row in rows))


def times(rows: Rows) -> str:
    """Medians in milliseconds by side, and how many times longer than ours each other side takes."""
    if not rows:
        return ""
    cases, sides = _grid(rows)
    others = [side for side in sides if side != OURS and any(OURS in rows_of for rows_of in cases.values())]
    lines = []
    for case, rows_of in cases.items():
        ratios = []
        for side in others:
            ours, other = (rows_of.get(name, {}).get("p50_ms") for name in (OURS, side))
            ratios.append(f"{float(other) / float(ours):.2f}" if ours and other else "")
        lines.append((case, *(_cell(rows_of.get(side), "p50_ms") for side in sides), *ratios))
    heads = [f"{side}, ms" for side in sides] + [f"{side} / {OURS}" for side in others]
    return markdown(("case", *heads), lines)


def by_side(rows: Rows, column: str, form: str) -> str:
    """One figure of each side."""
    if not rows:
        return ""
    cases, sides = _grid(rows)
    return markdown(
        ("case", *sides),
        ((case, *(_cell(rows_of.get(side), column, form) for side in sides)) for case, rows_of in cases.items()),
    )


def memory(rows: Rows) -> str:
    """Peaks in megabytes by side and allocator."""
    return by_side([row | {"backend": _with_allocator(row)} for row in rows], "peak_megabytes", "{:.0f}")


def allocations(rows: Rows) -> str:
    """How often torch's allocator is asked in a steady step, and for how much."""
    rows = [row | {"backend": _with_allocator(row)} for row in rows if row["allocator"] == "default"]
    for row in rows:
        if row["allocations"]:
            row["asked"] = f"{row['allocations']}, {float(row['allocated_megabytes']):.1f} MB"
    return by_side(rows, "asked", "{}")


def scaling(rows: Rows) -> str:
    """Images a second by side, with the threads that each case had."""
    if not rows:
        return ""
    cases, sides = _grid(rows)
    return markdown(
        ("case", "images", "threads", *(f"{side}, images/s" for side in sides)),
        (
            (
                case,
                next(iter(rows_of.values()))["shape"],
                next(iter(rows_of.values()))["threads"],
                *(_cell(rows_of.get(side), "images_per_second", "{:.3g}") for side in sides),
            )
            for case, rows_of in cases.items()
        ),
    )


def quality(rows: Rows) -> str:
    """The published loops' runs, and the momentum runs that reach them."""
    lines = []
    for comparison in compare(rows):
        published, momentum = comparison.published, comparison.momentum
        ours = ["none reaches it", "", "", "", ""]
        if momentum is not None and comparison.faster is not None:
            ours = [*_run(momentum), f"{comparison.faster:.1f}"]
        lines.append((published["optimizer"], _bounds(published), *_run(published), *ours))
    if not lines:
        return ""
    trials = dict.fromkeys(f"{row['photographs']} photographs at {row['size']}², {row['encoder']}" for row in rows)
    heads = ("steps", "distance left", "LPIPS", "seconds")
    return (
        markdown(("loop", "bounds", *heads, *(f"momentum: {head}" for head in heads), "times faster"), lines)
        + f"\n\n{'; '.join(trials)}."
    )


def summary(rows: Rows) -> str:
    """What a reader wants first: plain torch, the best of the other sides, and ours; one image of 512², whole loops."""
    plain = [row for row in rows if row.get("images") == "1" and row["case"].endswith(".512")]
    steps = [row for row in plain if row["case"].startswith("step.") and row["status"] == "ok"]
    timed = [row for row in steps if "p50_ms" in row]
    held = [row for row in steps if "allocations" in row and row["allocator"] == "default"]
    lines = [*_gains(timed, "p50_ms", "one step", "ms"), *_gains(held, "peak_megabytes", "memory of a step", "MB")]
    longest: dict[str, Comparison] = {}
    for comparison in compare([row for row in rows if "optimizer" in row]):
        loop = comparison.published["optimizer"]
        longest[loop] = max(longest.get(loop, comparison), comparison, key=lambda other: int(other.published["steps"]))
    for comparison in longest.values():
        published, ours = comparison.published, comparison.momentum
        what = f"what the {published['optimizer']} loop reaches in {published['steps']} steps"
        reached = "not reached" if ours is None else f"{float(ours['seconds']):.4g} s in {ours['steps']}"
        gain = "" if comparison.faster is None else f"{comparison.faster:.1f}"
        lines.append((what, f"{float(published['seconds']):.4g} s", "", reached, gain))
    return markdown(("", "plain torch", "best of the others", "shade_fast", "times less than plain torch"), lines)


def _gains(rows: Rows, column: str, what: str, unit: str) -> Iterator[tuple[str, ...]]:
    """A line for each case that plain torch, another side and ours have a figure for."""
    cases, _ = _grid([row for row in rows if row[column]])
    for case, rows_of in cases.items():
        figures = {side: float(row[column]) for side, row in rows_of.items()}
        others = {side: figure for side, figure in figures.items() if side not in ("eager", OURS, "exact")}
        if others and {"eager", OURS} <= figures.keys():
            _, network, size = case.split(".")
            best = min(others, key=others.__getitem__)
            shown = {side: f"{_figure(figures[side])} {unit}" for side in ("eager", best, OURS)}
            amounts = (shown["eager"], f"{shown[best]} ({best})", shown[OURS])
            yield (f"{what}, {network} at {size}²", *amounts, f"{figures['eager'] / figures[OURS]:.1f}")


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; an empty text without lines."""
    lines = list(lines)
    if not lines:
        return ""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *lines))


def _grid(rows: Rows) -> tuple[dict[str, dict[str, dict[str, str]]], list[str]]:
    """Case -> side -> row, and the sides in their first order."""
    cases: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["backend"]] = row
    return cases, list(dict.fromkeys(row["backend"] for row in rows))


def _figure(value: float) -> str:
    """Four digits, and all of those before the point."""
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _cell(row: dict[str, str] | None, column: str, form: str | None = None) -> str:
    if row is None:
        return ""
    if row["status"] != "ok":
        return row["status"]
    value = row.get(column, "")
    if not value:
        return ""
    if form is None:
        return _figure(float(value))
    return form.format(value if form == "{}" else float(value))


def _run(row: dict[str, str]) -> tuple[str, str, str, str]:
    """Steps, share of the latent distance that is left, LPIPS, and seconds."""
    left = float(row["distance"]) / float(row["start"])
    return row["steps"], f"{left:.1%}", f"{float(row['lpips']):.4f}", f"{float(row['seconds']):.4g}"


def _bounds(row: dict[str, str]) -> str:
    bounds = (("L∞", row["linf"]), ("LPIPS", row["lpips_bound"]))
    return ", ".join(f"{name} {float(value):.3g}" for name, value in bounds if value)


def _with_allocator(row: dict[str, str]) -> str:
    return row["backend"] if row["allocator"] == "default" else f"{row['backend']}, {row['allocator']} allocator"
