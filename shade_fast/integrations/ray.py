"""An archive as a Ray Data pipeline: actors, each with its own engine, take its shards.

Needs `pip install 'shade-fast[ray]'`.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from shade_fast.archive import (
    Archive,
    ArchiveReport,
    Reporter,
    Row,
    RunOptions,
    Source,
    check_same,
    read_run,
)
from shade_fast.protect.options import Options
from shade_fast.terms.checks import at_least
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.options import divided, takes

try:
    import ray
    import ray.data
except ImportError as missing:
    raise ShadeFastError(f"Ray is not installed ({missing}): pip install 'shade-fast[ray]'") from missing

#: Deaths of actors over one shard before it is given up.
DEATHS_OF_A_SHARD = 3


@takes(RunOptions, Options)
def poison_archive(
    source: Source | Sequence[Source],
    out: Source,
    target: str | None = None,
    *,
    actors: int | None = None,
    cpus_per_actor: int = 1,
    gpus_per_actor: float = 0,
    progress: bool = False,
    on_row: Callable[[Row], None] | None = None,
    **options: Any,
) -> ArchiveReport:
    """`shade_fast.poison_archive` on a Ray cluster (the connected one, or else a local one): same bytes, same options
    except `shard`, `limit`, `on_error`, `stop` and `grace`.

    actors: how many engines; default as many as the cluster's GPUs or CPUs allow. cpus_per_actor: cores, and torch's
    threads, of each. gpus_per_actor: 1 for an engine a GPU. `out` must be one that every node reaches, a shared folder
    or a URL. An actor that dies is replaced, and its shard resumes where it was. Shards are the unit of work: give a
    folder a `shard_size` well below its images over `actors`. `progress`, `events` and `on_row` are given a shard's
    images when it is finished.

    Raises ShadeFastError as that does, and at the end where `DEATHS_OF_A_SHARD` actors died over a shard.
    """
    cpus_per_actor = at_least("cpus_per_actor", cpus_per_actor)
    actors = None if actors is None else at_least("actors", actors)
    for name in ("shard", "limit", "on_error", "stop", "grace"):
        if name in options:
            raise ShadeFastError(f"{name}: no option under Ray, whose actors take all shards; leave it out")
    run, protection = divided(options, RunOptions, Options)
    with Archive(source, out, target, run, protection) as archive:
        archive.begin()
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False)
        started = time.perf_counter()
        items = [{"shard": pickle.dumps(shard)} for shard in archive.layout.shards((0, 1), archive.index)]
        new, given_up = 0, []
        with Reporter(archive.layout if progress else None, archive.recorded, (0, 1), run.events) as reporter:
            if items:
                begun = ray.remote(num_cpus=0)(_Begun).remote()
                pipeline = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                    _Engine,
                    fn_constructor_args=(source, out, target, run, protection, cpus_per_actor, begun),
                    batch_size=1,
                    compute=ray.data.ActorPoolStrategy(size=actors or _fitting(cpus_per_actor, gpus_per_actor)),
                    num_cpus=cpus_per_actor,
                    num_gpus=gpus_per_actor,
                )
                for row in pipeline.iter_rows():
                    if row["given_up"]:
                        given_up.append(row["name"])
                        continue
                    for image in pickle.loads(row["rows"]):
                        new += 1
                        reporter.row(image)
                        if on_row is not None:
                            on_row(image)
                    archive.clock.engine += row["engine_seconds"]
                    archive.clock.waiting += row["waiting_seconds"]
                    reporter.shard(row["name"], True)
            if given_up:
                raise ShadeFastError(
                    f"{', '.join(given_up)}: given up, {DEATHS_OF_A_SHARD} actors died over each; see whether they "
                    "have the memory for its images. All else is done and recorded: the same again goes on"
                )
            report = archive.report(new, time.perf_counter() - started, interrupted=False)
            reporter.end(report.stats, interrupted=False)
    return report


class _Begun:
    """How often each shard was begun: Ray would hand out a shard that actors die over for ever."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()

    def again(self, shard: str) -> int:
        self.times[shard] += 1
        return self.times[shard]


class _Engine:
    """An actor: one engine, that takes shard after shard."""

    def __init__(
        self,
        source: Source | Sequence[Source],
        out: Source,
        target: str | None,
        run: RunOptions,
        options: Options,
        threads: int,
        begun: Any,
    ) -> None:
        self.begun = begun
        torch.set_num_threads(threads)
        os.environ.setdefault("SHADE_FAST_PLAN", "fixed")
        self.archive = Archive(source, out, target, run, options)
        record = read_run(self.archive.out)
        if record is None:
            raise ShadeFastError(
                f"{out}: this node does not see the output's record; give a place that all nodes reach"
            )
        check_same(self.archive.out, record, self.archive.options)
        self.archive.join(f"actor-{os.getpid()}-{uuid.uuid4().hex}")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        results: dict[str, list[Any]] = {
            name: [] for name in ("name", "given_up", "rows", "engine_seconds", "waiting_seconds")
        }
        for pickled in batch["shard"]:
            shard = pickle.loads(pickled)
            rows: list[Row] = []
            clock = self.archive.clock
            engine, waiting = clock.engine, clock.waiting
            given_up = ray.get(self.begun.again.remote(shard.name)) > DEATHS_OF_A_SHARD
            if not given_up:
                self.archive.run_shard(shard, threading.Event(), rows.append)
            results["name"].append(shard.name)
            results["given_up"].append(given_up)
            results["rows"].append(pickle.dumps(rows))
            results["engine_seconds"].append(clock.engine - engine)
            results["waiting_seconds"].append(clock.waiting - waiting)
        return results


def _fitting(cpus: int, gpus: float) -> int:
    """How many actors the cluster has room for, with a spare core, where there is one, for reading the shards."""
    resources = ray.cluster_resources()
    if gpus:
        return max(1, int(resources.get("GPU", 0) / gpus))
    return max(1, int(resources.get("CPU", 1)) // cpus)
