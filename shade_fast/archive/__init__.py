"""Whole archives in, protected archives of the same shape out, with a record of every image."""

from shade_fast.archive.archive import Archive, ArchiveReport
from shade_fast.archive.folders import find_images
from shade_fast.archive.manifest import Manifest, Row
from shade_fast.archive.run import plan_archive, poison_archive
from shade_fast.archive.storage import Storage
from shade_fast.archive.verify import Mismatch, archive_status, read_pairs, verify_archive

__all__ = [
    "Archive",
    "ArchiveReport",
    "Manifest",
    "Mismatch",
    "Row",
    "Storage",
    "archive_status",
    "find_images",
    "plan_archive",
    "poison_archive",
    "read_pairs",
    "verify_archive",
]
