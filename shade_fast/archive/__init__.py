"""Files in, protected files out, with a record of every one."""

from shade_fast.archive.files import find_images
from shade_fast.archive.manifest import MANIFEST_NAME
from shade_fast.archive.run import plan_files, poison_files

__all__ = ["MANIFEST_NAME", "find_images", "plan_files", "poison_files"]
