"""One device protects one batch: prepared, moved, settled, judged. What travels to the workers lies here too."""
