"""The command line, `shade-fast`: one file a command, imported when it is asked for."""

from shade_fast.cli.program import main

__all__ = ["main"]
