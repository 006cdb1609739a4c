"""Limits and access: what may be given, and that the documents say what holds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from shade_fast import Access, Limits, ShadeFastError
from shade_fast.terms.text import Terminal, print_json, printable, redacted

ROOT = Path(__file__).resolve().parents[2]


def shown(value: float) -> str:
    if value >= 1 << 50:
        return "none"
    for unit, size in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20)):
        if isinstance(value, int) and value >= size and value % size == 0:
            return f"{value // size}{unit}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def test_the_documents_list_every_limit() -> None:
    text = (ROOT / "docs/security.md").read_text()
    table = text.partition("<!-- table limits -->\n")[2].partition("<!-- end -->")[0]
    lines = ["| name | default | the most |", "|---|---|---|"]
    for entry in dataclasses.fields(Limits):
        lines.append(f"| `{entry.name.replace('_', '-')}` | {shown(entry.default)} | {entry.metadata['help']} |")
    assert table.strip().splitlines() == lines


def test_limits_from_options() -> None:
    limits = Limits.of_texts(["image-bytes=1.5G", "decode-seconds=0.5", "view_side=100", "pixels=2KiB"])
    assert (limits.image_bytes, limits.decode_seconds) == (3 << 29, 0.5)
    assert (limits.view_side, limits.pixels) == (100, 2048)
    for text in ("image-bytes", "image-bytes=", "image-bytes=-1", "image-bytes=1X", "bytes=1", "image-bytes=0"):
        with pytest.raises(ShadeFastError, match=r"give NAME=VALUE|give a whole number"):
            Limits.of_texts([text])
    with pytest.raises(ShadeFastError, match=r"limit pixels=1.5: give a whole number"):
        Limits(pixels=1.5)  # type: ignore[arg-type]


def test_access_takes_what_it_knows() -> None:
    assert Access("/a", "s3").paths == ("/a",)  # type: ignore[arg-type]
    for values in ({"protocols": ("ftp",)}, {"retries": -1}, {"timeout": 0}):
        with pytest.raises(ShadeFastError):
            Access(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("see https://me:pw@host/a.png?sig=1#x then", "see https://host/a.png?… then"),
        ("s3://bucket/a@2x.png", "s3://bucket/a@2x.png"),
        ("zip://a.png::https://host/z.zip?sig=1", "zip://a.png::https://host/z.zip?…"),
        ("'https://h/x'", "'https://h/x'"),
        ("https://u:p'w@h/x?…#0123456789abcdef", "https://h/x?…#0123456789abcdef"),
        ("no URL: a@b?c", "no URL: a@b?c"),
    ],
)
def test_secrets_of_urls_are_left_out_of_texts(text: str, clean: str) -> None:
    assert redacted(text) == clean
    assert str(ShadeFastError(text)) == clean


def test_redaction_takes_no_longer_than_a_text_is_long() -> None:
    started = time.monotonic()
    for text in ("a" * 1_000_000 + " ://", ("a" * 50 + ".") * 20_000 + " ://", "://" * 300_000, "?#@" * 300_000):
        redacted(text)
    assert time.monotonic() - started < 2


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a": 'see "https://x/a?b=1" there\x7f\x1b', "b": "http://h/a.png?…#0123456789abcdef"}
    with contextlib.redirect_stdout(cast("Any", Terminal(sys.stdout))):
        print_json(value)
    assert json.loads(capsys.readouterr().out) == value


def test_control_characters_are_shown() -> None:
    assert printable("a\x1b[2J\nb\u202e\x85é") == "a\\x1b[2J\\x0ab\\u202e\\x85é"
