"""The commands of the paper's study: `shade-fast study select`, `sparsity`, `compose`, `train`, `sample`, `judge`,
`run`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from shade_fast.cli.exits import EXIT_OK
from shade_fast.encoders import load_encoder
from shade_fast.images import UInt8Array
from shade_fast.study.clip import Clip
from shade_fast.study.compose import ANCHORS, KINDS, Ingredient, compose
from shade_fast.study.experiments import EXPERIMENTS, FULL, SMOKE, run_experiments
from shade_fast.study.judge import Classifier, ClipJudge
from shade_fast.study.pool import read_captions, read_pool, require_empty
from shade_fast.study.pools import (
    DEPTH,
    SCHEDULE,
    SIZE,
    WIDTH,
    judge_pool,
    train_judge_on_pool,
    train_on_pools,
    write_samples,
)
from shade_fast.study.sampling import STEPS, sample, sample_pipeline
from shade_fast.study.select import IMAGE_THRESHOLD, TOP, read_selected, select, write_selected
from shade_fast.study.sparsity import THRESHOLD, sparsity, sparsity_table, write_sparsity
from shade_fast.study.text import PACKAGED, SentenceEncoder
from shade_fast.study.training import Checkpoint
from shade_fast.terms.errors import ShadeFastError

#: Of `run`, at most, unless more are asked for.
PROCESSES = 8


def add(parser: argparse.ArgumentParser) -> None:
    """The study's commands."""
    inner = parser.add_subparsers(required=True, metavar="COMMAND")

    add = _command(inner, "select", _select, "choose a concept's images by what they and their captions say")
    add("pool", metavar="POOL")
    add("--concept", required=True, help="what is to be protected, in a word or few")
    add("--out", required=True, type=Path, metavar="FILE", help="the choice, a CSV")
    add("--count", type=int, default=100, help="how many to choose")
    add("--top", type=int, default=TOP, help="of the nearest captions, how many are drawn from")
    add("--clip", metavar="PATH|ID", help="CLIP that compares images and captions; without it captions alone are")
    add(
        "--threshold",
        type=float,
        default=IMAGE_THRESHOLD,
        help="of an image's CLIP similarity with 'a photo of CONCEPT'",
    )
    add("--seed", type=int, default=0, help="of the draw")
    _add_sentences(add)

    add = _command(inner, "sparsity", _sparsity, "how much of a caption corpus speaks of each concept")
    add("pool", metavar="POOL", help="a pool, or a .txt file of captions, one a line")
    add("--concept", required=True, action="append", dest="concepts", help="a word or few; again for more")
    add("--out", type=Path, metavar="DIR", help="folder for sparsity.csv and sparsity.svg")
    add("--threshold", type=float, default=THRESHOLD, help="least cosine with 'a photo of CONCEPT' that counts as near")
    _add_sentences(add)

    add = _command(inner, "compose", _compose, "a poison set as a recipe that `shade-fast archive` takes")
    add("pool", metavar="POOL")
    add("--out", required=True, type=Path, metavar="DIR", help="new folder for the recipe and its anchors")
    add("--pair", required=True, action="append", type=_pair, dest="pairs", metavar="SOURCE=TARGET[:KIND[:COUNT]]",
        help="poison SOURCE to be drawn as TARGET; again for more concepts at once")  # fmt: skip
    add("--kind", choices=KINDS, default="optimised", help="of pairs that name none")
    add("--count", type=int, default=100, help="images of pairs that name no count")
    add(
        "--chosen",
        type=Path,
        metavar="FILE",
        help="a selection by `select` that the images of the source, which is then one, are drawn from",
    )
    add("--anchors", type=int, default=ANCHORS, help="images of each target to move to; 0: another library is used")
    add("--seed", type=int, default=0, help="of what is drawn")

    add = _command(inner, "train", _train, "train the small generator on a pool, or go on with it")
    add("pools", nargs="+", metavar="POOL", help="images with captions; several are put together")
    add(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="the checkpoint; where it is there, its training resumes",
    )
    add("--start", type=Path, metavar="FILE", help="begin with another checkpoint's averaged weights: fine-tuning")
    add("--encoder", default="embedded", metavar="NAME|PATH|ID", help="autoencoder whose latents are trained on")
    add("--size", type=int, default=SIZE, help="pixels of the square that images are scaled to")
    add("--steps", type=int, default=SCHEDULE.steps)
    add("--batch", type=int, default=SCHEDULE.batch)
    add("--learning-rate", type=float, default=SCHEDULE.learning_rate)
    add("--width", type=int, help=f"of the transformer; without it the checkpoint's, or {WIDTH} for a new one")
    add("--depth", type=int, help=f"of the transformer; without it the checkpoint's, or {DEPTH} for a new one")
    add("--seed", type=int, default=0)
    _add_sentences(add)

    add = _command(inner, "sample", _sample, "draw images for prompts")
    add("model", metavar="MODEL", help="a checkpoint by `train`, or a diffusers pipeline's folder or hub:owner/name")
    add("--prompt", required=True, action="append", dest="prompts", help="what to draw; again for more")
    add("--out", required=True, type=Path, metavar="DIR", help="new; gets a subfolder for each prompt, and sheet.png")
    add("--count", type=int, default=16, help="images of each prompt")
    add("--steps", type=int, default=STEPS)
    add("--encoder", default="embedded", metavar="NAME|PATH|ID", help="autoencoder that a checkpoint was trained on")
    add("--device", default="cpu", help="of a pipeline")
    add("--seed", type=int, default=0)
    _add_sentences(add)

    add = _command(inner, "judge", _judge, "which concepts images show, by a classifier or by CLIP")
    add(
        "pool", metavar="POOL", help="images with a concept each, such as what `sample` wrote; their share by judgement"
    )
    add("--classifier", type=Path, metavar="FILE", help="a judge by --train")
    add("--clip", metavar="PATH|ID", help="CLIP as the judge")
    add("--concept", action="append", dest="concepts", help="what CLIP chooses among; again for more")
    add(
        "--train",
        type=Path,
        metavar="FILE",
        help="train a classifier on the pool, keeping a tenth to test it, and write it",
    )
    add("--epochs", type=int, default=8, help="of --train")
    add("--size", type=int, default=SIZE, help="pixels of the square that a classifier's images are scaled to")
    add("--json", action="store_true", help="print as JSON")

    add = _command(
        inner, "run", _run, "the paper's questions, each answered by a table, a plot, a sheet and a paragraph"
    )
    add("pool", metavar="POOL", help="photographs with concepts, CIFAR-10 as parquet for example")
    add("--out", required=True, type=Path, metavar="DIR", help="run again, it resumes where it was cut off")
    add("--smoke", action="store_true", help="everything small, to see that it runs; its figures mean nothing")
    add(
        "--only",
        action="append",
        default=[],
        choices=[experiment.name for experiment in EXPERIMENTS],
        help="one experiment; again for more (default: all)",
    )
    add("--encoder", default="embedded", metavar="NAME|PATH|ID", help="autoencoder whose latents are trained on")
    add("--components", type=int, metavar="N",
        help="train on the first N principal components of 2x2 patches of the latents: for autoencoders of many "
        "channels")  # fmt: skip
    add("--transfer", metavar="NAME|PATH|ID", help="another encoder, to make poison on that should transfer")
    add("--processes", type=int, default=min(torch.get_num_threads(), PROCESSES), metavar="N",
        help="how many make perturbed images and arms at a time; more take more memory, 1.5 GB each")  # fmt: skip


