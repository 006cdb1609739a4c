"""A run's record as one HTML page."""

from shade_fast.report.report import write_report

__all__ = ["write_report"]
