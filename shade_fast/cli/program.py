"""The program: its commands, each imported when it is asked for, its exit codes, and errors that nothing else
catches."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import select
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

from shade_fast.cli.exits import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_NOTHING, EXIT_PIPE
from shade_fast.terms.errors import ShadeFastError, reason
from shade_fast.terms.text import Terminal
from shade_fast.terms.version import __version__


@dataclass(frozen=True)
class Command:
    """A command: its line in the program's help, and what its own help says besides the options.

    Its module `shade_fast.cli.NAME` has `add(parser)`, which adds its arguments, and `run(options)`, which returns its
    exit code; `add` may also set a `run` for each of its own commands.
    """

    help: str
    description: str | None = None
    defaults: bool = False
    aliases: tuple[str, ...] = ()


COMMANDS = {
    "archive": Command(
        "protect images: files, folders, tar files, tables",
        "Protect an archive into the same shape; run again, it resumes where it ended. Exit code: 0 all ok, 1 some "
        "below target or failed, 2 nothing could run, 130 and 143 interrupted.",
        defaults=True,
        aliases=("poison",),
    ),
    "status": Command("what an archive's output holds, by its record"),
    "verify": Command(
        "measure an archive's output again, from its files alone",
        "Decode, hash and measure every image again. Exit code: 0 all as recorded, 1 any mismatch.",
    ),
    "report": Command("draw a run's record as one HTML page"),
    "fit": Command(
        "fit a warm start to a sample of an archive",
        "Fit the perturbation that the images of one target begin with: `archive --start FILE` needs fewer steps then "
        "on some encoders (docs/strength.md).",
        defaults=True,
    ),
    "survive": Command(
        "measure what is left after compression, resizing, crops and the like",
        "The share of the latent shift that is left after each treatment of the protected files.",
        defaults=True,
    ),
    "export": Command(
        "write an encoder and its step as ONNX graphs",
        "Write ONNX graphs for one image size: the encoder, the joint step with its input gradients, the LPIPS "
        "network's clean features; and a card that says what they take and give.",
        defaults=True,
    ),
    "bench": Command(
        "time a step of your encoder on this machine",
        "Time one optimiser step of one image in plain torch and through the backend, taking turns; every result is "
        "held against plain torch.",
        defaults=True,
    ),
    "study": Command(
        "choose what to protect, and test a plan on a small generator",
        "The paper's study (docs/study.md): what to protect, what it costs, and what a generator then draws. Needs "
        "pip install 'shade-fast[study]'. A POOL is a folder of images with captions in .txt files or a subfolder "
        "for each concept; a parquet, CSV, TSV or JSON-lines table; or a WebDataset tar.",
    ),
    "info": Command("devices, backends, weights found, versions"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 all ok, 1 some below target or failed, 2 nothing could run, 70 an error that nobody
    expected, 130 and 143 interrupted, 141 nobody reads the output any more."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold bytes that are not text, or characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    streams = [stream and cast("IO[str]", Terminal(stream)) for stream in (sys.stdout, sys.stderr)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        code = int(options.run(options))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        if not _unread():
            return _fault(error)
        # The reader has closed the output; what Python still flushes as it ends is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except ShadeFastError as error:
        print(f"shade-fast: {error}", file=sys.stderr)
        return EXIT_NOTHING
    except KeyboardInterrupt:
        print("shade-fast: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        return _fault(error)


def _fault(error: Exception) -> int:
    """Report an unexpected error and what it was about; with a traceback where SHADE_FAST_TRACEBACK is set."""
    about = "".join(f"{note}: " for note in getattr(error, "__notes__", ())[:2])
    hint = "what is recorded stays, and SHADE_FAST_TRACEBACK=1 shows where it came from: please report it"
    print(f"shade-fast: {about}unexpected error: {reason(error)}; {hint}", file=sys.stderr)
    if os.environ.get("SHADE_FAST_TRACEBACK"):
        traceback.print_exception(error)
    return EXIT_FAULT


def _unread() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout, 0)
    except (AttributeError, OSError, ValueError, TypeError):  # there is none, or it is no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


class _Lazy(argparse.ArgumentParser):
    """A command's parser, whose module is imported when the command is given."""

    module: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.module is not None:
            command, self.module = importlib.import_module(self.module), None
            command.add(self)
            if hasattr(command, "run"):  # else its own commands have one each
                self.set_defaults(run=command.run)
        return super().parse_known_args(args, namespace)


def parser() -> argparse.ArgumentParser:
    """The program's arguments; a command's own are added once it is known which."""
    program = argparse.ArgumentParser(
        prog="shade-fast", description="Protect images: perturbations inside a stated visual budget (arXiv 2310.13828)."
    )
    program.add_argument("--version", action="version", version=__version__)
    commands = program.add_subparsers(required=True, metavar="COMMAND", parser_class=_Lazy)
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name,
            aliases=command.aliases,
            help=command.help,
            description=command.description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter if command.defaults else argparse.HelpFormatter,
        )
        added.module = f"shade_fast.cli.{name}"
    return program
