"""Several devices at once: a process for each, and the pool that hands them batches of images."""

from shade_fast.workers.pool import DevicesLostError, Pool
from shade_fast.workers.worker import Worker, packed

__all__ = ["DevicesLostError", "Pool", "Worker", "packed"]
