"""The report: one self-contained HTML page that shows what a run did to its images, and what a model sees of it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from PIL import Image

from shade_fast.archive import RecordedEncoder, Row, Storage, from_text, is_own, named_roots
from shade_fast.codecs import Codecs
from shade_fast.images import UInt8Array, read_file
from shade_fast.report.page import Card, Panel, render_page
from shade_fast.report.run import Run, label_of, read_run
from shade_fast.system.files import write_whole
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Limits
from shade_fast.views import View

if TYPE_CHECKING:
    from shade_fast.encoders import Encoder

PANEL_BYTES = 48 * 1024
LARGEST_DECODED = 768
LIMITS = Limits()


def write_report(
    directory: Path | str,
    out: Path | str | None = None,
    *,
    encoder: Encoder | None = None,
    largest: int = 384,
    limit: int = 60,
    trust: bool | None = None,
) -> Path:
    """Write the report of the run in `directory` (an output of `shade-fast archive`) and return the page's path.

    out: the page to write, `directory/report.html` by default; one that is there, or a link, is replaced.
    encoder: decodes the latents for "what the model sees"; by default the run's own is loaded, and where it is not to
        be had or has no decoder the page says so and leaves those panels out.
    largest: pixels of a panel's longer side. limit: how many images are shown in pictures. The table lists every image
        of a run of at most 2,000, and of a larger one as many.
    trust: whether files outside `directory`, and encoders other than the embedded one, are opened because the record
        names them; by default only where the record is of this user's own runs on this machine. The page says what it
        left out.
    The page makes no request of any kind: styles, script and pictures are inside it.

    Raises ShadeFastError for a missing or invalid manifest, or a page that cannot be written, naming the file.
    """
    if largest < 16 or limit < 0:
        raise ShadeFastError(f"largest={largest}, limit={limit}: largest must be at least 16, limit at least 0")
    run = read_run(directory, limit)
    storage = Storage(directory)
    trusted = is_own(storage, run.record) if trust is None else trust
    # Rows may be anyone's, where the options are one's own: they lead no further than those.
    roots = None if trust else named_roots(storage, run.record) if trusted else [os.path.realpath(run.directory)]
    path = Path(out) if out is not None else run.directory / "report.html"
    decoder, remark = _decoder(run, encoder, trusted)
    with Codecs(LIMITS, 1) as codecs:
        painter = _Painter(run, decoder, largest, roots, codecs)
        page = render_page(run, [painter.card(index) for index in run.pictured], remark, trusted=trusted)
    try:
        path.parent.stat()  # a folder that is not there is a mistake: it is not made
        write_whole(path, page.encode("utf-8", "backslashreplace"))
    except OSError as problem:
        raise ShadeFastError(f"{path}: cannot be written ({problem.strerror}); give another file as out") from problem
    return path


class _Painter:
    """Makes the panels of one run's images; remembers the decoded anchors."""

    def __init__(
        self, run: Run, decoder: Encoder | None, largest: int, roots: Sequence[str] | None, codecs: Codecs
    ) -> None:
        """roots: the folders that files are opened in; None: wherever the rows say."""
        self.run, self.decoder, self.largest, self.roots, self.codecs = run, decoder, largest, roots, codecs
        self.anchors: dict[str, Panel] = {}

    def card(self, index: int) -> Card:
        row = self.run.images[index]
        clean, clean_problem = self._read(from_text(row.source), "clean")
        perturbed, perturbed_problem = self._read(None if row.output is None else from_text(row.output), "perturbed")
        name = label_of(row)
        panels = [
            self._panel("clean", f"Clean picture {name}", clean, clean_problem),
            self._panel("perturbed", f"Perturbed picture {name}", perturbed, perturbed_problem),
        ]
        if row.status == "failed":
            return Card(index, row, tuple(panels[:1]) if clean is not None else (), ())
        panels.append(self._difference(row, clean, perturbed))
        if self.decoder is None:
            return Card(index, row, tuple(panels), ())
        seen = (
            self._decoded("clean, decoded", f"{name}, clean, as the model sees it", clean),
            self._decoded("perturbed, decoded", f"{name}, perturbed, as the model sees it", perturbed),
            self._anchor(row),
        )
        return Card(index, row, tuple(panels), seen)

    def _read(self, file: str | None, role: str) -> tuple[UInt8Array | None, str]:
        """The pixels of a file, or None and why there are none."""
        if file is None:
            return None, f"No {role} file was written."
        path = self.run.directory / file
        name = path.name
        if "\0" not in file and self.roots is not None:
            path = Path(os.path.realpath(path))
            if not any(path.is_relative_to(root) for root in self.roots):
                return None, f"The {role} file is outside this folder; shown with --trust-record."
        try:
            if path.is_file():
                return self.codecs.decode(read_file(path, LIMITS.image_bytes), name).pixels, ""
        except ShadeFastError as problem:
            return None, f"The {role} file cannot be shown. {problem}"
        except OSError as problem:  # such as a name that is too long
            return None, f"The {role} file cannot be read: {problem.strerror}"
        return None, f"The {role} file is not there: {name}"

    def _panel(self, title: str, alt: str, pixels: UInt8Array | None, problem: str) -> Panel:
        if pixels is None:
            return Panel(title, alt, None, problem)
        height, width = pixels.shape[:2]
        return Panel(title, alt, inline_picture(pixels, self.largest), "", width, height)

    def _difference(self, row: Row, clean: UInt8Array | None, perturbed: UInt8Array | None) -> Panel:
        factor = self._amplification(row)
        title, alt = f"difference ×{factor}", f"Difference of {label_of(row)}, amplified {factor} times around mid-grey"
        if clean is None or perturbed is None:
            return Panel(title, alt, None, "Needs both pictures.")
        if clean.shape != perturbed.shape:
            sizes = " and ".join(f"{picture.shape[1]}×{picture.shape[0]}" for picture in (clean, perturbed))
            return Panel(title, alt, None, f"The two files differ in size: {sizes}.")
        change = perturbed.astype(numpy.int16) - clean
        amplified = numpy.clip(change * factor + 128, 0, 255).astype(numpy.uint8)
        return self._panel(title, alt, amplified, "")

    def _amplification(self, row: Row) -> int:
        linf = self.run.options.budget.linf or row.linf or 16 / 255
        return min(max(round(127 / max(255 * linf, 1)), 1), 32)

    def _decoded(self, title: str, alt: str, pixels: UInt8Array | None) -> Panel:
        if self.decoder is None or pixels is None:
            return Panel(title, alt, None, "Needs the picture above.")
        try:
            return self._panel(title, alt, decode_view(self.decoder, pixels, self.run.options.view.size), "")
        except (ShadeFastError, RuntimeError) as problem:
            return Panel(title, alt, None, f"Could not be decoded: {problem}")

    def _anchor(self, row: Row) -> Panel:
        title, alt = "anchor, decoded", f"Anchor of {row.target or ''}, as the model sees it"
        if not row.anchor:
            return Panel(title, alt, None, "The anchor was no file, or none was recorded.")
        if row.anchor not in self.anchors:
            # A relative path is of the folder that the run was begun in, which this one may be.
            file = os.path.relpath(from_text(row.anchor), self.run.directory)
            pixels, problem = self._read(file, "anchor")
            panel = self._decoded(title, alt, pixels) if pixels is not None else Panel(title, alt, None, problem)
            self.anchors[row.anchor] = panel
        return self.anchors[row.anchor]


