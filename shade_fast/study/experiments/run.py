"""Running experiments: each arm once, even where several need it; then each experiment's table, plot, sheet and
reading."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shade_fast.archive import fixed_plan
from shade_fast.study.experiments.arms import RELATED, Arm, Result, arm_file, run_arm, shown_images
from shade_fast.study.experiments.figures import Figures, write_rows
from shade_fast.study.experiments.makers import Run, make_by_processes, make_here
from shade_fast.study.experiments.prepare import Bench, prepare
from shade_fast.study.experiments.registry import EXPERIMENTS, Experiment
from shade_fast.study.experiments.scale import Scale
from shade_fast.study.plots import import_pyplot, write_sheet
from shade_fast.study.pool import caption_of
from shade_fast.terms.checks import at_least
from shade_fast.terms.errors import ShadeFastError

Say = Callable[[str], None]


def run_experiments(
    scale: Scale,
    pool: str | Path,
    folder: Path,
    *,
    only: Sequence[str] = (),
    encoder: str = "embedded",
    transfer: str | None = None,
    components: int | None = None,
    processes: int = 1,
    say: Say = print,
) -> list[Path]:
    """Run the paper's questions on a pool of photographs with concepts; run again, it resumes where it was cut off.

    folder: gets a subfolder with figures.csv, plot.svg, sheet.png and reading.md for each experiment; what they are
        made from is kept beside: the generator, the judge, perturbed images, and a file for each finished arm and seed.
    only: names of experiments, all by default. encoder: an autoencoder whose latents the generator is trained on.
    components: how many principal components of the latents' patches the generator is trained on instead of the latents
        as they are, for autoencoders of many channels.
    transfer: another encoder to poison on; without one the experiment that needs it is left out, which is reported.
    processes: how many make perturbed images and arms at a time, each with its share of torch's threads; training
        before any attack, and the judge's, take all threads in this one. 1: all is done in this process. A script that
        asks for more needs `if __name__ == "__main__"`. Figures depend on the number of threads of a process in their
        last digits.

    Returns the experiments' folders. Raises ShadeFastError for an unknown name, no processes, or one that failed,
    and as `prepare` does.
    """
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    for name in only:
        if name not in known:
            raise ShadeFastError(f"experiment {name!r}: give one of {', '.join(known)}")
    at_least("processes", processes)
    chosen = [known[name] for name in only] if only else list(EXPERIMENTS)
    again = functools.partial(
        prepare, scale, pool, folder, encoder=encoder, transfer=transfer, components=components, say=_nothing
    )
    with fixed_plan():
        bench = again(say=say)
        runs: dict[Experiment, list[Run]] = {}
        for experiment in chosen:
            if experiment.needs_transfer and bench.transfer is None:
                say(f"{experiment.name}: left out, as no other encoder was named (--transfer)")
                continue
            seeds = scale.seeds if experiment.every_seed else scale.seeds[:1]
            runs[experiment] = [(arm, seed) for arm in experiment.arms(scale) for seed in seeds]
        every = itertools.chain.from_iterable(runs.values())
        making = (
            make_here(bench, every, say) if processes == 1 else make_by_processes(bench, again, every, processes, say)
        )
        written = []
        with contextlib.closing(making):
            for experiment, some in runs.items():
                while not all(arm_file(folder, *run).exists() for run in some):
                    next(making)
                results: dict[Arm, list[Result]] = {}
                for arm, seed in some:
                    results.setdefault(arm, []).append(run_arm(bench, arm, seed))
                written.append(write_experiment(experiment, results, bench))
                say(f"{experiment.name}: {written[-1]}")
    return written


def _nothing(line: str) -> None:
    """The `say` of processes that repeat another's preparation."""


def write_experiment(experiment: Experiment, results: dict[Arm, list[Result]], bench: Bench) -> Path:
    """Write an experiment's table, plot, sheet and reading; returns its folder."""
    scale, folder = bench.scale, bench.folder / experiment.name
    figures = Figures(bench.world.concepts, scale.source, scale.target, results)
    write_rows(figures.rows(), folder / "figures.csv")
    _plot(experiment, figures, folder / "plot.svg")
    sheet = []
    for arm in results:
        words = list(experiment.shows(arm, scale))
        for word in words:
            label = experiment.label(arm) + ("" if len(words) == 1 else f": {word}")
            sheet.append((label, shown_images(bench.folder, arm, scale.seeds[0], word)))
    write_sheet(sheet, folder / "sheet.png")
    if experiment.name == "bleed-through":
        write_rows(bleed_rows(figures, bench), folder / "words.csv")
        _plot_words(bleed_rows(figures, bench), figures, folder / "words.svg")
    judge = ", ".join(f"{name} {value:.1%}" for name, value in bench.judge.accuracies.items())
    (folder / "reading.md").write_text(
        f"# {experiment.question}\n\n{experiment.read(figures, scale)}\n\n"
        f"The judge's own accuracy: {judge}. Shares are means over seeds, with the least and the most of a seed; an "
        f"arm with one seed has no such range, and is an indication alone. Intervals are Wilson's, of all draws taken "
        f"together: they know nothing of how seeds differ. Scale: {scale.name}.\n"
    )
    return folder


def bleed_rows(figures: Figures, bench: Bench) -> list[dict[str, Any]]:
    """For each word and arm: the cosine with the source's caption, and the share drawn as the target."""
    words = [figures.source, *RELATED]
    embedded = bench.sentences.embed([caption_of(word) for word in words])
    near = (embedded @ embedded[0]).tolist()
    return [
        {"word": word, "similarity": similarity, "kind": arm.kind,
         "drawn_as_target": figures.drawn(arm, figures.target, word).mean,
         "drawn_as_source": figures.drawn(arm, figures.source, word).mean}
        for word, similarity in sorted(zip(words, near, strict=True), key=lambda pair: -pair[1])
        for arm in figures.results
    ]  # fmt: skip


def _plot(experiment: Experiment, figures: Figures, path: Path) -> None:
    """A bar for each arm: the share drawn as the target, and without fine detail; lines from the least to the most."""
    pyplot = import_pyplot()
    arms = list(figures.results)
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.36 * len(arms)), layout="constrained")
    for smooth, offset, name in ((False, -0.19, "as drawn"), (True, 0.19, "low-pass")):
        shares = [figures.drawn(arm, figures.target, low_pass=smooth) for arm in arms]
        places = [place + offset for place in range(len(arms))]
        means = [share.mean for share in shares]
        spread = [[s.mean - s.least for s in shares], [s.most - s.mean for s in shares]]
        axes.barh(places, means, 0.38, xerr=spread, label=name, capsize=2)
    axes.set_yticks(range(len(arms)), [experiment.label(arm) for arm in arms])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"share of draws for {figures.source!r} that the judge takes for {figures.target!r}")
    axes.set_title(experiment.question)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _plot_words(rows: Sequence[dict[str, Any]], figures: Figures, path: Path) -> None:
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        some = [row for row in rows if row["kind"] == kind]
        axes.plot([row["similarity"] for row in some], [row["drawn_as_target"] for row in some], "o", label=kind)
    for row in rows:
        if row["kind"] == "dirty-label":
            axes.annotate(row["word"], (row["similarity"], row["drawn_as_target"]), (3, 4), textcoords="offset points")
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"cosine with the caption of {figures.source!r}")
    axes.set_ylabel(f"share drawn as {figures.target!r}")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
