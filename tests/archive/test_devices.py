"""An archive over several devices, by real processes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from shade_fast.archive import Manifest, Storage
from tests.archive.outputs import Command, finish, images, wait_for_images
from tests.workers.processes import wait_until_gone, workers_of

#: Steps enough that something can happen while a run goes on.
LONGER = ("--steps", "150")


@pytest.fixture
def start(command: Command, many: Path, tmp_path: Path) -> Command:
    def call(devices: str, out: str = "out") -> subprocess.Popen[str]:
        events = tmp_path / f"{out}.jsonl"
        arguments = ("archive", many, "--out", tmp_path / out, *LONGER, "--devices", devices, "--events", events)
        return command(*arguments, start_new_session=True)

    return call


def test_a_killed_worker_then_a_signal_to_all_then_the_rest_on_one_device(start: Command, tmp_path: Path) -> None:
    process = start("cpu,cpu")
    wait_for_images(process, tmp_path / "out.jsonl", 1)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    wait_for_images(process, tmp_path / "out.jsonl", 4)
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    code, _, errors = finish(process)
    assert code == 130, errors
    assert "cpu: its process died: it was ended by SIGKILL" in errors
    assert "Traceback" not in errors
    wait_until_gone(workers)
    done = {row.key: row.status for row in Manifest(Storage(tmp_path / "out")).all_rows()}
    assert len(done) >= 4
    assert set(done.values()) == {"ok"}
    code, printed, errors = finish(start("cpu"))
    assert code == 0, errors
    assert "12 images: 12 ok" in printed
    assert finish(start("cpu", "whole"))[0] == 0
    assert images(tmp_path / "out") == images(tmp_path / "whole")


def test_workers_end_with_a_parent_that_is_killed(start: Command, tmp_path: Path) -> None:
    process = start("cpu,cpu")
    wait_for_images(process, tmp_path / "out.jsonl", 1)
    workers = workers_of(process.pid)
    assert workers
    process.kill()
    process.communicate()
    wait_until_gone(workers)
