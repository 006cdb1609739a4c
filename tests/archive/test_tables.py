from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shade_fast import Access, ShadeFastError, verify_archive
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive import table as one_table
from shade_fast.archive.storage import ArchiveStoppedError
from shade_fast.images import decode
from tests.archive.outputs import Run, by_key, images


@pytest.fixture
def listed(many: Path) -> list[dict[str, str]]:
    """Records of five images, two with targets of their own, one twice."""
    names = ["00", "01", "02", "03", "01"]
    records = [{"path": f"many/{name}.png", "caption": f"a, {name}", "target": "", "concept": "dog"} for name in names]
    records[2]["target"], records[3]["target"] = "cat", "dog"
    return records


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_of_paths(
    kind: str, run: Run, listed: list[dict[str, str]], tmp_path: Path, engine: dict[str, Any]
) -> None:
    table = tmp_path / f"table.{kind}"
    if kind == "csv":
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(listed[0]))
            writer.writeheader()
            writer.writerows(listed)
    elif kind == "jsonl":
        table.write_text("".join(json.dumps(record) + "\n" for record in listed))
    else:
        pq.write_table(pa.Table.from_pylist(listed), table)
    report = run(table, target="cat")
    out = tmp_path / "out"
    rows = list(report.rows())
    assert [row.target for row in rows] == ["cat", "cat", "cat", "dog", "cat"]
    assert [row.concept for row in rows] == ["dog"] * 5
    assert [row.status for row in rows] == ["ok"] * 5
    assert rows[4].duplicate_of == rows[1].key
    assert list(images(out)) == [*(f"many/{index:02}.png" for index in range(4)), f"table.{kind}"]
    if kind == "csv":
        written = list(csv.DictReader((out / "table.csv").open(newline="")))
    elif kind == "jsonl":
        written = [json.loads(line) for line in (out / "table.jsonl").read_text().splitlines()]
    else:
        written = pq.read_table(out / "table.parquet").to_pylist()
    assert written == listed
    assert verify_archive(out, poisoner=Poisoner(**engine)) == []
    assert run(table, target="cat").new == 0


@pytest.mark.parametrize("shape", ["bytes", "struct"])
def test_a_table_of_bytes(shape: str, run: Run, many: Path, tmp_path: Path, engine: dict[str, Any]) -> None:
    data = [(many / f"{index:02}.png").read_bytes() for index in range(3)] + [b"no image"]
    records: list[dict[str, Any]] = [{"label": index, "image": value} for index, value in enumerate(data)]
    if shape == "struct":
        records = [{"label": i, "image": {"bytes": value, "path": f"{i}.png"}} for i, value in enumerate(data)]
    table = pa.Table.from_pylist(records).replace_schema_metadata({"huggingface": '{"info": 1}'})
    pq.write_table(table, tmp_path / "train-0.parquet")
    run(many, tmp_path / "files")
    assert run(tmp_path / "train-0.parquet", limit=1).interrupted
    report = run(tmp_path / "train-0.parquet")
    assert (report.ok, report.failed, report.new) == (3, 1, 3)
    written = pq.read_table(tmp_path / "out/train-0.parquet")
    assert written.schema.equals(table.schema, check_metadata=True)
    values = [record["image"] for record in written.to_pylist()]
    if shape == "struct":
        assert [value and value["path"] for value in values] == ["0.png", "1.png", "2.png", None]
        values = [value and value["bytes"] for value in values]
        assert list(by_key(report)) == [f"{index}.png" for index in range(4)]
    assert values == [*((tmp_path / f"files/{index:02}.png").read_bytes() for index in range(3)), None]
    assert verify_archive(tmp_path / "out", poisoner=Poisoner(**engine)) == []


