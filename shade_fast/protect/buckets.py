"""Items that wait for others of their kind, such as images of one shape, to be taken together."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Buckets(Generic[T]):
    """Items by key, in buckets of at most `size`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._buckets: dict[Hashable, list[T]] = {}

    def __len__(self) -> int:
        """How many items wait."""
        return sum(map(len, self._buckets.values()))

    def add(self, key: Hashable, item: T) -> list[T] | None:
        """Put an item with its like. Returns the bucket where that fills it: it is then no longer here."""
        bucket = self._buckets.setdefault(key, [])
        bucket.append(item)
        return self._buckets.pop(key) if len(bucket) >= self.size else None

    def oldest(self) -> list[T]:
        """Take the bucket whose first item has waited longest."""
        return self._buckets.pop(next(iter(self._buckets)))
