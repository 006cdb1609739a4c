"""Rows of anyone's manifest, held against their columns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shade_fast import ShadeFastError
from shade_fast.archive import Manifest, Row, Storage

ROW = Row(
    key="a.png",
    shard="00000-00000",
    index=0,
    source="../a.png",
    status="ok",
    output="a.png",
    linf=0.05,
    encoder_distances=((4.0, 1.0),),
    history=(4.0, 2.0),
    survival=(("flip", 0.5), ("denoise", None)),
)


def test_a_run_s_row_is_as_it_was() -> None:
    assert ROW.checked() == ROW
    assert Row.from_json(ROW.to_json()).checked() == ROW


def test_figures_that_are_not_finite_are_none() -> None:
    odd = replace(ROW, linf=float("nan"), lpips=float("inf"), distance_before=1e-310, distance_after=1e300)
    assert (odd.checked().linf, odd.checked().lpips) == (None, None)
    assert odd.ratio is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("status", "done"), ("key", None), ("source", 3), ("error", b"x"), ("width", None), ("width", 1.5)),
        *(("steps", True), ("source_bytes", 10**400), ("linf", "x"), ("lpips", [1.0]), ("optimize_ms", None)),
        *(("transient", 1), ("history", ["x"]), ("history", [10**400]), ("encoder_distances", [[1.0, None]])),
        *(("survival", [["flip", "x"]]), ("survival", [[1, 0.5]]), ("survival", [["flip"]])),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_the_output(column: str, value: Any, tmp_path: Path) -> None:
    manifest = Manifest(Storage(tmp_path))
    manifest.write_row(ROW)
    assert list(manifest.checked_rows()) == [ROW]
    path = Path(manifest.out.path(manifest.work_name(ROW.shard, 0)))
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {column: value}))
    with pytest.raises(ShadeFastError, match=rf"{tmp_path}: its manifest cannot be read"):
        list(manifest.checked_rows())