def test_overwriting_a_table(run: Run, many: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path\nmany/00.png\nmany/01.png\n")
    run(table)
    first = images(tmp_path / "out")
    report = run(table, mode="overwrite", steps=2)
    assert (report.new, report.ok) == (2, 2)
    second = images(tmp_path / "out")
    assert second["t.csv"] == first["t.csv"]
    assert all(second[name] != first[name] for name in ("many/00.png", "many/01.png"))


@pytest.mark.parametrize("targets", [("dog", "dgo"), ("dgo", "dog"), ("dog", "cat"), ("dog", "dog")])
def test_overwriting_spares_what_another_row_of_the_same_image_has_written(
    targets: tuple[str, str], run: Run, many: Path, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,target\n" + "".join(f"many/00.png,{target}\n" for target in targets))
    for mode in ("resume", "overwrite"):
        report = run(table, mode=mode)
        assert report.ok == (2 if targets[0] == targets[1] else 1)
        assert list(images(tmp_path / "out")) == ["many/00.png", "t.csv"]


@pytest.mark.parametrize("holds", ["an image", "no image"])
def test_an_image_never_takes_the_place_of_the_record(holds: str, run: Run, many: Path, tmp_path: Path) -> None:
    (tmp_path / "_shade_fast").mkdir()
    (tmp_path / "_shade_fast/run.json").write_bytes(
        (many / "00.png").read_bytes() if holds == "an image" else holds.encode()
    )
    (tmp_path / "t.csv").write_text("path\n_shade_fast/run.json\nmany/01.png\n")
    assert [row.status for row in run(tmp_path / "t.csv", mode="overwrite").rows()] == ["failed", "ok"]
    assert json.loads((tmp_path / "out/_shade_fast/run.json").read_text())["options"]


def test_rows_that_cannot_be(run: Run, many: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.open(many / "05.png").save(tmp_path / "elsewhere/05.png")
    folder = tmp_path / "tables"
    folder.mkdir()
    lines = [
        {"path": "../many/00.png", "target": "dog"},
        {"path": str(tmp_path / "elsewhere/05.png")},
        {"path": "../gone.png"},
        {"path": ""},
        {"path": "../many/01.png", "target": "dgo"},
        {"path": "../many/00.png", "target": "cat"},
        {"path": "../../many/../many/02.png", "target": "dog"},
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = list(run(folder / "t.jsonl", target=None, access=Access(paths=(str(tmp_path),))).rows())
    errors = [row.error or "" for row in rows]
    assert [row.status for row in rows] == ["ok", *["failed"] * 6]
    assert rows[0].output == "many/00.png"
    for error, words in zip(
        errors[1:],
        [
            "no target",
            "gone.png: cannot be read",
            "row 3: no path",
            "did you mean 'dog'",
            "another target",
            "cannot be",
        ],
        strict=True,
    ):
        assert words in error
    written = [json.loads(line)["path"] for line in (tmp_path / "out/t.jsonl").read_text().splitlines()]
    assert written == ["many/00.png", *[None] * 6]
    assert decode(tmp_path / "out/many/00.png").format == "PNG"


@pytest.mark.parametrize("column", ["image", "path"])
def test_a_column_without_nulls_gets_one_for_an_image_that_fails(
    column: str, run: Run, many: Path, tmp_path: Path
) -> None:
    kind = pa.binary() if column == "image" else pa.string()
    values = [(many / "00.png").read_bytes(), b"no image"] if column == "image" else ["many/00.png", "gone.png"]
    fields = [pa.field("label", pa.int32(), nullable=False), pa.field(column, kind, nullable=False)]
    schema = pa.schema(fields, {"about": "labels"})
    pq.write_table(pa.table({"label": [1, 2], column: values}, schema), tmp_path / "t.parquet")
    report = run(tmp_path / "t.parquet")
    assert (report.ok, report.failed) == (1, 1)
    written = pq.read_table(tmp_path / "out/t.parquet")
    assert [value is None for value in written.column(column).to_pylist()] == [False, True]
    assert written.schema.equals(schema.set(1, fields[1].with_nullable(True)), check_metadata=True)


@pytest.mark.parametrize(
    ("column", "limit", "groups"),
    [("image", 64 << 20, [18, 18]), ("path", 64 << 20, [18, 18]), ("image", 1, [16, 2, 16, 2])],
)
def test_row_groups_stay(
    column: str,
    limit: int,
    groups: list[int],
    run: Run,
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(one_table, "GROUP_BYTES", limit)
    first: Any = (many / "00.png").read_bytes() if column == "image" else "many/00.png"
    table = pa.table({column: [first, *[None] * 35], "label": list(range(36))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=18)
    assert run(tmp_path / "t.parquet").ok == 1
    written = pq.ParquetFile(tmp_path / "out/t.parquet")
    assert [written.metadata.row_group(index).num_rows for index in range(written.num_row_groups)] == groups
    assert written.read().column("label").to_pylist() == list(range(36))


def test_a_bad_row_ends_no_run(run: Run, many: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"path": "many/00.png", "caption": "cut \ud83d", "more": "\udc96"},
        {"path": "htp://x/q.png"},
        {"path": "zip://no-archive.png"},
        {"caption": "no path"},
        {"path": "many/\ud83d.png"},
        {"path": "many/01.png"},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = list(run(tmp_path / "t.jsonl").rows())
    assert [row.status for row in rows] == ["ok", *["failed"] * 4, "ok"]
    reasons = ["row 1: htp://x/q.png: Protocol not known", "row 2: ", "row 3: no path in column 'path'"]
    reasons.append("many/\\xed\\xa0\\xbd.png: cannot be read")
    for row, words in zip(rows[1:5], reasons, strict=True):
        assert str(row.error).startswith(words)
    written = [json.loads(line) for line in (tmp_path / "out/t.jsonl").read_text("utf-8").splitlines()]
    assert written == [line | {"path": line["path"] if index in (0, 5) else None} for index, line in enumerate(lines)]


def test_csv_rows_longer_and_shorter_than_the_header(run: Run, many: Path, tmp_path: Path) -> None:
    text = 'path,caption\nmany/00.png,one, two\nmany/01.png\n,gone\nmany/02.png,"a, b"\n'
    (tmp_path / "t.csv").write_text(text)
    assert run(tmp_path / "t.csv").ok == 3
    assert (tmp_path / "out/t.csv").read_text() == text.replace("01.png\n", "01.png,\n")


@pytest.mark.parametrize(
    ("kind", "bad", "reason"),
    [
        ("jsonl", '{"path": "many/02.png"', "line 3: Expecting ',' delimiter"),
        ("jsonl", "[1]", "line 3: no JSON object"),
        ("csv", "x" * 200_000, r"line 4: field larger than field limit \(131072\)"),
    ],
)
def test_a_line_that_cannot_be_read_is_mended(
    kind: str, bad: str, reason: str, run: Run, many: Path, tmp_path: Path
) -> None:
    paths = [f"many/{index:02}.png" for index in range(4)]
    lines = [json.dumps({"path": path}) for path in paths] if kind == "jsonl" else ["path", *paths]
    place = len(lines) - 2
    table = tmp_path / f"t.{kind}"
    table.write_text("\n".join([*lines[:place], bad, *lines[place + 1 :]]))
    with pytest.raises(ArchiveStoppedError, match=rf"t.{kind}: cannot be read: {reason}; fix it and run this again"):
        run(table)
    table.write_text("\n".join(lines))
    report = run(table)
    assert (report.new, report.ok) == (2, 4)


def test_a_damaged_parquet_table_says_so(run: Run, many: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": ["many/00.png"] * 9, "caption": [f"{index}" * 999 for index in range(9)]}), table)
    data = bytearray(table.read_bytes())
    data[40:80] = bytes(40)
    table.write_bytes(data)
    with pytest.raises(ArchiveStoppedError, match=r"t.parquet: cannot be read: .*; fix it and run this again"):
        run(table)


def test_targets_of_one_name_are_told_apart_by_their_images(
    run: Run, many: Path, tmp_path: Path, draw: Any, engine: dict[str, Any]
) -> None:
    (many / "01.png").write_bytes((many / "00.png").read_bytes())
    (many / "02.png").write_bytes((many / "00.png").read_bytes())
    targets = []
    for seed, folder in ((5, "k1"), (6, "k2"), (6, "k3")):
        (tmp_path / folder).mkdir()
        targets.append(tmp_path / folder / "castle.png")
        Image.fromarray(draw(48, 48, seed)).save(targets[-1])
    lines = [f"many/{place:02}.png,{target}\n" for place, target in enumerate(targets)]
    (tmp_path / "t.csv").write_text("path,target\n" + "".join(lines))
    rows = list(run(tmp_path / "t.csv").rows())
    assert [row.duplicate_of for row in rows] == [None, None, "many/01.png"]
    assert [row.target for row in rows] == [str(target) for target in targets]
    written = images(tmp_path / "out")
    assert written["many/00.png"] != written["many/01.png"] == written["many/02.png"]
    poisoner = Poisoner(**engine)
    assert verify_archive(tmp_path / "out", poisoner=poisoner) == []
    Image.fromarray(draw(48, 48, 7)).save(targets[0])
    (mismatch,) = verify_archive(tmp_path / "out", poisoner=poisoner)
    assert mismatch.reason == f"its target {targets[0]} has another sha256 than recorded"


def test_a_table_whose_text_is_not_utf8(run: Run, many: Path, tmp_path: Path, engine: dict[str, Any]) -> None:
    target = os.fsdecode(b"h\xfctte.png")
    Image.open(many / "05.png").save(tmp_path / target)
    table = tmp_path / "t.csv"
    lines = ["path,concept,target", "many/00.png,café,dog", f"many/01.png,dog,{tmp_path}/hütte.png"]
    lines.append("many/02.png,dog,chât")
    table.write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))
    rows = list(run(table).rows())
    assert [row.status for row in rows] == ["ok", "ok", "failed"]
    assert rows[0].concept == "caf\\xe9"
    assert rows[2].error is not None
    assert "neither an anchor nor a path" in rows[2].error
    assert "caf\xe9,dog" in (tmp_path / "out/t.csv").read_text("latin-1")
    assert run(table).new == 0
    assert verify_archive(tmp_path / "out", poisoner=Poisoner(**engine)) == []


def test_tables_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,size\nx,1\n")
    with pytest.raises(ShadeFastError, match=r"a.csv: no column of images among name, size; name one of bytes"):
        run(tmp_path / "a.csv")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ShadeFastError, match=r"b.parquet: not a table that can be read"):
        run(tmp_path / "b.parquet")
    with pytest.raises(ShadeFastError, match=r"c.jsonl: no such file"):
        run(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text("{broken\n")
    with pytest.raises(ShadeFastError, match=r"d.jsonl: not a table that can be read"):
        run(tmp_path / "d.jsonl")
