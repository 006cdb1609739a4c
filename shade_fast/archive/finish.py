"""How an image ends: its row made up and recorded, with its file encoded, copied from a duplicate's, or missing."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace

from shade_fast.archive.names import to_text
from shade_fast.archive.prepare import Prepared
from shade_fast.archive.recorder import Recorder
from shade_fast.archive.row import Row, finite
from shade_fast.codecs import Codecs
from shade_fast.images import Output
from shade_fast.protect.outcome import Protected, failed
from shade_fast.terms.errors import TransientError


@dataclass(frozen=True, eq=False)
class Finisher:
    """Ends images of a run, on any thread; each of its functions returns the row as it is recorded."""

    recorder: Recorder
    codecs: Codecs
    output: Output

    def encode(self, prepared: Prepared, protected: Protected) -> Row:
        """End an image that the engine is done with: encode it and write it."""
        started = time.perf_counter()
        outcome, survival = protected.outcome, protected.outcome.survival
        row = replace(
            prepared.row,
            status=outcome.status,
            error=outcome.error,
            transient=outcome.transient,
            anchor=outcome.anchor and to_text(outcome.anchor),
            linf=finite(outcome.linf),
            lpips=finite(outcome.lpips),
            distance_before=finite(outcome.distance_before),
            distance_after=finite(outcome.distance_after),
            encoder_distances=outcome.encoder_distances,
            steps=outcome.steps,
            history=outcome.history,
            survival=None if survival is None else tuple((name, finite(share)) for name, share in survival.items()),
            optimize_ms=round(1000 * outcome.seconds, 3),
        )
        if row.status == "failed":
            self.recorder.clear(row)
            return self.recorder.store(replace(row, output=None))
        try:
            data = protected.encode(self.output, self.codecs.encode, self.codecs.decode)
        except Exception as error:  # an encoder raises whatever it stumbles over
            message = failed(error, prepared.sample.key).error
            self.recorder.clear(row)
            transient = isinstance(error, TransientError)
            return self.recorder.store(replace(row, status="failed", error=message, output=None, transient=transient))
        row = replace(
            row,
            output_format=self.output.format_of(row.source_format).upper(),
            output_bytes=len(data),
            output_sha256=hashlib.sha256(data).hexdigest(),
            quality=None if protected.jpeg is None else protected.jpeg.quality,
            subsampling=None if protected.jpeg is None else protected.jpeg.subsampling,
            encode_ms=round(1000 * (time.perf_counter() - started), 3),
        )
        return self.recorder.store(row, data, prepared.sample.path)

    def copy(self, prepared: Prepared, leader: Row) -> Row | None:
        """End an image with the result of another of the same content; None where that is not there any more."""
        try:
            data = self.recorder.load(leader)
            is_there = leader.output is None or hashlib.sha256(data).hexdigest() == leader.output_sha256
        except Exception:  # a tar or a table that is damaged raises whatever its reader stumbles over
            is_there = False
        if not is_there:
            self.recorder.index.forget_result(leader)
            return None
        names = ("key", "shard", "index", "source", "concept", "target", "output", "decode_ms")
        own = {name: getattr(prepared.row, name) for name in names}
        row = replace(leader, **own, duplicate_of=leader.key, optimize_ms=0.0, encode_ms=0.0)
        return self.recorder.store(row, data, prepared.sample.path)

    def fail(self, prepared: Prepared, error: str | None) -> Row:
        """End an image that has failed."""
        return self.recorder.store(replace(prepared.row, status="failed", error=error, output=None))
