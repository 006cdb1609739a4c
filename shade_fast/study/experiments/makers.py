"""Arms made one after the other, or several at a time in separate processes: no arm needs another's outcome."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait

import torch

from shade_fast.study.experiments.arms import Arm, arm_file, run_arm
from shade_fast.study.experiments.prepare import Bench, Perturbed
from shade_fast.terms.errors import ShadeFastError

#: An arm and its seed.
Run = tuple[Arm, int]


def make_here(bench: Bench, runs: Iterable[Run], say: Callable[[str], None]) -> Generator[Run]:
    """Run the arms and seeds that are missing, and yield each when it is done."""
    for run in _missing(bench, runs):
        say(f"{_name(run)}: {run_arm(bench, *run).seconds:.0f} s")
        yield run


def make_by_processes(
    bench: Bench, open_bench: Callable[[], Bench], runs: Iterable[Run], processes: int, say: Callable[[str], None]
) -> Generator[Run]:
    """The same by several processes, each with its share of the threads. Perturbed images that arms share come first.
    open_bench: opens the same bench in another process.

    Raises ShadeFastError, and ends the processes, where one fails or is killed; what was finished is kept.
    """
    arms = _missing(bench, runs)
    sets = dict.fromkeys(which for arm, _ in arms for which in arm.perturbed.values())
    tasks: list[Perturbed | Run] = [which for which in sets if not bench.has_perturbed(which)]
    for towards in dict.fromkeys(which.towards for which in tasks if isinstance(which, Perturbed)):
        bench.anchors(towards)
    tasks += arms
    processes = min(processes, len(tasks))
    threads = max(1, torch.get_num_threads() // max(processes, 1))
    makers = [_Maker(open_bench, threads) for _ in range(processes)]
    try:
        while tasks or any(maker.task for maker in makers):
            for maker in makers:
                task = None if maker.task else next((task for task in tasks if _may_begin(bench, task)), None)
                if task is not None:
                    tasks.remove(task)
                    maker.begin(task)
            busy = [maker for maker in makers if maker.task]
            ready = wait([maker.connection for maker in busy])
            for maker in busy:
                if maker.connection not in ready:
                    continue
                done, seconds = maker.end()
                say(f"{_name(done)}: {seconds:.0f} s")
                if not isinstance(done, Perturbed):
                    yield done
    finally:
        for maker in makers:
            maker.process.kill()
            maker.process.join()


def _missing(bench: Bench, runs: Iterable[Run]) -> list[Run]:
    return [run for run in dict.fromkeys(runs) if not arm_file(bench.folder, *run).exists()]


def _may_begin(bench: Bench, task: Perturbed | Run) -> bool:
    return isinstance(task, Perturbed) or all(bench.has_perturbed(which) for which in task[0].perturbed.values())


def _name(task: Perturbed | Run) -> str:
    return task.name if isinstance(task, Perturbed) else f"{task[0].name}, seed {task[1]}"


class _Maker:
    """A process that does one task at a time. task: the present one."""

    def __init__(self, open_bench: Callable[[], Bench], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.task: Perturbed | Run | None = None
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, open_bench, threads), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, task: Perturbed | Run) -> None:
        self.task = task
        # A process that has ended already says so in `end`.
        with contextlib.suppress(OSError):
            self.connection.send(task)

    def end(self) -> tuple[Perturbed | Run, float]:
        """The finished task, and the seconds that it took."""
        task, self.task = self.task, None
        assert task is not None
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise ShadeFastError(
                f"{_name(task)}: its process ended ({_end(self.process.exitcode)}); run again, with fewer processes if "
                "memory was short: what was finished is kept"
            ) from error
        if isinstance(answer, str):
            raise ShadeFastError(f"{_name(task)}: {answer}")
        return task, answer


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}, its reason is above; a script that starts processes needs if __name__ == '__main__'"


def _serve(connection: Connection, open_bench: Callable[[], Bench], threads: int) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    # An interrupt reaches all processes of a run; the parent ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    bench = None
    while True:
        task = connection.recv()
        started = time.perf_counter()
        try:
            bench = bench or open_bench()
            if isinstance(task, Perturbed):
                bench.perturbed(task)
            else:
                run_arm(bench, *task)
        except Exception as error:  # whatever a caller's encoder raises
            connection.send(str(error) if isinstance(error, ShadeFastError) else traceback.format_exc())
            continue
        connection.send(time.perf_counter() - started)
