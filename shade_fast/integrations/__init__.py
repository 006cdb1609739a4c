"""shade_fast inside other systems."""
