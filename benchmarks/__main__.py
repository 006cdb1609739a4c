"""The door to all benchmarks: `python -m benchmarks COMMAND`; see README.md.

A command is a module, imported when it is asked for: its `arguments` adds options to a parser, its `run` does the work.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command's module, and what it is for. tuned: whether it runs with the tuned allocator."""

    module: str
    purpose: str
    tuned: bool = False


COMMANDS = {
    "list": Command("listing", "name the cases"),
    "run": Command("runner", "time cases, with the tuned allocator", tuned=True),
    "memory": Command("memory", "peak memory and allocations of a run, each side in a fresh process"),
    "time-to-quality": Command(
        "time_to_quality",
        "seconds until the published loops' latent distances are reached, with the tuned allocator",
        tuned=True,
    ),
    "table": Command("tables", "CSV files as tables in Markdown"),
    "plot": Command("plot", "CSV files as pictures (needs matplotlib)"),
    "quality": Command("quality", "how far the optimisers get on photographs, as CSV"),
    "frontier": Command("frontier", "quality's rows as a picture: the distance left against each bound"),
    "archive": Command("archive", "trials of whole archives: every row, kills, memory, overhead"),
    "gpu check": Command("gpu.check", "whether a GPU's results are right, and how fast it is"),
    "gpu model": Command("gpu.model", "what a step costs on a GPU, counted; compared with the committed table"),
    "gpu resources": Command("gpu.resources", "every GPU kernel compiled; compared with the committed table"),
    "embedded collect": Command("embedded.collect", "collect the embedded encoder's training photographs"),
    "embedded train": Command("embedded.train", "train the embedded encoder"),
    "embedded measure": Command("embedded.measure", "the embedded encoder's figures for its card"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 1 where a result is wrong, or what the command names is not there."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    name = named(words)
    if name is None:
        return _usage(words)
    command = COMMANDS[name]
    module = importlib.import_module(f"benchmarks.{command.module}")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=command.purpose,
        epilog=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    options = parser.parse_args(words[len(name.split()) :])
    if getattr(options, "threads", None):
        import torch

        torch.set_num_threads(options.threads)
    try:
        return int(module.run(options))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1


def named(words: Sequence[str]) -> str | None:
    """The command that the first words name; None where there is none."""
    return next((name for name in COMMANDS if name.split() == list(words[: len(name.split())])), None)


def _usage(words: Sequence[str]) -> int:
    """Print all commands, or a group's; the exit status is 0 where help was asked for."""
    group = [name for name in COMMANDS if words and name.split()[0] == words[0]]
    lines = ["usage: python -m benchmarks COMMAND ...", ""]
    lines += [f"  {name:17} {COMMANDS[name].purpose}" for name in group or COMMANDS]
    lines += ["", "`python -m benchmarks COMMAND --help` shows a command's options."]
    helped = any(word in ("-h", "--help") for word in words)
    if words and not helped:
        lines.append(f"There is no command {' '.join(words)!r}.")
    print("\n".join(lines), file=sys.stdout if helped else sys.stderr)
    return 0 if helped else 2


if __name__ == "__main__":
    chosen = named(sys.argv[1:])
    if chosen is not None and COMMANDS[chosen].tuned:
        from benchmarks.environment import restart_tuned

        restart_tuned(sys.argv[1:])
    sys.exit(main())
