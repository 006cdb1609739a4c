"""Image files decoded and encoded in processes of their own, which a hostile file can only end."""

from shade_fast.codecs.pool import CodecDiedError, Codecs, DeadlineError, Interrupted

__all__ = ["CodecDiedError", "Codecs", "DeadlineError", "Interrupted"]