def _command(inner: Any, name: str, run: Callable[[argparse.Namespace], int], help_: str) -> Callable[..., Any]:
    parser = inner.add_parser(
        name, help=help_, description=help_[0].upper() + help_[1:] + ".",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser.add_argument  # type: ignore[no-any-return]


def _add_sentences(add: Callable[..., Any]) -> None:
    add("--sentences", default=PACKAGED, metavar="PATH|ID", help="sentence-embedding model")


def _pair(text: str) -> tuple[str, str, str | None, int | None]:
    source, equals, rest = text.partition("=")
    target, *more = rest.split(":")
    if not (source and equals and target) or len(more) > 2 or (more and more[0] not in KINDS):
        raise argparse.ArgumentTypeError(f"{text!r}: give SOURCE=TARGET, :KIND of {', '.join(KINDS)}, :COUNT")
    try:
        return source, target, more[0] if more else None, int(more[1]) if len(more) > 1 else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: COUNT {more[1]!r} is no whole number") from None


def _select(options: argparse.Namespace) -> int:
    chosen = select(
        read_pool(options.pool),
        options.concept,
        count=options.count,
        top=options.top,
        seed=options.seed,
        clip=None if options.clip is None else Clip(options.clip),
        image_threshold=options.threshold,
        sentences=None if options.clip is not None else SentenceEncoder(options.sentences),
    )
    write_selected(chosen, options.out)
    near = [selected.caption_similarity for selected in chosen]
    print(f"{options.out}: {len(chosen)} images, captions' similarity {min(near):.2f} to {max(near):.2f}")
    if len(chosen) < options.count:
        print(f"shade-fast: {options.count} were asked for, and no more passed", file=sys.stderr)
    return EXIT_OK


def _sparsity(options: argparse.Namespace) -> int:
    rows = sparsity(
        read_captions(options.pool),
        options.concepts,
        threshold=options.threshold,
        sentences=SentenceEncoder(options.sentences),
    )
    print(sparsity_table(rows))
    if options.out is not None:
        print(*write_sparsity(rows, options.out), sep="\n")
    return EXIT_OK


def _compose(options: argparse.Namespace) -> int:
    sources = sorted({source for source, *_ in options.pairs})
    if options.chosen is not None and len(sources) > 1:
        raise ShadeFastError(
            f"--chosen {options.chosen}: was selected for one concept, and the pairs have {', '.join(sources)}; "
            "compose a set for each"
        )
    chosen = None if options.chosen is None else read_selected(options.chosen)
    ingredients = [
        Ingredient(source, target, kind or options.kind, options.count if count is None else count, chosen)
        for source, target, kind, count in options.pairs
    ]
    recipe = compose(options.pool, ingredients, options.out, anchors=options.anchors, seed=options.seed)
    for (source, kind), count in recipe.counts.items():
        print(f"{source}: {count} {kind}")
    if recipe.recipe is not None:
        library = recipe.anchors if options.anchors else "DIR"
        # A recipe of paths names files of the pool, which lie outside the recipe's folder.
        folder = options.pool if Path(options.pool).is_dir() else Path(options.pool).parent
        allow = f" --allow-paths {folder}" if recipe.names_files else ""
        print(f"shade-fast archive {recipe.recipe} --anchors {library}{allow} --out PROTECTED   perturbs them")
    if recipe.dirty_label is not None:
        print(f"{recipe.dirty_label} holds the dirty labels, which are not perturbed")
    return EXIT_OK


def _train(options: argparse.Namespace) -> int:
    train_on_pools(
        options.pools,
        options.out,
        encoder=load_encoder(options.encoder),
        sentences=SentenceEncoder(options.sentences),
        start=options.start,
        size=options.size,
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.learning_rate,
        width=options.width,
        depth=options.depth,
        seed=options.seed,
        say=print,
    )
    return EXIT_OK


def _sample(options: argparse.Namespace) -> int:
    require_empty(options.out)
    drawn: Iterable[tuple[str, Iterable[UInt8Array]]]
    if Path(options.model).is_file():
        checkpoint = Checkpoint.load(Path(options.model))
        encoder, sentences = load_encoder(options.encoder), SentenceEncoder(options.sentences)
        chosen = {"seed": options.seed, "steps": options.steps}
        drawn = (
            (prompt, sample(checkpoint, prompt, options.count, encoder, sentences, **chosen))
            for prompt in options.prompts
        )
    else:
        drawn = sample_pipeline(
            options.model, options.prompts, options.count, seed=options.seed, steps=options.steps, device=options.device
        )
    print(write_samples(drawn, options.out))
    return EXIT_OK


def _judge(options: argparse.Namespace) -> int:
    if options.train is not None:
        judge = train_judge_on_pool(options.pool, options.train, size=options.size, epochs=options.epochs)
        print(f"{options.train}: " + ", ".join(f"{name} {value:.1%}" for name, value in judge.accuracies.items()))
        return EXIT_OK
    if (options.classifier is None) == (options.clip is None):
        raise ShadeFastError("judge: give --classifier FILE, or --clip ID with the --concept words to choose among")
    if options.clip is not None and not options.concepts:
        raise ShadeFastError("judge: --clip needs the words to choose among: --concept dog --concept truck ...")
    chosen = Classifier.load(options.classifier) if options.clip is None else ClipJudge(options.clip, options.concepts)
    table = judge_pool(options.pool, chosen, size=options.size)
    if options.json:
        print(json.dumps(table, indent=1))
    else:
        for shown, counts in table.items():
            total = sum(counts.values())
            likely = sorted(counts.items(), key=lambda item: -item[1])
            print(f"{shown}: " + ", ".join(f"{name} {count / total:.0%}" for name, count in likely if count))
        if isinstance(chosen, Classifier):
            print("judge's own accuracy: " + ", ".join(f"{on} {share:.1%}" for on, share in chosen.accuracies.items()))
    return EXIT_OK


def _run(options: argparse.Namespace) -> int:
    run_experiments(
        SMOKE if options.smoke else FULL,
        options.pool,
        options.out,
        only=options.only,
        encoder=options.encoder,
        transfer=options.transfer,
        components=options.components,
        processes=options.processes,
        say=lambda line: print(line, flush=True),
    )
    return EXIT_OK
