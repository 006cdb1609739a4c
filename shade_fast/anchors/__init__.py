"""Anchors: images of the target concept, whose latents the protected images are moved to."""

from shade_fast.anchors.anchor import Anchor, Target
from shade_fast.anchors.library import AnchorLibrary, generate_anchors, most_typical, resolve_anchor

__all__ = ["Anchor", "AnchorLibrary", "Target", "generate_anchors", "most_typical", "resolve_anchor"]
