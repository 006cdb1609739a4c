"""A line for each case: its name, shape, sides and purpose."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from benchmarks import options as shared
from benchmarks.registry import all_cases, select


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    shared.names(parser, "all")


def run(options: Namespace) -> int:
    """The command."""
    for case in select(options.case) if options.case else all_cases():
        condition = "" if case.standard else " (only by name)"
        print(f"{case.name:32} {case.shape:20} {','.join(case.backends):44} {case.purpose}{condition}")
    return 0
