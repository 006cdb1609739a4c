"""Options that several commands have."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path


def names(parser: ArgumentParser, default: str) -> None:
    """Cases; `default` says in words which, where none is named."""
    text = f"a case's name, its first parts, or a shell pattern (default: {default})"
    parser.add_argument("case", nargs="*", help=text)


def backends(parser: ArgumentParser) -> None:
    parser.add_argument("--backends", type=lambda text: text.split(","), help="comma-separated (default: each case's)")


def machine(parser: ArgumentParser) -> None:
    """Threads, which the door sets, and the file of rows."""
    parser.add_argument("--threads", type=int, help="torch's thread count (default: torch's own)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows there")


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    return tuple(int(part) for part in text.split(","))
