"""Whole archives in, protected archives of the same shape out, with a record of every image."""

from shade_fast.archive.archive import Archive, fixed_plan
from shade_fast.archive.folders import find_images
from shade_fast.archive.manifest import STATS_NAME, Manifest, read_stats
from shade_fast.archive.names import from_text, to_text
from shade_fast.archive.options import RunOptions, Source
from shade_fast.archive.progress import Reporter
from shade_fast.archive.record import RUN_NAME, check_same, is_own, named_roots, read_run
from shade_fast.archive.recorded import LastRun, RecordedEncoder, RecordedOptions, RecordedRun, RecordedStats, typed
from shade_fast.archive.report import ArchiveReport
from shade_fast.archive.row import STATUSES, Row, finite
from shade_fast.archive.run import plan_archive, poison_archive
from shade_fast.archive.storage import Storage
from shade_fast.archive.table import BYTES_COLUMNS, PATH_COLUMNS
from shade_fast.archive.tars import expand
from shade_fast.archive.totals import Totals
from shade_fast.archive.verify import Mismatch, archive_status, read_pairs, verify_archive

__all__ = [
    "BYTES_COLUMNS",
    "PATH_COLUMNS",
    "RUN_NAME",
    "Archive",
    "ArchiveReport",
    "Manifest",
    "Mismatch",
    "Reporter",
    "Row",
    "RunOptions",
    "Source",
    "Storage",
    "archive_status",
    "check_same",
    "expand",
    "find_images",
    "finite",
    "fixed_plan",
    "from_text",
    "is_own",
    "named_roots",
    "plan_archive",
    "poison_archive",
    "read_pairs",
    "read_run",
    "read_stats",
    "to_text",
    "verify_archive",
    "STATS_NAME",
    "STATUSES",
    "LastRun",
    "RecordedEncoder",
    "RecordedOptions",
    "RecordedRun",
    "RecordedStats",
    "Totals",
    "typed",
]
