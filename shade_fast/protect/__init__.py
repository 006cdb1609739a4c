"""One device protects one batch: prepared, moved, settled, judged. Also here: what is sent to the workers."""
