"""What an archive's samples are moved to, as anchors: the run's target, a library's, and files that a table's rows
name, which are read as images are."""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from shade_fast.anchors import Anchor
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive.access import check_below
from shade_fast.archive.reading import Reader, is_passing
from shade_fast.archive.storage import Storage
from shade_fast.codecs import Codecs
from shade_fast.images import INPUT_SUFFIXES, UInt8Array, is_image
from shade_fast.terms.errors import ShadeFastError, TransientError

#: Bytes of pixels of rows' targets that are kept, and how many targets.
_KEPT, _MOST = 512 << 20, 1000


class Targets:
    """Anchors by what names them. target: the run's, None for none. roots: folders that rows' targets may lie in."""

    def __init__(
        self, poisoner: Poisoner, target: str | None, roots: Sequence[str], reader: Reader, codecs: Codecs
    ) -> None:
        self._poisoner, self._target, self._reader, self._codecs = poisoner, target, reader, codecs
        self._roots = [os.path.realpath(root) for root in roots]
        self._named = functools.lru_cache(maxsize=256)(poisoner.anchor)
        self._rows: OrderedDict[str, tuple[int, Anchor | ShadeFastError]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, own: str | None) -> Anchor:
        """The anchor of a sample whose row names a target of its own, or none. Raises ShadeFastError."""
        if own is None or own == self._target:
            if self._target is None:
                raise ShadeFastError("no target: neither the table's row nor the run names one")
            return self._named(self._target)
        if "://" in own:
            raise ShadeFastError(f"target {own}: a URL; a row's target is an anchor's name or a file")
        if own in self._poisoner.anchors or not os.path.lexists(own):
            return self._named(own)  # which says what there is instead
        with self._lock:  # one row's target is read once, however many rows name it, also one that cannot be had
            if own not in self._rows:
                try:
                    self._rows[own] = self._read(own)
                except ShadeFastError as error:
                    self._rows[own] = (0, error)
            while len(self._rows) > _MOST or (
                len(self._rows) > 1 and sum(size for size, _ in self._rows.values()) > _KEPT
            ):
                self._rows.popitem(last=False)
            self._rows.move_to_end(own)
            anchor = self._rows[own][1]
        if isinstance(anchor, ShadeFastError):
            raise anchor
        return anchor

    def _read(self, own: str) -> tuple[int, Anchor]:
        most = self._reader.limits.target_images
        paths = [own]
        self._inside(own)
        if os.path.isdir(own):
            with os.scandir(own) as entries:
                names = sorted(entry.name for entry in entries if is_image(entry.name))
            if not names:
                raise ShadeFastError(f"target {own!r}: the folder holds no images ({', '.join(INPUT_SUFFIXES)})")
            if len(names) > most:
                raise ShadeFastError(
                    f"target {own!r}: a folder of {len(names)} images; a row's may have {most}: --max "
                    f"target-images={len(names)}"
                )
            paths = [os.path.join(own, name) for name in names]
        images: list[UInt8Array] = []
        for path in paths:
            try:
                data = self._reader.image(Storage.named(self._inside(path), local=True))
            except (OSError, ValueError) as error:
                kind = TransientError if is_passing(error) else ShadeFastError
                raise kind(f"target {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
            images.append(self._codecs.decode(data, path, self._reader.stop).pixels)
            size = sum(image.nbytes for image in images)
            if len(images) > 1 and size > self._reader.limits.waiting_bytes:
                raise ShadeFastError(f"target {own!r}: its images take {size} bytes: --max waiting-bytes={2 * size}")
        name = Path(own).resolve().name if os.path.isdir(own) else Path(own).name
        anchor = self._poisoner.anchor(Anchor(name, images, paths=paths))
        return sum(image.nbytes for image in images), anchor

    def _inside(self, path: str) -> str:
        """Where a path really leads. Raises ShadeFastError for what is outside the folders that rows may name."""
        real = os.path.realpath(path)
        check_below(real, self._roots, f"target {path!r}")
        return real
