"""Perturbed sets and arms made by several processes at a time: neither an arm nor a set needs another's outcome."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

import torch

from shade_fast.errors import ShadeFastError
from shade_fast.study.experiments.arms import Arm, Result, arm_file, run_arm
from shade_fast.study.experiments.prepare import Bench, Perturbed

#: What this process works with, where it is one of several.
_bench: Bench


def make_ahead(
    bench: Bench,
    open_bench: Callable[[], Bench],
    runs: Iterable[tuple[Arm, int]],
    processes: int,
    say: Callable[[str], None],
) -> None:
    """Make what arms and seeds leave in the bench's folder, where it is not there, by several processes, each with its
    share of the threads. open_bench: the same bench again, in another process.

    Raises ShadeFastError where a process was killed; what was finished is kept.
    """
    missing = [(arm, seed) for arm, seed in dict.fromkeys(runs) if not arm_file(bench.folder, arm, seed).exists()]
    needed = dict.fromkeys(one for arm, _ in missing for one in arm.perturbed.values())
    sets = [one for one in needed if not bench.has_perturbed(one)]
    if not missing:
        return
    for towards in dict.fromkeys(one.towards for one in sets):
        bench.anchors(towards)
    processes = min(processes, max(len(missing), len(sets)))
    executor = ProcessPoolExecutor(
        processes,
        multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(open_bench, max(1, torch.get_num_threads() // processes)),
    )
    try:
        moving = {executor.submit(_move, one): one for one in sets}
        # The arms that need no set fill the time until the last set is made.
        running = {executor.submit(_run, *one): one for one in missing if not one[0].perturbed}
        for made in as_completed(moving):
            say(f"perturbed: {moving[made].name}: {made.result():.0f} s")
        running |= {executor.submit(_run, *one): one for one in missing if one[0].perturbed}
        for run in as_completed(running):
            arm, seed = running[run]
            say(f"arm: {arm.name}, seed {seed}: {run.result().seconds:.0f} s")
    except BrokenProcessPool as error:
        raise ShadeFastError(
            f"{bench.folder}: one of {processes} processes was killed, for want of memory perhaps; run again, with "
            "fewer --processes: what was finished is kept"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _begin(open_bench: Callable[[], Bench], threads: int) -> None:
    global _bench
    # A process ends with its parent, however that ended, and at once where both are interrupted.
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(threads)
    _bench = open_bench()


def _move(one: Perturbed) -> float:
    started = time.perf_counter()
    _bench.perturbed(one)
    return time.perf_counter() - started


def _run(arm: Arm, seed: int) -> Result:
    return run_arm(_bench, arm, seed)