def inline_picture(pixels: UInt8Array, largest: int) -> str:
    """A WebP data URI of uint8 RGB [H, W, 3], its longer side at most `largest`, its quality fitted to a byte limit."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    room = PANEL_BYTES * max(1.0, (largest / 384) ** 2)
    for quality in (92, 84, 72, 56, 36):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=4)
        if buffer.tell() <= room:
            break
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_view(encoder: Encoder, pixels: UInt8Array, size: int | None) -> UInt8Array:
    """What the model sees of uint8 RGB [H, W, 3]: its view at `size`, encoded and decoded, as uint8 RGB [h, w, 3].

    A view without a size is shown with its shorter side at most LARGEST_DECODED pixels.
    """
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(encoder.device, torch.float32) / 255
    view = View(size=LARGEST_DECODED if size is None else size)
    plan = view.plan(pixels.shape[0], pixels.shape[1], encoder.factor)
    height, width = plan.crop
    if height * width > LIMITS.view_pixels:
        raise ShadeFastError(f"the encoder would see {width}x{height} pixels, more than {LIMITS.view_pixels:,}")
    with torch.inference_mode():
        seen = plan.apply(images)
        decoded = encoder.decode(encoder.encode(seen))
    rounded: UInt8Array = decoded[0].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return rounded


def _decoder(run: Run, encoder: Encoder | None, trusted: bool) -> tuple[Encoder | None, str | None]:
    """The encoder that decodes for the page, and a remark for its reader where it is missing or not the run's own."""
    if encoder is not None:
        if not encoder.has_decoder:
            return None, f"The encoder {encoder.name} has no decoder, so what the model sees is left out."
        known = {recorded.sha256 for recorded in run.options.encoder}
        if encoder.sha256 in known or None in known or encoder.sha256 is None:
            return encoder, None
        return encoder, f"Decoded with {encoder.name}, whose weights are not those that the run used."
    remark = "The run names no encoder, so what the model sees is left out."
    encoders = run.options.encoder
    if not trusted and encoders:
        name = encoders[0].title
        remark = f"The encoder {name} is loaded with --trust-record only, so what the model sees is left out."
        encoders = tuple(recorded for recorded in encoders if recorded.spec == "embedded")[:1]
    for recorded in encoders:
        loaded, remark = _load(recorded)
        if loaded is not None:
            several = len(run.options.encoder) > 1
            return loaded, f"Decoded with {recorded.title}, one of the run's encoders." if several else None
    return None, remark


def _load(recorded: RecordedEncoder) -> tuple[Encoder | None, str]:
    left_out = "so what the model sees is left out."
    try:
        from shade_fast.encoders import load_encoder
        from shade_fast.encoders.hub import never_asked

        encoder = load_encoder(never_asked(recorded.spec))
    except (ShadeFastError, ImportError, OSError, RuntimeError) as problem:
        return None, f"The run's encoder {recorded.title} could not be loaded ({problem}), {left_out}"
    if not encoder.has_decoder:
        return None, f"The run's encoder {recorded.title} has no decoder, {left_out}"
    if recorded.sha256 and encoder.sha256 and recorded.sha256 != encoder.sha256:
        return None, f"The weights of {recorded.title} on this machine are not those that the run used, {left_out}"
    return encoder, ""
