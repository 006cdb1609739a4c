"""Command-line arguments: the flags of options stated once, and those that several commands have."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import limit_names
from shade_fast.terms.options import Flag


def add_options(parser: argparse.ArgumentParser, kind: type[Any], only: Collection[str] | None = None) -> None:
    """The flags of a dataclass of options (`terms.options`). only: the names of those that the command has."""
    for field in dataclasses.fields(kind):
        flags = [flag for flag in field.metadata["flags"] if only is None or flag.name in only]
        exclusive = any(flag.instead_of for flag in flags)
        add = parser.add_mutually_exclusive_group().add_argument if exclusive else parser.add_argument
        for flag in flags:
            _add(add, flag)


def _add(add: Callable[..., Any], flag: Flag) -> None:
    text = flag.help if isinstance(flag.help, str) else flag.help()
    names = [f"--{name}" for name in (flag.name, *flag.aliases)]
    if flag.instead_of is not None:
        destination = flag.instead_of.replace("-", "_")
        add(*names, dest=destination, action="store_const", const=flag.const, default=argparse.SUPPRESS, help=text)
    elif flag.const is not None:
        add(*names, action="store_true", help=text)
    else:
        details: dict[str, Any] = {"default": flag.default, "metavar": flag.metavar, "help": text}
        if flag.parse is not None:
            details["type"] = parsed_by(flag.parse)
        if flag.choices is not None:
            details["choices"] = flag.choices()
        if flag.many:
            details["action"] = "append" if flag.parse is None else "extend"
        add(*names, **details)


def parsed_by(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of text as argparse takes it: with its own error messages."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ShadeFastError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parsed.__name__ = parse.__name__  # argparse names it where a value is not one
    return parsed


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-record",
        action="store_true",
        default=None,
        help="open the files and networks that the record names, also where no run of yours wrote it",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", action="append", metavar="SRC", help="the source, where it is another than the record says"
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max",
        action="append",
        metavar="NAME=VALUE",
        help=f"change a limit (docs/security.md), such as image-bytes=1G; names: {', '.join(limit_names())}",
    )


def size(text: str) -> int | None:
    """Pixels, or None for `none`."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of pixels, or 'none'") from None
