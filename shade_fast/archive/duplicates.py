"""Images of the same content in one shard: the first is protected, the others wait for its result."""

from __future__ import annotations

from dataclasses import replace

from shade_fast.archive.index import content
from shade_fast.archive.prepare import Prepared
from shade_fast.archive.row import Row


class Duplicates:
    """Who waits for whom, by content. A first image that is not ended yet is its content's leader."""

    def __init__(self) -> None:
        #: content -> its leader's key, and content -> who waits for that
        self._leaders: dict[str, str] = {}
        self._followers: dict[str, list[Prepared]] = {}

    def __len__(self) -> int:
        """How many images wait."""
        return sum(map(len, self._followers.values()))

    def lead(self, prepared: Prepared) -> None:
        """Make an image the leader of its content."""
        key = content(prepared.row)
        self._followers[key], self._leaders[key] = [], prepared.row.key

    def follow(self, prepared: Prepared) -> bool:
        """Let an image wait for its leader, without its pixels; False where it has none."""
        followers = self._followers.get(content(prepared.row))
        if followers is None:
            return False
        followers.append(replace(prepared, image=None))
        return True

    def end(self, row: Row) -> list[Prepared]:
        """Take out the images that waited for the one of this row; none where it led nobody."""
        key = content(row)
        if self._leaders.get(key) != row.key:
            return []
        del self._leaders[key]
        return self._followers.pop(key)
