"""What an archive is made of, whatever holds it: shards of samples, and the same shape written again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from shade_fast.archive.index import Index
from shade_fast.archive.row import Row
from shade_fast.archive.storage import Facts, Storage

Read = Callable[[], bytes]


@dataclass(frozen=True)
class Sample:
    """One image of an archive, or what stands in its place.

    index: its place in the shard (in a folder: in the listing). key: relative path, member name or row. output: the
    name that it is written under. source: the file that it is in. read: its bytes, on any thread.
    error: why it is refused unread. target, concept: its own, where the archive names them. path: of the file that it
    is, on this machine's disks, whose permissions its output gets. size: bytes that it holds in memory.
    """

    index: int
    key: str
    output: str
    source: str
    read: Read
    error: str | None = None
    target: str | None = None
    concept: str | None = None
    path: str | None = None
    size: int = 0


@dataclass(frozen=True)
class Shard:
    """A part of an archive that is recorded in one manifest. name: of that, and what is finished as one.

    content: what its layout needs to find the samples; it can be pickled.
    """

    name: str
    content: Any = field(repr=False)


class Layout(Protocol):
    """A kind of archive. `out` is where the same shape is written."""

    #: Whether each image is a file of the output, which is there as soon as it is written.
    files: bool

    def shards(self, task: tuple[int, int], index: Index) -> Iterator[Shard]:
        """The shards of one task of so many, in order, with what is not recorded in `index` yet."""

    def is_own(self, task: tuple[int, int], shard: str) -> bool:
        """Whether a shard of this name is the task's."""

    def samples(self, shard: Shard) -> Iterator[Sample]:
        """A shard's samples in order; those before a damaged place, then one with the error."""

    def path(self, shard: Shard) -> str | None:
        """The shard's own file on this machine's disks, where it is one."""

    def finish(
        self, shard: Shard, rows: Iterable[Row], image: Callable[[Row], bytes], out: Storage, facts: Facts | None
    ) -> None:
        """Write what is written as one: a tar or a table, from the source's own and the new images. facts: what the
        file gets of its source's."""

    def count(self) -> int | None:
        """How many images there are, where that is known without reading them."""

    def vanished(self) -> str | None:
        """What of the source is not there any more; None where all is."""

    def pairs(self, rows: Iterable[Row], out: Storage) -> Iterator[tuple[Row, Read, Read]]:
        """Each row of one finished shard, in order, with what reads the source's and the output's bytes."""

    def read_output(self, row: Row, out: Storage) -> bytes:
        """The bytes of one row's output."""
