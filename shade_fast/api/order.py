"""Images in, outcomes out in the same order, however they are batched and whichever is ready first."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

from shade_fast.anchors import Anchor
from shade_fast.images import DecodedImage, ImageLike, Output, decode
from shade_fast.protect.buckets import Buckets
from shade_fast.protect.outcome import Protected, Work, failed
from shade_fast.terms.errors import ShadeFastError
from shade_fast.workers import DevicesLostError

Submit = Callable[[Sequence[Work], Output | None], "Future[list[Protected]]"]
_Place = tuple["Future[Protected]", DecodedImage | None]


def in_order(
    images: Iterable[tuple[ImageLike | DecodedImage | ShadeFastError, Anchor]],
    output: Output | None,
    submit: Submit,
    batch_size: int,
    most: int,
) -> Iterator[Protected]:
    """`Poisoner.protect`: sends batches of one shape to `submit`; at most `most` images wait behind one that is not
    ready."""
    buckets: Buckets[tuple[Work, Future[Protected]]] = Buckets(batch_size)
    coming: deque[_Place] = deque()
    refused: set[Future[Protected]] = set()
    any_done = False

    def go(bucket: Sequence[tuple[Work, Future[Protected]]]) -> None:
        works, places = zip(*bucket, strict=True)
        for place in places:
            place.set_running_or_notify_cancel()
        submit(works, output).add_done_callback(functools.partial(_deal, places))

    def ready(most: int) -> Iterator[Protected]:
        """Yield those that are ready; wait for the first ones until at most so many are on their way."""
        nonlocal any_done
        while coming and (len(coming) > most or coming[0][0].done()):
            # An image that still waits for others of its shape is the first of the oldest bucket.
            if not (coming[0][0].running() or coming[0][0].done()):
                go(buckets.oldest())
            place, decoded = coming.popleft()
            try:
                protected = place.result()
            except DevicesLostError as error:
                if not any_done or decoded is None:
                    raise
                protected = Protected(decoded, failed(error, decoded))
            any_done = any_done or place not in refused
            refused.discard(place)
            yield protected

    for image, anchor in images:
        place: Future[Protected] = Future()
        decoded = None
        try:
            if isinstance(image, ShadeFastError):
                raise image
            decoded = image if isinstance(image, DecodedImage) else decode(image)
            if output is not None:
                output.check(decoded)
        except ShadeFastError as error:
            place.set_result(Protected(decoded, failed(error, image)))
            refused.add(place)
            coming.append((place, decoded))
        else:
            coming.append((place, decoded))
            full = buckets.add(decoded.pixels.shape, (Work(decoded, anchor), place))
            if full is not None:
                go(full)
        yield from ready(most)
    while buckets:
        go(buckets.oldest())
    yield from ready(0)


def _deal(places: Sequence[Future[Protected]], batch: Future[list[Protected]]) -> None:
    """Give a batch's outcomes to its images."""
    problem = batch.exception()
    if problem is not None:
        for place in places:
            place.set_exception(problem)
        return
    for place, protected in zip(places, batch.result(), strict=True):
        place.set_result(protected)
