"""Where a benchmark ran: the columns that every row has, and the allocator that the baselines need."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shade_fast.terms.version import __version__

#: glibc gives every large tensor back to the system as it is freed, and the next one pays for its pages anew: more
#: than a third of an eager step. With these it keeps them.
TUNED_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


@dataclass(frozen=True)
class Environment:
    """Device, torch's thread count, allocator (`default`, or what is set), versions and commit."""

    device: str
    threads: int
    allocator: str
    torch: str
    shade_fast: str
    commit: str


def environment() -> dict[str, str | int]:
    """The columns of `Environment`, of this process."""
    return {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "allocator": allocator(os.environ),
        "torch": torch.__version__,
        "shade_fast": __version__,
        "commit": _commit(),
    }


def allocator(variables: Mapping[str, str]) -> str:
    """In words, which allocator a process with these environment variables has."""
    chosen = {name: variables[name] for name in TUNED_ALLOCATOR if name in variables}
    if not chosen:
        return "default"
    return "tuned" if chosen == TUNED_ALLOCATOR else " ".join(f"{name}={value}" for name, value in chosen.items())


def with_allocator(variables: Mapping[str, str], tuned: bool) -> dict[str, str]:
    """Environment variables for a process that has the tuned allocator, or the system's own."""
    others = {name: value for name, value in variables.items() if name not in TUNED_ALLOCATOR}
    return others | TUNED_ALLOCATOR if tuned else others


def restart_tuned(arguments: Sequence[str]) -> None:
    """Become `python -m benchmarks ARGUMENTS` with the tuned allocator, unless its variables are set in any way."""
    if sys.platform.startswith("linux") and not any(name in os.environ for name in TUNED_ALLOCATOR):
        sys.stdout.flush()
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks", *arguments],
            with_allocator(os.environ, tuned=True),
        )


@functools.cache
def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@functools.cache
def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    root = Path(__file__).resolve().parents[1]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
