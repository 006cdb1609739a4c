"""Views: what a trainer's loader does to a file before the encoder sees it."""

from shade_fast.views.view import View, ViewPlan

__all__ = ["View", "ViewPlan"]
