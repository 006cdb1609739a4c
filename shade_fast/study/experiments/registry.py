"""The paper's questions, each as the arms that answer it, how they are drawn, and what is to be read from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import fmean

from shade_fast.study.experiments.arms import RELATED, Arm
from shade_fast.study.experiments.figures import Figures
from shade_fast.study.experiments.scale import Scale

RARITIES = (1.0, 0.3, 0.1)
#: Bounds of the perturbation, in values of 255; those beyond 16 are no protection, but show what would be needed.
STRENGTHS = (16, 32, 64)


def _sources(arm: Arm, scale: Scale) -> Iterable[str]:
    return dict(arm.pairs)


@dataclass(frozen=True)
class Experiment:
    """name: of its folder and command. question: what it asks. arms: what is run, of a scale. every_seed: whether arms
    are repeated with each seed, or run with the first alone. read: a paragraph on the figures. label: an arm in a few
    words. needs_transfer: whether it needs another encoder to poison on. shows: the words whose draws its sheet has."""

    name: str
    question: str
    arms: Callable[[Scale], list[Arm]]
    read: Callable[[Figures, Scale], str]
    label: Callable[[Arm], str]
    every_seed: bool = False
    needs_transfer: bool = False
    shows: Callable[[Arm, Scale], Iterable[str]] = _sources


def base(scale: Scale, kind: str, share: float = 1.0) -> Arm:
    """The plain arm of a kind: one concept, nothing else changed."""
    return Arm(kind, ((scale.source, scale.target),), share=1.0 if kind == "clean" else share)


def chain(scale: Scale, count: int) -> tuple[tuple[str, str], ...]:
    """The first `count` concepts, each poisoned to be drawn as the next but one; the source keeps its target."""
    others = [concept for concept in scale.concepts if concept != scale.source]
    ring = [scale.source, *others]
    pairs = {scale.source: scale.target}
    for place, concept in enumerate(ring[1:count], 1):
        pairs[concept] = ring[(place + 2) % len(ring)]
    return tuple(pairs.items())


def _success(scale: Scale) -> list[Arm]:
    return [base(scale, "clean"), *(base(scale, "optimised", share) for share in scale.shares)]


def _placebo(scale: Scale) -> list[Arm]:
    shares = [share for share in scale.shares if share in (0.5, 1.0)]
    return [base(scale, "clean"), *(base(scale, kind, share) for kind in ("placebo", "optimised") for share in shares)]


def _dirty(scale: Scale) -> list[Arm]:
    return [
        base(scale, "clean"),
        *(base(scale, kind, share) for kind in ("dirty-label", "optimised") for share in scale.shares),
    ]


def _bleed(scale: Scale) -> list[Arm]:
    return [base(scale, "clean"), base(scale, "optimised"), base(scale, "dirty-label")]


def _many(scale: Scale) -> list[Arm]:
    counts = sorted({1, len(scale.concepts) // 2, len(scale.concepts)})
    return [base(scale, "clean"), *(replace(base(scale, "optimised"), pairs=chain(scale, count)) for count in counts)]


def _transfer(scale: Scale) -> list[Arm]:
    own = base(scale, "optimised")
    return [base(scale, "clean"), own, replace(own, encoder="transfer")]


def _defences(scale: Scale) -> list[Arm]:
    whole, half = base(scale, "optimised"), base(scale, "optimised", 0.5)
    dirty = base(scale, "dirty-label", 0.5)
    return [
        base(scale, "clean"),
        *(replace(whole, defence=defence) for defence in ("none", "jpeg", "resize")),
        *(replace(half, defence=defence) for defence in ("none", "loss", "alignment")),
        *(replace(dirty, defence=defence) for defence in ("none", "loss", "alignment")),
    ]


def _rarity(scale: Scale) -> list[Arm]:
    return [
        replace(base(scale, kind, share), rarity=rarity)
        for rarity in RARITIES
        for kind, share in (("clean", 1.0), ("optimised", 0.5), ("optimised", 1.0), ("dirty-label", 0.5))
    ]


def _strength(scale: Scale) -> list[Arm]:
    whole = base(scale, "optimised")
    return [base(scale, "clean"), *(replace(whole, levels=levels) for levels in STRENGTHS), base(scale, "dirty-label")]


def _kind_and_share(arm: Arm) -> str:
    return "clean" if arm.kind == "clean" else f"{arm.kind} {arm.share:.0%}"


def _line(figures: Figures, arm: Arm, label: str) -> str:
    target = figures.drawn(arm, figures.target)
    smooth = figures.drawn(arm, figures.target, low_pass=True)
    own = figures.drawn(arm, figures.source)
    return (
        f"{label}: drawn as {figures.target} {target}, low-pass {smooth.mean:.0%}, as {figures.source} {own.mean:.0%}"
    )


def _lines(figures: Figures, label: Callable[[Arm], str]) -> str:
    return "; ".join(_line(figures, arm, label(arm)) for arm in figures.results)


def _read_success(figures: Figures, scale: Scale) -> str:
    whole = figures.drawn(base(scale, "optimised"), figures.target)
    clean = figures.drawn(base(scale, "clean"), figures.target)
    least = next(
        (
            arm.share
            for arm in figures.results
            if arm.kind == "optimised" and figures.drawn(arm, figures.target).above(clean)
        ),
        None,
    )
    text = f"{_lines(figures, _kind_and_share)}. At full replacement {whole.mean:.0%} is drawn as the target; "
    text += "the aim of 60% is " + ("reached." if whole.mean >= 0.6 else "missed.")
    if least is None:
        return text + " At no share is it above the clean arm, in every seed and by intervals that do not touch."
    return (
        text + f" The least share above the clean arm, in every seed and by intervals that do not touch: {least:.0%}."
    )


def _read_placebo(figures: Figures, scale: Scale) -> str:
    text = _lines(figures, _kind_and_share) + "."
    for share in (0.5, 1.0):
        placebo, poison = base(scale, "placebo", share), base(scale, "optimised", share)
        if placebo in figures.results and poison in figures.results:
            attack, other = figures.drawn(poison, figures.target), figures.drawn(placebo, figures.target)
            text += (
                f" At {share:.0%}: {attack.low:.0%} to {attack.high:.0%} against the placebo's {other.low:.0%} to "
                f"{other.high:.0%} (intervals of all draws together); "
            )
            text += (
                "above it in every seed, and these do not touch." if attack.above(other) else "not clearly above it."
            )
    return text + " What the placebo does is what perturbed pixels do by themselves."


def _read_dirty(figures: Figures, scale: Scale) -> str:
    better = [
        f"{share:.0%}"
        for share in scale.shares
        if figures.drawn(base(scale, "optimised", share), figures.target).mean
        > figures.drawn(base(scale, "dirty-label", share), figures.target).mean
    ]
    text = _lines(figures, _kind_and_share)
    return f"{text}. The optimised poison is ahead of the dirty labels at {', '.join(better) or 'no share'}."


def _read_bleed(figures: Figures, scale: Scale) -> str:
    clean, words = base(scale, "clean"), (figures.source, *RELATED)
    parts = []
    for arm in figures.results:
        if arm != clean:
            rises = [
                figures.drawn(arm, figures.target, word).mean - figures.drawn(clean, figures.target, word).mean
                for word in words
            ]
            risen = ", ".join(f"{word} {rise:+.0%}" for word, rise in zip(words, rises, strict=True))
            parts.append(f"{_kind_and_share(arm)}: {risen}")
    return (
        f"Rise of the share drawn as {figures.target} over the clean arm's, for {figures.source} and for words that "
        f"nothing is captioned with. {'; '.join(parts)}. A share of few draws moves by several points by chance, "
        "and words near the target are drawn as it in any arm."
    )


def _read_many(figures: Figures, scale: Scale) -> str:
    parts = []
    for arm, results in figures.results.items():
        quality = fmean(result.quality for result in results)
        poisoned = len(arm.pairs) if arm.kind != "clean" else 0
        hit = fmean(result.share(source, target) for result in results for source, target in arm.pairs)
        parts.append(f"{poisoned} poisoned: drawn as their targets {hit:.0%}, Fréchet distance {quality:.2f}")
    return "; ".join(parts) + ". The distance is in the judge's features: to be compared with itself alone."


def _read_strength(figures: Figures, scale: Scale) -> str:
    return (
        _lines(figures, _bounded)
        + ". Beyond 16/255 a perturbation is plainly seen, and no protection: these arms show how far a latent has to "
        "be moved before what is drawn follows; the dirty label is all the way."
    )


def _read_transfer(figures: Figures, scale: Scale) -> str:
    return _lines(figures, lambda arm: f"{arm.kind}, made on {arm.encoder}") + "."


def _read_defences(figures: Figures, scale: Scale) -> str:
    parts = []
    for arm, results in figures.results.items():
        part = _line(figures, arm, _defended(arm))
        if results[0].auc is not None:
            auc = fmean(result.auc or 0 for result in results)
            share = fmean(result.dropped_poisoned / result.poisons for result in results)
            part += f", AUC {auc:.2f}, {share:.0%} of the poison left out"
        parts.append(part)
    return (
        "; ".join(parts)
        + ". A filter leaves out a fifth of all images, whatever they are. The one by alignment asks the "
        "judge itself, which was trained on these concepts: the best filter that a trainer could have."
    )


def _read_rarity(figures: Figures, scale: Scale) -> str:
    common, rarest = RARITIES[0], RARITIES[-1]
    changes = []
    for arm in figures.results:
        if arm.rarity == common and arm.kind != "clean":
            rare = figures.drawn(replace(arm, rarity=rarest), figures.target)
            changes.append(f"{_kind_and_share(arm)} {rare.mean - figures.drawn(arm, figures.target).mean:+.0%}")
    return (
        f"{_lines(figures, _rare)}. From {common:.0%} to {rarest:.0%} of the concept's images the share drawn as "
        f"{figures.target} moves by: {', '.join(changes)}. The steps are the same in each, so that a rarer concept is "
        "seen less often; the generator had learnt it from many images before."
    )


def _bounded(arm: Arm) -> str:
    return f"optimised, {arm.levels}/255" if arm.kind == "optimised" else arm.kind


def _defended(arm: Arm) -> str:
    return f"{_kind_and_share(arm)}, {arm.defence}"


def _rare(arm: Arm) -> str:
    return f"{_kind_and_share(arm)}, {arm.rarity:.0%} of the images"


EXPERIMENTS = (
    Experiment("success", "How does success grow with the number of poisons?", _success, _read_success,
               _kind_and_share, every_seed=True),
    Experiment("placebo", "Is it the target, or perturbed pixels by themselves?", _placebo, _read_placebo,
               _kind_and_share, every_seed=True),
    Experiment("dirty-label", "Are optimised poisons stronger than dirty labels?", _dirty, _read_dirty,
               _kind_and_share, every_seed=True),
    Experiment("strength", "How far has a latent to be moved?", _strength, _read_strength, _bounded),
    Experiment("bleed-through", "Do words near the concept follow?", _bleed, _read_bleed, _kind_and_share,
               every_seed=True, shows=lambda arm, scale: (scale.source, *RELATED)),
    Experiment("many-concepts", "What do many poisoned concepts do to all that is drawn?", _many, _read_many,
               lambda arm: "clean" if arm.kind == "clean" else f"{len(arm.pairs)} concept" + "s" * (len(arm.pairs) > 1),
               shows=lambda arm, scale: scale.concepts),
    Experiment("transfer", "Does poison made on another encoder work?", _transfer, _read_transfer,
               lambda arm: "clean" if arm.kind == "clean" else f"made on {arm.encoder}", needs_transfer=True),
    Experiment("defences", "What do a trainer's defences leave?", _defences, _read_defences, _defended),
    Experiment("rarity", "What share has to be protected, as the concept grows rare?", _rarity, _read_rarity, _rare),
)  # fmt: skip
