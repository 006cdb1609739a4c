"""The kernels under ThreadSanitizer, and that it sees a barrier that is not there; and, by itself, as ThreadSanitizer
finds races in that one's own library, under UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = sorted((HERE.parents[1] / "csrc" / "cuda").glob("*.cu"))
SANITIZED = ("-fsanitize=thread",)
BARRIER = "__syncthreads();"
#: What ThreadSanitizer exits with where it found something.
RACE = 66


def run(program: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": f"exitcode={RACE} report_signal_unsafe=0"}
    return subprocess.run([program], capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_the_emulation_does_what_it_says(build) -> None:
    done = run(build("selftest", [HERE / "selftest.cpp", KERNELS[[one.stem for one in KERNELS].index("launch")]]))
    assert done.returncode == 0, done.stdout


def test_no_kernel_has_a_race(build) -> None:
    done = run(build("races", [HERE / "races.cpp", *KERNELS], *SANITIZED))
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel's address space")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


def test_no_kernel_has_undefined_behaviour(build) -> None:
    done = run(build("undefined", [HERE / "races.cpp", *KERNELS], "-fsanitize=undefined", "-fno-sanitize-recover=all"))
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


@pytest.mark.parametrize("source", [one for one in KERNELS if BARRIER in one.read_text()], ids=lambda path: path.stem)
def test_a_missing_barrier_is_caught(source: Path, build, tmp_path: Path) -> None:
    """Every barrier there is, one after the other."""
    pieces = source.read_text().replace('#include "', f'#include "{source.parent}/').split(BARRIER)
    for missing in range(1, len(pieces)):
        changed = tmp_path / source.name
        changed.write_text(BARRIER.join(pieces[:missing]) + BARRIER.join(pieces[missing:]))
        kernels = [changed if one == source else one for one in KERNELS]
        done = run(build(f"without_{source.stem}_{missing}", [HERE / "races.cpp", *kernels], *SANITIZED))
        if "unexpected memory mapping" in done.stderr:
            pytest.skip("ThreadSanitizer does not run on this kernel's address space")
        assert done.returncode == RACE, done.stdout + done.stderr[-2000:]
        assert "data race" in done.stderr
