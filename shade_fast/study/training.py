"""Training the small generator, from scratch or from a checkpoint with other images; resumable, seeded."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor

from shade_fast.study.generator import Generator, GeneratorShape, flow_loss
from shade_fast.system.files import write_whole
from shade_fast.terms.errors import ShadeFastError

#: Share of the captions that are left out, so that the model can draw without one (guidance needs it).
WITHOUT_CAPTION = 0.1
FORMAT = "shade_fast_generator"


@dataclass(frozen=True)
class Schedule:
    """steps of `batch` samples; the learning rate rises over `warmup` steps, and falls as a cosine to a tenth.

    average: decay of the weights' running average, which is used for drawing; shorter while the steps are few.
    """

    steps: int
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 100
    average: float = 0.999
    weight_decay: float = 0.01
    seed: int = 0

    def rate(self, step: int) -> float:
        falling = 0.55 + 0.45 * math.cos(math.pi * step / self.steps)
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup)) * falling


@dataclass(frozen=True, eq=False)
class Examples:
    """What a generator is trained on: latents float32 [N, C, h, w] as the encoder gives them, captions' embeddings
    [N, text]. `facts`: what made them (encoder, its hash, the size of the images, the sentence model)."""

    latents: Tensor
    texts: Tensor
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(eq=False)
class Checkpoint:
    """A generator with what draws from it and what its training resumes from.

    generator: the weights under training. averaged: their running average. mean, deviation: [1, C, 1, 1], which latents
    are scaled by. step: steps done. facts: what it was trained on. optimizer: AdamW's state, by the weights' names.
    """

    generator: Generator
    averaged: Generator
    mean: Tensor
    deviation: Tensor
    step: int = 0
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @classmethod
    def fresh(cls, shape: GeneratorShape, examples: Examples, seed: int) -> Checkpoint:
        """Weights drawn from the seed; scaled to the latents of the examples."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            generator = Generator(shape)
        deviation, mean = torch.std_mean(examples.latents, (0, 2, 3), keepdim=True)
        return cls(generator, copy.deepcopy(generator), mean, deviation, facts=dict(examples.facts))

    def branch(self) -> Checkpoint:
        """A copy whose averaged weights are trained on, from step 0, with a new optimiser: for fine-tuning."""
        averaged = self.averaged
        return dataclasses.replace(
            self, generator=copy.deepcopy(averaged), averaged=copy.deepcopy(averaged), step=0, optimizer={}
        )

    def save(self, path: Path) -> None:
        """Write a .safetensors file, whole or not at all. Raises ShadeFastError where it cannot be written."""
        tensors = {f"generator.{name}": value for name, value in self.generator.state_dict().items()}
        tensors |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.items()}
        tensors |= {"mean": self.mean, "deviation": self.deviation}
        facts = {"shape": dataclasses.asdict(self.generator.shape), "step": self.step, "facts": self.facts}
        whole = {name: value.detach().contiguous() for name, value in tensors.items()}
        try:
            write_whole(path, serialized(whole, {FORMAT: json.dumps(facts)}))
        except OSError as error:
            raise ShadeFastError(f"{path}: the checkpoint cannot be written ({error}); give another place") from error

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read what `save` wrote. Raises ShadeFastError for a file that is missing, or no checkpoint."""
        try:
            with safe_open(str(path), "pt") as file:
                facts = json.loads((file.metadata() or {})[FORMAT])
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            shape = GeneratorShape(**facts["shape"])
            generator, averaged = Generator(shape), Generator(shape)
            generator.load_state_dict(_below(tensors, "generator."))
            averaged.load_state_dict(_below(tensors, "averaged."))
            return cls(
                generator=generator,
                averaged=averaged,
                mean=tensors["mean"],
                deviation=tensors["deviation"],
                step=facts["step"],
                facts=facts["facts"],
                optimizer=_below(tensors, "optimizer."),
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ShadeFastError(
                f"{path}: no checkpoint of a generator that can be read ({error}); train one with "
                "`shade-fast study train`"
            ) from error


def train(
    checkpoint: Checkpoint,
    examples: Examples,
    schedule: Schedule,
    *,
    path: Path | None = None,
    every: int = 500,
    progress: Callable[[int, float], None] | None = None,
) -> Checkpoint:
    """Train a checkpoint further, in place, to the schedule's last step.

    What a step draws follows from the seed and its number alone, so that a run that is cut off and resumes from its
    checkpoint ends with the weights of one that was not. path: where the checkpoint is kept each `every` steps.
    progress: called with (step, mean loss of the batch).
    Raises ShadeFastError for no examples, and for latents or captions of another shape than the generator's.
    """
    _check(checkpoint, examples, schedule)
    generator, averaged = checkpoint.generator.train(), checkpoint.averaged.eval()
    optimizer = torch.optim.AdamW(
        generator.parameters(), schedule.learning_rate, betas=(0.9, 0.99), weight_decay=schedule.weight_decay
    )
    _restore(optimizer, generator, checkpoint.optimizer)
    latents = (examples.latents - checkpoint.mean) / checkpoint.deviation
    for step in range(checkpoint.step, schedule.steps):
        draws = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
        picks = torch.randint(len(examples), (schedule.batch,), generator=draws)
        noise = torch.randn((schedule.batch, *latents.shape[1:]), generator=draws)
        times = torch.randn(schedule.batch, generator=draws).sigmoid()
        captioned = torch.rand(schedule.batch, 1, generator=draws) >= WITHOUT_CAPTION
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss = flow_loss(generator, latents[picks], examples.texts[picks] * captioned, times, noise).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        decay = min(schedule.average, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(generator.parameters()), 1 - decay)
        checkpoint.step = step + 1
        if progress is not None:
            progress(step + 1, float(loss.detach()))
        if path is not None and (checkpoint.step % every == 0 or checkpoint.step == schedule.steps):
            checkpoint.optimizer = _state(optimizer, generator)
            checkpoint.save(path)
    checkpoint.optimizer = _state(optimizer, generator)
    return checkpoint


def _check(checkpoint: Checkpoint, examples: Examples, schedule: Schedule) -> None:
    if not len(examples):
        raise ShadeFastError("examples: there are none to train on")
    if schedule.steps < 1 or schedule.batch < 1:
        raise ShadeFastError(f"steps={schedule.steps}, batch={schedule.batch}: give whole numbers, at least 1")
    shape = checkpoint.generator.shape
    wanted = (shape.channels, shape.side, shape.side)
    if tuple(examples.latents.shape[1:]) != wanted or examples.texts.shape[1] != shape.text:
        raise ShadeFastError(
            f"examples: latents {list(examples.latents.shape[1:])} with captions of {examples.texts.shape[1]}; this "
            f"generator takes {list(wanted)} with {shape.text}: give it what it began with"
        )


def _state(optimizer: torch.optim.Optimizer, generator: Generator) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": value
        for name, parameter in generator.named_parameters()
        for kind, value in optimizer.state[parameter].items()
    }


def _restore(optimizer: torch.optim.Optimizer, generator: Generator, state: Mapping[str, Tensor]) -> None:
    if state:
        for name, parameter in generator.named_parameters():
            optimizer.state[parameter] = {
                kind: state[f"{kind}.{name}"].clone() for kind in ("step", "exp_avg", "exp_avg_sq")
            }


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
