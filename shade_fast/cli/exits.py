"""Exit codes of the commands."""

from collections.abc import Mapping

EXIT_OK, EXIT_SOME, EXIT_NOTHING = 0, 1, 2
#: a fault of the program, not of an image: BSD's EX_SOFTWARE
EXIT_FAULT = 70
EXIT_INTERRUPTED = 130
#: what shells call the end of a program whose output is no longer read
EXIT_PIPE = 141


def exit_code(counts: Mapping[str, int]) -> int:
    """The code for counts of images by status: all ok, some not, or none that could be protected."""
    ok, others = counts["ok"], counts["failed"] + counts.get("below_target", 0)
    if ok + others == counts["failed"]:
        return EXIT_NOTHING
    return EXIT_SOME if others else EXIT_OK
