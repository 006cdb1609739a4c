"""The report's HTML: from a run's figures and pictures to one page. Every text from outside is escaped here."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import PurePath
from string import Template

import numpy

from shade_fast.archive import STATUSES, Row
from shade_fast.report.run import Run, label_of, seconds_of, within_linf, within_lpips
from shade_fast.terms.text import printable

PLOTTED_LINES = 150
PLOTTED_POINTS = 120
STATUS_WORDS = {"ok": "ok", "below_target": "below target", "failed": "failed"}
_UNTRUSTED = (
    '\n<p class="lead">The record is not known to be of your own runs on this machine: no file outside this folder was '
    "opened, and no encoder that it names was loaded but the embedded one. If you know who made it, "
    "<code>shade-fast report --trust-record</code> shows the rest.</p>"
)


@dataclass(frozen=True)
class Panel:
    """One picture with its caption: `uri` is a data URI, or None with `problem` saying why there is no picture."""

    title: str
    alt: str
    uri: str | None
    problem: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Card:
    """One image shown in pictures: `files` as written, `seen` as the model sees them (decoded latents)."""

    index: int
    row: Row
    files: tuple[Panel, ...]
    seen: tuple[Panel, ...]


def render_page(run: Run, cards: Sequence[Card], remark: str | None, *, trusted: bool = True) -> str:
    """The whole page. remark: a line for the reader about what the model sees, plain text. trusted: whether all that
    the record names was opened; the page says so where it was not."""
    template = files("shade_fast.report").joinpath("report.html").read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    body = [_totals(run), _overview(run), _cards(run, cards, remark), _table(run, cards)]
    return Template(template).substitute(
        script_hash=f"sha256-{digest}",
        title=_escape(f"shade_fast report: {_short(run.options.target)}"),
        head=_head(run) + ("" if trusted else _UNTRUSTED),
        body="\n".join(body),
    )


def _head(run: Run) -> str:
    budget = run.options.budget
    done, count = run.totals.statuses["ok"], run.totals.images
    subject = f"{done} of {count} image{'' if count == 1 else 's'}" if count else "No images"
    target = _escape(_short(run.options.target)) or "its target"
    bounds = [f"pixel changes up to {_levels(run)}/255"] if budget.linf is not None else []
    bounds += [f"LPIPS up to {budget.lpips:g}"] if budget.lpips is not None else []
    within = f", inside {' and '.join(bounds)}" if bounds else ""
    return (
        f'<p class="kicker">shade_fast report</p>\n<h1>{subject} moved towards “{target}”</h1>\n'
        f'<p class="lead">Each image was changed a little so that its latent moves to that of an anchor image'
        f"{within}. All figures were measured on the files that were written.</p>"
    )


def _totals(run: Run) -> str:
    totals, budget = run.totals, run.options.budget
    counts = {status: totals.statuses[status] for status in STATUSES}
    words = ", ".join(
        f'<span class="{status} status">{count} {STATUS_WORDS[status]}</span>'
        for status, count in counts.items()
        if count
    )
    split = "".join(f'<i class="{status}" style="flex:{count}"></i>' for status, count in counts.items() if count)
    linf = "–" if totals.largest_linf is None else f"{255 * totals.largest_linf:.4g}<small>/255</small>"
    lpips = "–" if totals.largest_lpips is None else f"{totals.largest_lpips:.4f}"
    linf_budget = None if budget.linf is None else f"{_levels(run)}/255"
    lpips_budget = None if budget.lpips is None else f"{budget.lpips:g}"
    cells = [
        ("Images", f"{totals.images}", f'<div class="split" aria-hidden="true">{split}</div>{words}'),
        (
            "Distance to the anchor left, median",
            _percent(run.figures.median_ratio),
            f"mean {_percent(totals.mean_ratio)} of the start, in the latent space",
        ),
        ("Largest pixel change", linf, _against(linf_budget, totals.largest_linf, run.holds_linf)),
        ("Largest LPIPS", lpips, _against(lpips_budget, totals.largest_lpips, run.holds_lpips)),
    ]
    inside = "".join(
        f'<div><dt>{name}</dt><dd class="figure">{figure}</dd><dd class="note">{note}</dd></div>'
        for name, figure, note in cells
    )
    return f'<dl class="totals">{inside}</dl>'


def _against(budget: str | None, measured: float | None, holds: bool) -> str:
    if budget is None:
        return "the budget leaves it free"
    if measured is None:
        return f"budget {budget}, nothing measured"
    verdict = '<span class="holds">holds</span>' if holds else '<span class="exceeded">exceeded</span>'
    return f"budget {budget}: {verdict}"


def _overview(run: Run) -> str:
    return (
        f'<div class="overview"><section><h2>Distance over steps</h2>{_plot(run)}</section>'
        f"<section><h2>The run</h2>{_facts(run)}</section></div>"
    )


def _facts(run: Run) -> str:
    options, last = run.options, run.last
    encoders = "<br>".join(
        _escape(encoder.title)
        + (f' <span class="soft">{_escape(encoder.sha256[:12])}</span>' if encoder.sha256 else "")
        + (
            f'<br><span class="soft">{encoder.channels} channels, 1/{encoder.factor} size</span>'
            if encoder.factor
            else ""
        )
        for encoder in options.encoder
    )
    budget = [f"linf {_levels(run)}/255" if options.budget.linf is not None else "linf free"]
    budget += [f"lpips {options.budget.lpips:g}" if options.budget.lpips is not None else "lpips free"]
    speed = "" if last.images_per_second is None else f" ({last.images_per_second:.3g} images/s)"
    versions = ", ".join(
        f"{name} {version}" for name, version in [("shade_fast", options.version), *run.recorded.versions.items()]
    )
    facts = {
        "Target": _escape(_short(options.target)),
        "Encoder": encoders,
        "Perceptual": _escape(options.perceptual.name or "none"),
        "Optimizer": _escape(options.optimizer) + (f", {options.steps} steps" if options.steps is not None else ""),
        "Budget": ", ".join(budget),
        "View": f"shorter side {options.view.size} px" if options.view.size else "the file's own size",
        "Seed": "" if options.seed is None else str(options.seed),
        "Backend": _escape(f"{options.backend} on {options.device}"),
        "Time": "" if last.seconds is None else _duration(last.seconds) + speed,
        "Date": _escape(_date(run.recorded.created)),
        "Versions": _escape(versions),
    }
    return (
        '<dl class="facts">'
        + "".join(f"<dt>{name}</dt><dd>{fact}</dd>" for name, fact in facts.items() if fact)
        + "</dl>"
    )


def _plot(run: Run) -> str:
    """Distance over steps as a share of each image's start: one thin line an image, the median bold."""
    images = [run.images[place] for place in run.curves]
    histories = list(run.curves.values())
    if not images:
        return '<p class="soft">No image has a history of more than one step.</p>'
    length = max(map(len, histories))
    padded = numpy.empty((len(images), length))
    with numpy.errstate(over="ignore"):
        for curve, history in zip(padded, histories, strict=True):
            steps = len(history)
            # A damaged record may hold any figures; none above 3 is drawn.
            curve[:steps] = numpy.clip(numpy.array(history) / history[0], 0, 1e6)
            curve[steps:] = curve[steps - 1]
    median = numpy.median(padded, axis=0).tolist()
    bottom = max(math.floor(10 * float(padded.min()) - 1e-9) / 10, 0.0)
    top = min(max(math.ceil(10 * float(padded.max()) - 1e-9) / 10, 1.0), 3.0)

    def height(value: float) -> float:
        return 100 * (1 - (min(value, top) - bottom) / (top - bottom))

    def path(values: Sequence[float]) -> str:
        stride = max(1, math.ceil(len(values) / PLOTTED_POINTS))
        steps = sorted({*range(0, len(values), stride), len(values) - 1})
        return "M" + "L".join(f"{1000 * step / (length - 1):.0f} {10 * height(values[step]):.0f}" for step in steps)

    stride = math.ceil(len(images) / PLOTTED_LINES)
    shown = images[::stride]
    lines = "".join(
        f'<path class="each {image.status}" d="{path(curve[: len(history)].tolist())}">'
        f"<title>{_escape(label_of(image))}: {_percent(curve[-1])} left</title></path>"
        for image, history, curve in zip(shown, histories[::stride], padded[::stride], strict=True)
    )
    rows = _ticks(bottom, top, 5)
    grid = "".join(
        f'<line class="grid" x1="0" x2="1000" y1="{10 * height(row):.0f}" y2="{10 * height(row):.0f}"/>' for row in rows
    )
    labels = "".join(f'<span class="y" style="top:{height(row):.1f}%">{100 * row:.0f}%</span>' for row in rows)
    labels += "".join(
        f'<span class="x" style="left:{100 * step / (length - 1):.1f}%">{step:g}</span>'
        for step in _ticks(0, length - 1, 6)
        if step == int(step)
    )
    count = len(run.figures.curves)
    each = f"one image ({len(shown)} of {count} drawn)" if len(shown) < count else "one image"
    middle = "median" if len(images) == count else f"median of {len(images)}, taken evenly over all"
    dashed = '<b class="dashed">below target</b>' if any(image.status == "below_target" for image in shown) else ""
    words = (
        f"Distance over {length} steps for {len(images)} images; the median ends at {_percent(median[-1])} of its start"
    )
    return (
        f'<figure class="plot"><figcaption class="key">Latent distance to the anchor, as a share of its start<br>'
        f'<b>{middle}</b><b class="thin">{each}</b>{dashed}</figcaption>'
        f'<div class="plot-area" role="img" aria-label="{words}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none">'
        f'{grid}{lines}<path class="median" d="{path(median)}"/></svg>{labels}<span class="name">step</span>'
        f'<span class="end" style="top:{height(median[-1]):.1f}%">{_percent(median[-1])}</span></div></figure>'
    )


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round values from low to high, at most about `most` of them."""
    raw = (high - low) / most or 1
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw - 1e-12)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * place, 10) for place in range(first, last + 1)]


def _cards(run: Run, cards: Sequence[Card], remark: str | None) -> str:
    if not cards:
        return ""
    shown = {status: sum(card.row.status == status for card in cards) for status in STATUS_WORDS}
    choices = [("all", "all", len(cards)), *((status, word, shown[status]) for status, word in STATUS_WORDS.items())]
    choices = [choice for choice in choices if choice[2]]
    filters = ""
    if len(choices) > 2:
        inputs = "".join(
            f'<input class="filter" type="radio" name="show" id="show-{key}"{" checked" if key == "all" else ""}>'
            for key, _, _ in choices
        )
        labels = "".join(f'<label for="show-{key}">{word} {count}</label>' for key, word, count in choices)
        filters = f'{inputs}<div class="filters">{labels}</div>'
    lines = ["Press and hold a picture to see its counterpart in its place; with the keyboard, hold space."]
    if len(cards) < run.totals.images:
        listed = "all" if len(run.listed) == run.totals.images else f"{len(run.listed):,} of them"
        lines.insert(
            0,
            f"{len(cards)} of {run.totals.images} images are shown: those that fell short first, the others evenly "
            f"from the weakest to the strongest. The table below lists {listed}.",
        )
    hint = f'<p class="lead hint">{" ".join(lines)}</p>'
    note = f'<p class="lead">{_escape(remark)}</p>' if remark else ""
    inside = "\n".join(_card(run, card) for card in cards)
    return f"<section><h2>Images</h2>{hint}{note}{filters}\n{inside}</section>"


def _card(run: Run, card: Card) -> str:
    row, number = card.row, card.index + 1
    opening = (
        f'<article class="card {row.status}" id="image-{number}"><div class="side">'
        f'<h3><a href="#row-{number}" aria-label="Row {number} of the table">{number}</a>{_label(row)}</h3>'
        f'<p class="status">{STATUS_WORDS[row.status]}</p>'
    )
    if row.status == "failed":
        reason = f'<p class="reason">{_escape(row.error or "No reason was recorded.")}</p>'
        return f'{opening}</div><div class="row">{"".join(map(_panel, card.files))}{reason}</div></article>'
    reason = f'<p class="reason">{_escape(row.error)}</p>' if row.error else ""
    rows = f'<div class="row">{"".join(map(_panel, card.files))}</div>'
    if card.seen:
        rows += "<h4>What the model sees</h4>" + f'<div class="row">{"".join(map(_panel, card.seen))}</div>'
    return f"{opening}{_left(row)}{_measures(run, row)}{reason}</div><div>{rows}</div></article>"


def _left(row: Row) -> str:
    if row.ratio is None:
        return '<p class="left">–<small>distance not measured</small></p>'
    return (
        f'<p class="left">{_percent(row.ratio)}<small>of the distance left: {_distances(row)}'
        f"{_bar(row.ratio)}</small></p>"
    )


def _measures(run: Run, row: Row) -> str:
    linf, lpips = "–", "–"
    if row.linf is not None:
        linf = f"{255 * row.linf:.4g}/255" + ("" if within_linf(row.linf, run.options.budget.linf) else _exceeded())
    if row.lpips is not None:
        lpips = f"{row.lpips:.4f}" + ("" if within_lpips(row.lpips, run.options.budget.lpips) else _exceeded())
    measures = {
        "linf": linf,
        "lpips": lpips,
        "steps": str(row.steps),
        "time": _time(row),
        "size": _size(row),
    }
    if row.target and row.target != run.options.target:
        measures["target"] = _escape(_short(row.target))
    inside = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in measures.items())
    return f'<dl class="measures">{inside}</dl>'


def _exceeded() -> str:
    return ' <span class="exceeded">exceeds the budget</span>'


def _panel(panel: Panel) -> str:
    caption = f"<figcaption>{_escape(panel.title)}</figcaption>"
    if panel.uri is None:
        return f'<figure class="panel"><div class="empty">{_escape(panel.problem)}</div>{caption}</figure>'
    aspect = min(max(panel.width / panel.height, 0.6), 2.5)
    tiny = ' class="tiny"' if max(panel.width, panel.height) < 64 else ""
    image = f'<img{tiny} src="{panel.uri}" alt="{_escape(panel.alt)}" decoding="async">'
    style = f'class="picture" style="aspect-ratio:{aspect:.3f}"'
    swaps = panel.title.startswith(("clean", "perturbed"))
    picture = f'<button type="button" {style}>{image}</button>' if swaps else f"<div {style}>{image}</div>"
    return f'<figure class="panel">{picture}{caption}</figure>'


def _table(run: Run, cards: Sequence[Card]) -> str:
    if not run.listed:
        return ""
    shown = {card.index for card in cards}
    rows = "\n".join(_row(index, run.images[index], index in shown) for index in run.listed)
    words = {"#": "", "image": "word", "status": "word", "size": "", "linf<br>/255": "", "lpips": ""}
    words |= {"distance": "", "left": "", "": "", "steps": "", "time": ""}
    heads = "".join(f'<th scope="col" class="{kind}">{word}</th>' for word, kind in words.items())
    title, note = "All images", ""
    if len(run.listed) < run.totals.images:
        title, short = "Images", run.totals.statuses["below_target"] + run.totals.statuses["failed"]
        fell = sum(run.images[index].status != "ok" for index in run.listed)
        which = f"and {fell:,} of the {short:,} that failed or fell short"
        if fell == short:
            which = f"all {short:,} that failed or fell short, and others taken evenly over the archive"
        note = (
            f'<p class="lead">{len(run.listed):,} of {run.totals.images:,} images are listed: those in pictures, '
            f"{which}; the manifest has all.</p>"
        )
    return (
        f'<section><h2>{title}</h2>{note}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="Table of {title.lower()}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div></section>"
    )


def _row(index: int, row: Row, shown: bool) -> str:
    number = str(index + 1)
    link = f'<a href="#image-{number}">{number}</a>' if shown else number
    error = f"<small>{_escape(row.error)}</small>" if row.error else ""
    cells = [
        _size(row),
        "–" if row.linf is None else f"{255 * row.linf:.4g}",
        "–" if row.lpips is None else f"{row.lpips:.4f}",
        _distances(row),
        _percent(row.ratio),
        "" if row.ratio is None else _bar(row.ratio),
        str(row.steps),
        _time(row),
    ]
    return (
        f'<tr class="{row.status}" id="row-{number}"><td>{link}</td>'
        f'<td class="word">{_label(row)}{error}</td><td class="word status">{STATUS_WORDS[row.status]}</td>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def _distances(row: Row) -> str:
    before, after = (
        "–" if distance is None else f"{distance:.1f}" if distance >= 10 else f"{distance:.3g}"
        for distance in (row.distance_before, row.distance_after)
    )
    return "–" if before == after == "–" else f"{before} → {after}"


def _label(row: Row) -> str:
    """The image's name, escaped, with places where a line may break."""
    return _escape(label_of(row)).replace("_", "_<wbr>").replace("/", "/<wbr>")


def _bar(ratio: float) -> str:
    return f'<span class="bar" aria-hidden="true"><i style="width:{100 * min(max(ratio, 0), 1):.0f}%"></i></span>'


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{100 * ratio:.1f}%"


def _levels(run: Run) -> int:
    return math.floor(255 * (run.options.budget.linf or 0) + 1e-6)


def _size(row: Row) -> str:
    return f"{row.width}×{row.height}" if row.width and row.height else "–"


def _time(row: Row) -> str:
    seconds = seconds_of(row)
    return "–" if seconds is None else _duration(seconds)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    units = [(int(seconds // 3600), "h"), (int(seconds // 60 % 60), "min"), (int(seconds % 60), "s")]
    first = next(place for place, (count, _) in enumerate(units) if count)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2])


def _date(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".strip()


def _escape(text: str) -> str:
    return escape(printable(text))


def _short(target: str) -> str:
    """A target as a reader knows it: its name, or the file name of a path."""
    return PurePath(target).name or target
