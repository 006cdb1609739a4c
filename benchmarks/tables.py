"""Tables in Markdown from CSV files of rows, printed or put between a document's marks; never typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.rows import read_rows
from benchmarks.time_to_quality import compare

Rows = list[dict[str, str]]

#: The side that the others are compared with.
OURS = "native"


def write_tables(paths: Sequence[Path], into: Path | None) -> None:
    """Print every table that the files' rows make, or put them into a document.

    There a table of this name stands between `<!-- table NAME -->` and `<!-- end -->`, which stay. Raises ValueError
    for files without rows, and for a document without any of the tables' marks.
    """
    made = {name: table for name, table in tables(paths).items() if table}
    if into is None:
        print("\n\n".join(f"## {name}\n\n{table}" for name, table in made.items()))
        return
    text = into.read_text()
    filled = 0
    for name, table in made.items():
        begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, found, after = text.partition(begin)
        if found:
            text = f"{before}{begin}\n{table}\n\n{end}{after.partition(end)[2]}"
            filled += 1
    if not filled:
        raise ValueError(f"{into} has no mark for any of the tables {', '.join(made)}")
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
        "time to quality": quality([row for row in rows if "optimizer" in row]),
    }


def machine(rows: Rows) -> str:
    """Where, and with what, the rows were made."""
    columns = ("device", "threads", "torch", "shade_fast", "commit")
    return markdown(columns, dict.fromkeys(tuple(row[column] for column in columns) for row in rows))


def times(rows: Rows) -> str:
    """Medians in milliseconds by side, and how many times longer than ours each other side takes."""
    if not rows:
        return ""
    cases, sides = _grid(rows)
    others = [side for side in sides if side != OURS and any(OURS in found for found in cases.values())]
    lines = []
    for case, found in cases.items():
        ratios = []
        for side in others:
            ours, other = (found.get(one, {}).get("p50_ms") for one in (OURS, side))
            ratios.append(f"{float(other) / float(ours):.2f}" if ours and other else "")
        lines.append((case, *(_cell(found.get(side), "p50_ms", "{:.4g}") for side in sides), *ratios))
    heads = [f"{side}, ms" for side in sides] + [f"{side} / {OURS}" for side in others]
    return markdown(("case", *heads), lines)


def by_side(rows: Rows, column: str, form: str) -> str:
    """One figure of each side."""
    if not rows:
        return ""
    cases, sides = _grid(rows)
    return markdown(
        ("case", *sides),
        ((case, *(_cell(found.get(side), column, form) for side in sides)) for case, found in cases.items()),
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


def quality(rows: Rows) -> str:
    """The release's runs, and the momentum runs that reach them."""
    if not rows:
        return ""
    columns = ("steps", "distance", "seconds", "step_ms")
    lines = []
    for found in compare(rows):
        row = [_number(found.release[column]) for column in columns]
        if found.momentum is not None and found.faster is not None:
            row += [*(_number(found.momentum[column]) for column in columns), _number(str(found.faster))]
        lines.append((*row, *[""] * (2 * len(columns) + 1 - len(row))))
    names = ("steps", "distance", "seconds", "ms a step")
    heads = [*(f"release: {names[0]}", *names[1:]), *(f"momentum: {names[0]}", *names[1:]), "times faster"]
    return markdown(heads, lines)


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


def _cell(row: dict[str, str] | None, column: str, form: str) -> str:
    if row is None:
        return ""
    if row["status"] != "ok":
        return row["status"]
    value = row.get(column, "")
    if not value:
        return ""
    return form.format(value if form == "{}" else float(value))


def _number(text: str) -> str:
    return f"{float(text):.4g}"


def _with_allocator(row: dict[str, str]) -> str:
    return row["backend"] if row["allocator"] == "default" else f"{row['backend']}, {row['allocator']} allocator"
