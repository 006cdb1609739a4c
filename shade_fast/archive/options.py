"""The options of a run over an archive, each stated once: `RunOptions`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import ROW_PROTOCOLS, Access
from shade_fast.terms.options import Flag, a, a_count, check_options, one_of, option

MODES = ("resume", "overwrite", "fail")
OUTPUTS = ("same", "png", "jpeg", "webp", "dummy")
ON_ERROR = ("continue", "stop")
Source = str | os.PathLike[str]


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = map(int, text.split("/"))
        return index, count
    except ValueError:
        raise ShadeFastError(f"{text!r}: give I/N, such as 0/8") from None


def _a_part(name: str, value: Any) -> Any:
    if not 0 <= value[0] < value[1]:
        raise ShadeFastError(f"{name}={value}: give (i, n) with 0 <= i < n")
    return value


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `poison_archive`, which describes them, besides those of `poison_batch`; Ray and the command line
    read them here.

    Raises ShadeFastError for a value that cannot be.
    """

    mode: str = option(
        "resume",
        Flag("mode", "what to do with an earlier run's output", "resume", choices=lambda: MODES),
        Flag("overwrite", "the same as --mode overwrite", const="overwrite", instead_of="mode"),
        check=one_of(lambda: MODES),
    )
    shard: tuple[int, int] = option(
        (0, 1),
        Flag("shard", "do the I-th of N parts, from 0; for array jobs", "0/1", _shard, metavar="I/N"),
        check=_a_part,
    )
    limit: int | None = option(
        None,
        Flag("limit", "take so many images, and leave the rest to the next run", parse=int, metavar="N"),
        check=a_count(besides=[None]),
    )
    on_error: str = option(
        "continue",
        Flag("on-error", "when an image fails", "continue", choices=lambda: ON_ERROR),
        check=one_of(lambda: ON_ERROR),
    )
    output: str = option(
        "same",
        Flag("output", "format of the files; dummy writes none", "same", choices=lambda: OUTPUTS, aliases=("format",)),
        check=one_of(lambda: OUTPUTS),
    )
    quality: int | None = option(
        None, Flag("quality", "JPEG quality to begin with (default: the source's own, or 98)", parse=int)
    )
    workers: int | None = option(
        None,
        Flag("workers", "threads that read, decode, encode and write (default: cores, at most 4)", parse=int),
        check=a_count(besides=[None]),
    )
    shard_size: int = option(
        1000,
        Flag("shard-size", "images of one manifest of a folder", 1000, int, metavar="N"),
        check=a_count(),
    )
    events: Source | None = option(
        None, Flag("events", "add a JSON line to FILE for every image and shard", metavar="FILE")
    )
    grace: float | None = option(
        None,
        Flag("grace", "from SIGINT or SIGTERM until the process ends, whatever hangs", 10.0, float, metavar="SECONDS"),
    )
    access: Access = option(
        Access(),
        Flag(
            "allow-paths",
            "let a table's rows name files below DIR, by absolute or ../ paths; again for more",
            metavar="DIR",
            many=True,
        ),
        Flag(
            "allow-protocols",
            f"let a table's rows name URLs of these: {', '.join(ROW_PROTOCOLS)}",
            parse=_names,
            metavar="P,P",
            many=True,
        ),
        Flag("allow-private", "let rows' URLs lead to loopback and private addresses", const=True),
        Flag(
            "retries",
            "times that an image is read again after a time-out or an answer such as 503, with growing pauses",
            3,
            int,
            metavar="N",
        ),
        Flag("timeout", "that a server of rows' URLs may be silent", 30.0, float, metavar="SECONDS"),
        check=a(Access),
        join=lambda allow_paths, allow_protocols, allow_private, retries, timeout: Access(
            tuple(allow_paths or ()), tuple(allow_protocols or ()), allow_private, retries, timeout
        ),
    )
    retry_failed: bool = option(
        False, Flag("retry-failed", "try again what failed for reasons that may have passed", const=True)
    )
    keep_times: bool = option(
        False, Flag("keep-times", "give files the modification times of their sources", const=True)
    )

    def __post_init__(self) -> None:
        check_options(self)
