"""Which names from outside may be those of an output's files."""

from __future__ import annotations

import pytest

from shade_fast.archive.names import unsafe, unwritable


@pytest.mark.parametrize(
    "name", ["a.png", "a/b c/ü.png", "...png", ".a/..b", "a:b.png", "x/report.html", "x/_shade_fast"]
)
def test_names_that_may_be(name: str) -> None:
    assert unwritable(name, ["t.csv"]) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "no name"),
        (".", "a dot"),
        ("..", "leads out"),
        ("./a.png", "a dot"),
        ("a/./b.png", "a dot"),
        ("a/../b.png", "leads out"),
        ("a\\..\\b.png", "leads out"),
        ("/a.png", "absolute"),
        ("\\\\host\\a.png", "absolute"),
        ("~/a.png", "absolute"),
        ("~root/a.png", "absolute"),
        ("C:\\a.png", "absolute"),
        ("c:/a.png", "absolute"),
        ("C:", "absolute"),
        ("a\0.png", "zero byte"),
        ("a\n.png", "control character"),
        ("a\x1b[2J.png", "control character"),
        ("a\x7f.png", "control character"),
        ("a\x9b.png", "control character"),
        ("_shade_fast/run.json", "the record's"),
        ("_Shade_FAST/run.json", "the record's"),
        ("./_shade_fast/run.json", "the record's"),
        ("_shade_fast", "the record's"),
        ("_\u017fhade_fast/run.json", "the record's"),
        ("report.html", "the record's"),
        ("Report.HTML", "the record's"),
        ("_stats.json/a.png", "the record's"),
        ("t.csv", "another use"),
        ("T.csv", "another use"),
        ("t.csv/a.png", "another use"),
        ("a" * 5000, "a name of 5000 characters"),
    ],
)
def test_names_that_may_not_be(name: str, reason: str) -> None:
    assert reason in str(unwritable(name, ["t.csv"]))


def test_a_tar_may_hold_dots_and_control_characters() -> None:
    assert unsafe("./a\n.png") is None
    assert "the record's" in str(unsafe("./_shade_fast/a.png"))
