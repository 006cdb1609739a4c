"""The registry: what a case and its sides are, and the list of all of them."""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


def _nothing() -> None:
    """No preparation is needed between runs."""


def _unknown() -> int:
    return 0


@dataclass(frozen=True)
class Side:
    """One backend's way to do a case's work.

    `run` is timed; what it returns goes to `check`, which returns None or says what is wrong with it. `reset` is called
    before each run, untimed. `release` gives back the memory that is kept from run to run, besides weights. `error` is
    the relative error of a result, where one number says it. A side whose device works asynchronously waits for it
    inside `run`.
    """

    ran: str
    run: Callable[[], Any]
    check: Callable[[Any], str | None]
    reset: Callable[[], None] = _nothing
    release: Callable[[], None] = _nothing
    error: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Case:
    """One piece of work at one size, that several backends do.

    `prepare` makes the inputs once, and returns the function that makes a backend's side of them; each raises
    ShadeFastError for what is not there. `bytes_moved` and `operations` are the least that one run takes, of memory
    traffic and of floating-point work; 0 where the figure means nothing. `threads` is torch's thread count in it, None
    for what is set. A case that is not `standard` runs only where it is named.
    """

    name: str
    purpose: str
    shape: str
    backends: tuple[str, ...]
    prepare: Callable[[], Callable[[str], Side]]
    images: int = 1
    bytes_moved: int = 0
    operations: Callable[[], int] = _unknown
    standard: bool = True
    threads: int | None = None


@contextmanager
def threads_of(case: Case) -> Iterator[None]:
    """Torch's thread count as the case has it, and then as it was."""
    before = torch.get_num_threads()
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_cases: dict[str, Case] = {}


def register(case: Case) -> Case:
    """Add a case; its name is unique, with dots between its parts, the largest group first."""
    if case.name in _cases:
        raise ValueError(f"the benchmark case {case.name} is registered twice")
    _cases[case.name] = case
    return case


def all_cases() -> list[Case]:
    """Every case of every module in benchmarks/cases, by name."""
    from benchmarks import cases

    for module in pkgutil.iter_modules(cases.__path__):
        importlib.import_module(f"{cases.__name__}.{module.name}")
    return sorted(_cases.values(), key=lambda case: case.name)


def select(patterns: Iterable[str]) -> list[Case]:
    """The cases that any pattern names: a case's name; the first parts of several names; or a shell pattern.

    Without a pattern, and by first parts, those alone that are standard. Raises ValueError for a pattern that names
    none.
    """
    cases, wanted = all_cases(), list(patterns)
    if not wanted:
        return [case for case in cases if case.standard]
    chosen: set[str] = set()
    for pattern in wanted:
        named = {case.name for case in cases if fnmatch.fnmatchcase(case.name, pattern)}
        named = named or {case.name for case in cases if case.name.startswith(f"{pattern}.") and case.standard}
        if not named:
            raise ValueError(f"no benchmark case {pattern!r}; there are {', '.join(case.name for case in cases)}")
        chosen |= named
    return [case for case in cases if case.name in chosen]
