"""Files of a few kilobytes that would take gigabytes or hours: each in a process of its own, its memory measured."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import mmap
import multiprocessing
import multiprocessing.connection
import resource
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shade_fast import ShadeFastError
from shade_fast.archive.layout import Layout, Shard
from shade_fast.archive.reading import Reader
from shade_fast.archive.row import Row
from shade_fast.archive.storage import Storage
from shade_fast.archive.tables import Tables
from shade_fast.archive.tars import Tars
from shade_fast.images import Output
from shade_fast.terms.limits import Access, Limits

KB, MB = 1 << 10, 1 << 20
#: A limit of each kind, small enough for tests that take moments.
SMALL = Limits(image_bytes=MB, member_bytes=2 * MB, header_bytes=64 * KB, stream_bytes=64 * MB)


@dataclass
class Done:
    """What a source's samples and its writing again were: (key, error, bytes read) of each row."""

    rows: list[tuple[str, str | None, int]]
    error: str | None
    megabytes: float

    @property
    def errors(self) -> dict[str, str]:
        return {key: error for key, error, _ in self.rows if error is not None}

    @property
    def good(self) -> list[str]:
        return [key for key, error, _ in self.rows if error is None]


def use(path: Path, out: Path, limits: Limits) -> tuple[list[tuple[str, str | None, int]], str | None]:
    """Take a shard's samples, one at a time, and write it again with an image of four bytes for each."""
    reader = Reader(limits, Access())
    rows: list[Row] = []
    taken: list[tuple[str, str | None, int]] = []
    try:
        layout: Layout = (
            Tars([path], Storage(out), Output("same"), limits)
            if ".tar" in path.name
            else Tables([path], Storage(out), Output("same"), reader)
        )
        shard = Shard(path.name, str(path))
        for sample in layout.samples(shard):
            data = sample.read() if sample.error is None and not layout.files else b""
            output = None if sample.error else sample.output
            rows.append(Row(sample.key, shard.name, sample.index, "", "ok", output, sample.error))
            taken.append((sample.key, sample.error, len(data)))
        layout.count()
        layout.finish(shard, rows, lambda row: b"new!", Storage(out), None)
    except ShadeFastError as error:
        return taken, str(error)
    return taken, None


def _child(pipe: multiprocessing.connection.Connection, *arguments: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows, error = use(*arguments)
    pipe.send((rows, error, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / KB))


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., Done]:
    """`measured(path, limits, seconds)`: `use` in a process of its own, which is to end in so many seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    def run(path: Path, limits: Limits = SMALL, seconds: float = 20) -> Done:
        receiving, sending = context.Pipe(duplex=False)
        (tmp_path / "out").mkdir(exist_ok=True)
        process = context.Process(target=_child, args=(sending, path, tmp_path / "out", limits))
        process.start()
        sending.close()
        try:
            assert receiving.poll(seconds + 30), f"not done in {seconds} s"  # the first one waits for its imports
            return Done(*receiving.recv())
        finally:
            process.kill()
            process.join()

    return run


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: str, data: bytes = b"image") -> bytes:
    return header(name, len(data)) + padded(data)


def pax(records: dict[str, str] | bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    if isinstance(records, bytes):
        return header("pax", len(records), kind) + padded(records)
    lines = b""
    for name, value in records.items():
        line = f" {name}={value}\n".encode()
        length = len(line) + len(str(len(line) + len(str(len(line)))))
        lines += str(length).encode() + line
    return header("pax", len(lines), kind) + padded(lines)


def tar(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts) + bytes(1024))
    return path


EXTENDED = {
    "PAX": tarfile.XHDTYPE,
    "global PAX": tarfile.XGLTYPE,
    "Solaris": tarfile.SOLARIS_XHDTYPE,
    "GNU name": tarfile.GNUTYPE_LONGNAME,
    "GNU link": tarfile.GNUTYPE_LONGLINK,
}


@pytest.mark.parametrize("kind", EXTENDED)
def test_a_long_extended_header(kind: str, measured: Any, tmp_path: Path) -> None:
    size = 60 * MB
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(file("0.png") + header("h", size, EXTENDED[kind]) + bytes(size) + file("1.png"), 1))
    done = measured(path)
    assert done.good == ["0.png"]
    (error,) = done.errors.values()
    assert f"extended headers of {size} bytes; at most {64 * KB} are read: --max header-bytes={size}" in error
    assert done.megabytes < 16


@pytest.mark.parametrize("kind", EXTENDED)
def test_many_extended_headers_one_after_the_other(kind: str, measured: Any, tmp_path: Path) -> None:
    done = measured(tar(tmp_path / "a.tar", file("0.png"), header("h", 0, EXTENDED[kind]) * 5000, file("1.png")))
    assert done.good == ["0.png"]
    assert "more than 32 extended headers one after the other" in str(done.errors)


def test_global_headers_that_pile_up(measured: Any, tmp_path: Path) -> None:
    heads = [pax({f"key{index}": "x" * 1000}, tarfile.XGLTYPE) + file(f"{index}.png") for index in range(100)]
    done = measured(tar(tmp_path / "a.tar", *heads))
    assert done.good == [f"{index}.png" for index in range(len(done.good))]
    assert 0 < len(done.good) < 10
    assert "global headers of more than 4096 bytes" in str(done.errors)


def test_global_headers_that_say_the_same_are_no_pile(measured: Any, tmp_path: Path) -> None:
    head = pax({"comment": "5" * 40}, tarfile.XGLTYPE)
    done = measured(tar(tmp_path / "a.tar", *(head + file(f"{index}.png") for index in range(200))))
    assert (len(done.good), done.errors) == (200, {})
    with tarfile.open(tmp_path / "out/a.tar") as written:
        assert {member.pax_headers["comment"] for member in written} == {"5" * 40}


@pytest.mark.parametrize("shape", ["digits", "overlapping"])
def test_an_extended_header_that_takes_hours_to_take_apart(shape: str, measured: Any, tmp_path: Path) -> None:
    digits = pax({"comment": "1" * 700_000})
    head = digits if shape == "digits" else pax(b"2 " * 350_000 + b"=")
    path = tar(tmp_path / "a.tar", file("0.png"), head + file("1.png"), file("2.png"))
    done = measured(path, Limits())
    assert done.good == (["0.png", "1.png", "2.png"] if shape == "digits" else ["0.png"])
    assert done.megabytes < 32


@pytest.mark.parametrize("records", [{"mtime": "inf"}, {"mtime": "nan"}, {"uid": "9" * 4000}, {"GNU.x": "9" * 5000}])
def test_numbers_that_are_none(records: dict[str, str], measured: Any, tmp_path: Path) -> None:
    done = measured(tar(tmp_path / "a.tar", pax(records) + file("0.png"), pax(records) + file("0.txt"), file("1.png")))
    assert (done.good, done.errors, done.error) == (["0.png", "1.png"], {}, None)


def sparse(form: str) -> bytes:
    """A member of 300 MB, nearly all of them holes."""
    real = 300 * MB
    if form == "GNU":
        head = bytearray(header("s.png", 512, tarfile.GNUTYPE_SPARSE))
        head[386:410] = b"%011o\0%011o\0" % (0, 512)
        head[482], head[483:495] = 1, b"%011o\0" % real
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        more = (b"%011o\0%011o\0" % (real - 512, 1)) * 21
        blocks = [more + bytes([index < 20_000 - 1]) + bytes(7) for index in range(20_000)]
        return bytes(head) + b"".join(blocks) + bytes(512)
    pieces = [(0, 512), (real, 0)]
    if form == "0.0":
        records = {"GNU.sparse.size": str(real), "GNU.sparse.numblocks": "2"}
        lines = b"".join(
            b"%d %s=%s\n" % (len(name) + len(value) + 5, name, value)
            for offset, count in pieces
            for name, value in (
                (b"GNU.sparse.offset", b"%06d" % (offset % 10**6)),
                (b"GNU.sparse.numbytes", b"%06d" % count),
            )
        )
        whole = pax(records)[512:].rstrip(b"\0") + lines
        return pax(whole) + file("s.png", bytes(512))
    if form == "0.1":
        numbers = ",".join(f"{offset},{count}" for offset, count in pieces)
        return pax({"GNU.sparse.size": str(real), "GNU.sparse.map": numbers}) + file("s.png", bytes(512))
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.png"}
    table = padded(b"10000000\n" + b"".join(b"%d\n%d\n" % piece for piece in pieces) * 50_000)
    return pax(records | {"GNU.sparse.realsize": str(real)}) + file("GNUSparseFile.0/s.png", table + bytes(512))


@pytest.mark.parametrize("form", ["GNU", "0.0", "0.1", "1.0"])
def test_a_sparse_member_is_left_out_and_the_next_is_done(form: str, measured: Any, tmp_path: Path) -> None:
    done = measured(tar(tmp_path / "a.tar", file("0.png"), sparse(form), file("1.png")))
    assert done.good == ["0.png", "1.png"]
    assert list(done.errors) == ["s.png"]
    assert "s.png: a sparse member; " in done.errors["s.png"]
    assert done.error is None
    assert done.megabytes < 16
    with tarfile.open(tmp_path / "out/a.tar") as written:
        assert written.getnames() == ["0.png", "1.png"]


def test_members_that_are_too_large(measured: Any, tmp_path: Path) -> None:
    large = file("1.png", bytes(MB + 1)), file("2.mp4", bytes(2 * MB + 1)), file("3.mp4", bytes(2 * MB))
    done = measured(tar(tmp_path / "a.tar", file("0.png"), *large, file("4.png")))
    assert done.good == ["0.png", "4.png"]
    assert done.errors["1.png"] == f"1.png: {MB + 1} bytes; at most {MB} are read: --max image-bytes={MB + 1}"
    assert f"2.mp4: {2 * MB + 1} bytes; at most {2 * MB} are copied: --max member-bytes=" in done.errors["2.mp4"]
    with tarfile.open(tmp_path / "out/a.tar") as written:
        assert written.getnames() == ["0.png", "3.mp4", "4.png"]


@pytest.mark.parametrize("limits", [SMALL, Limits(image_bytes=1 << 62, member_bytes=1 << 62)], ids=["small", "none"])
@pytest.mark.parametrize("name", ["1.png", "1.txt"])
@pytest.mark.parametrize("size", [b"\x80\0\0\0\x7f" + b"\xff" * 7, b"\xff" * 11 + b"\0"], ids=["8 EiB", "negative"])
def test_a_size_that_cannot_be(size: bytes, name: str, limits: Limits, measured: Any, tmp_path: Path) -> None:
    head = bytearray(header(name, 0))
    head[124:136] = size
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    done = measured(tar(tmp_path / "a.tar", file("0.png"), bytes(head), file("2.png")), limits)
    assert done.good == ["0.png"]
    assert "truncated or damaged here" in str(done.errors)
    assert done.megabytes < 16


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, 1),
    "bz2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
}


@pytest.mark.parametrize("kind", PACK)
def test_a_stream_that_never_ends(kind: str, measured: Any, tmp_path: Path) -> None:
    path = tmp_path / f"a.tar.{kind}"
    path.write_bytes(PACK[kind](file("0.png") + header("1.txt", 4000 * MB) + bytes(100 * MB)))
    done = measured(path)
    assert done.good == ["0.png"]
    assert list(done.errors) == ["1.txt", f"a.tar.{kind}, from member 2"]
    assert f"more than {64 * MB} bytes once decompressed" in str(done.errors)
    assert "--max stream-bytes=" in str(done.errors)
    assert done.megabytes < 24


@pytest.mark.parametrize("kind", PACK)
def test_several_streams_are_one_tar_and_one_that_is_cut_is_damage(kind: str, measured: Any, tmp_path: Path) -> None:
    path = tmp_path / f"a.tar.{kind}"
    noise = [bytes((seed * place * place >> 3) & 255 for place in range(50_000)) for seed in (3, 5, 7)]
    parts = [PACK[kind](file(f"{index}.png", data)) for index, data in enumerate(noise)]
    path.write_bytes(b"".join(parts) + PACK[kind](bytes(1024)) + b"\0" * 8 + b"what follows")
    done = measured(path)
    assert [(key, size) for key, _, size in done.rows] == [(f"{index}.png", 50_000) for index in range(3)]
    path.write_bytes(b"".join(parts)[: -len(parts[2]) // 2])
    done = measured(path)
    assert done.good == ["0.png", "1.png"]
    assert "truncated or damaged here" in str(done.errors)


def test_an_xz_dictionary_of_gigabytes(measured: Any, tmp_path: Path) -> None:
    packed = bytearray(lzma.compress(file("0.png") + bytes(1024)))
    block = slice(12, 12 + 4 * packed[12])
    assert packed[block][2:4] == b"\x21\x01"
    packed[16] = 37  # 1.5 GiB
    packed[block.stop : block.stop + 4] = zlib.crc32(packed[block]).to_bytes(4, "little")
    (tmp_path / "a.tar.xz").write_bytes(packed)
    done = measured(tmp_path / "a.tar.xz")
    assert done.good == []
    assert "Memory usage limit" in str(done.errors)


def test_more_images_than_are_allowed(measured: Any, tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", *(file(name) for name in ("0.png", "0.txt", "../1.png", "2.png", "3.png")))
    done = measured(path, Limits(files=3))
    assert done.good == ["0.png", "2.png"]
    assert "more than 3 images; more are read with --max files=" in str(done.errors["a.tar, from member 3"])
    assert done.error is None
    with tarfile.open(tmp_path / "out/a.tar") as written:
        assert written.getnames() == ["0.png", "0.txt", "2.png"]


def test_names_that_an_output_has_for_itself(measured: Any, tmp_path: Path) -> None:
    names = ["_Shade_Fast/x.png", "./report.html", "x" * 5000 + ".png", "./good.png", "a/./report.html"]
    start = tarfile.TarInfo(".")
    start.type = tarfile.DIRTYPE
    with tarfile.open(tmp_path / "a.tar", "w") as written:
        written.addfile(start)
        for name in names:
            written.addfile(tarfile.TarInfo(name))
    done = measured(tmp_path / "a.tar")
    assert done.good == ["./good.png"]
    assert len(done.errors) == 3
    assert max(map(len, done.errors)) < 200


def test_members_that_are_no_images_are_not_kept_in_memory(measured: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(file("0.txt", b"") * 25_000) + gzip.compress(file("0.png") + bytes(1024)))
    done = measured(path, Limits())
    assert done.good == ["0.png"]
    assert done.megabytes < 16


def shared(value: bytes | str, rows: int, own: bytes | str | None = None) -> pa.Array:
    """A column of one value, which is in the file once; the last row's may be another."""
    values = [value] if own is None else [value, own]
    return pa.DictionaryArray.from_arrays(pa.array([0] * (rows - 1) + [len(values) - 1], pa.int32()), pa.array(values))


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, store_schema=False, compression="zstd", **options)
    assert path.stat().st_size < 64 * KB
    return path


@pytest.mark.parametrize("shape", ["bytes", "struct", "path"])
def test_a_value_that_many_rows_share_and_that_is_too_long(shape: str, measured: Any, tmp_path: Path) -> None:
    array = shared("x" * (200 * MB) if shape == "path" else bytes(200 * MB), 2000)
    if shape == "struct":
        array = pa.StructArray.from_arrays([array, pa.array(["x"] * 2000)], ["bytes", "path"])
    path = parquet(tmp_path / "t.parquet", {"path" if shape == "path" else "image": array})
    done = measured(path)
    assert done.rows == []
    column = {"bytes": "image", "struct": "image.bytes", "path": "path"}[shape]
    assert f"t.parquet: column {column}: a page or value of 2097152" in str(done.error)
    assert f"at most {MB} are read: --max image-bytes=2097152" in str(done.error)
    assert done.megabytes < 16


def test_a_value_that_many_rows_share_and_that_may_be_so_long(measured: Any, tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"image": shared(bytes(30 * MB), 500, b"small")})
    limits = Limits(image_bytes=32 * MB, stream_bytes=320 * MB)
    done = measured(path, limits)
    assert done.good == [*map(str, range(10)), "499"]
    assert "row 10: after 335544320 bytes of the table; more are read with --max stream-bytes=" in done.errors["row 10"]
    assert done.error is None
    assert done.megabytes < 12 * 32


@pytest.mark.parametrize("struct", [False, True])
def test_a_row_whose_image_is_too_long(struct: bool, measured: Any, tmp_path: Path) -> None:
    array = pa.array([b"a", bytes(MB + 1), None, bytes(MB)])
    if struct:
        array = pa.StructArray.from_arrays([array, pa.array(list("abcd"))], ["bytes", "path"])
    done = measured(parquet(tmp_path / "t.parquet", {"n": [1, 2, 3, 4], "image": array}))
    assert [size for _, _, size in done.rows] == [1, 0, 0, MB]
    length = MB + 1
    assert done.errors["row 1"] == (
        f"row 1: its image has {length} bytes; at most {MB} are read: --max image-bytes={length}"
    )
    written = pq.read_table(tmp_path / "out/t.parquet").to_pylist()
    assert [record["n"] for record in written] == [1, 2, 3, 4]
    images = [record["image"] and (record["image"]["bytes"] if struct else record["image"]) for record in written]
    assert images == [b"new!", None, None, b"new!"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("column", ["path", "target", "concept"])
def test_a_row_whose_text_is_too_long(column: str, kind: str, measured: Any, tmp_path: Path) -> None:
    rows = [{"path": f"{index}.png", "target": "t", "concept": "c"} for index in range(4)]
    rows[2][column] = "x" * (64 * KB + 1)
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        parquet(path, pa.Table.from_pylist(rows).to_pydict())
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = measured(path)
    assert done.good == ["0.png", "1.png", "3.png"]
    assert f"row 2: its {column} has {64 * KB + 1} bytes; at most {64 * KB} are read: --max header-bytes=" in str(
        done.errors
    )
    assert done.error is None


def test_another_column_that_would_be_gigabytes_when_written(measured: Any, tmp_path: Path) -> None:
    columns = {"image": [b"image"] * 4000, "label": shared("x" * (30 * MB), 4000)}
    limits = Limits(image_bytes=32 * MB, stream_bytes=256 * MB)
    done = measured(parquet(tmp_path / "t.parquet", columns), limits)
    assert len(done.good) == 4000
    assert f"t.parquet: its rows have more than {256 * MB} bytes; more are written with --max stream" in str(done.error)
    assert list((tmp_path / "out").iterdir()) == []
    assert done.megabytes < 128 + 16 * 32


def test_lists_of_values_that_would_be_gigabytes(measured: Any, tmp_path: Path) -> None:
    texts = pa.ListArray.from_arrays(pa.array([0, 9_000, 9_000], pa.int32()), shared("x" * (MB - 9), 9_000))
    done = measured(parquet(tmp_path / "t.parquet", {"path": ["a.png", "b.png"], "tags": texts}))
    assert "column tags.list.element: lists of 943" in str(done.error)
    numbers = pa.ListArray.from_arrays(pa.array([0, 90_000_000], pa.int32()), pa.nulls(90_000_000, pa.int64()))
    done = measured(parquet(tmp_path / "n.parquet", {"path": ["a.png"], "numbers": numbers}))
    assert "column numbers.list.element: lists of 720000000 bytes" in str(done.error)
    assert done.megabytes < 32
    tags = pa.array([["a", "b" * 300]] * 4000)
    done = measured(parquet(tmp_path / "tags.parquet", {"path": ["a.png"] * 4000, "tags": tags}))
    assert (len(done.rows), done.error) == (4000, None)


def test_values_of_a_fixed_length_that_are_not_there(measured: Any, tmp_path: Path) -> None:
    kind = pa.binary(1 << 27)
    nothing = pa.Array.from_buffers(kind, 9, [pa.py_buffer(b"\0\0"), pa.py_buffer(mmap.mmap(-1, 9 << 27))])
    done = measured(parquet(tmp_path / "t.parquet", {"path": ["a.png"] * 9, "x": nothing}))
    assert f"column x: a page or value of {1 << 27} bytes" in str(done.error)
    assert done.megabytes < 16


def test_columns_far_within_one_another(measured: Any, tmp_path: Path) -> None:
    value: Any = pa.array([1])
    for _ in range(200):
        value = pa.StructArray.from_arrays([value], ["x"])
    done = measured(parquet(tmp_path / "t.parquet", {"path": ["a.png"], "deep": value}))
    assert "t.parquet: columns within columns, more than 64 deep" in str(done.error)


def test_a_footer_of_a_gigabyte(measured: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with path.open("wb") as written:
        written.write(b"PAR1")
        written.seek(1 << 30)
        written.write((1 << 29).to_bytes(4, "little") + b"PAR1")
    done = measured(path)
    assert f"t.parquet: its footer has {1 << 29} bytes; at most {64 * MB} are read" in str(done.error)
    assert done.megabytes < 16


def test_more_rows_than_are_allowed(measured: Any, tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"path": ["a.png"] * 4})
    assert "t.parquet: 4 rows; at most 3 are read: --max files=4" in str(measured(path, Limits(files=3)).error)
    (tmp_path / "t.csv").write_text("path\n" + "a.png\n" * 4)
    done = measured(tmp_path / "t.csv", Limits(files=3))
    assert "t.csv: more than 3 rows; more are read with --max files=" in str(done.error)


@pytest.mark.parametrize("place", ["header", "sizes"])
def test_a_page_that_is_not_what_it_says(place: str, measured: Any, tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"image": [b"0123456789" * 9] * 3})
    data = bytearray(path.read_bytes())
    if place == "header":
        data[4:8] = b"\xff" * 4
    else:
        # The dictionary's own size, one byte more: page header fields 1 and 2 are varints of one and two bytes.
        assert data[4:7] == b"\x15\x04\x15"
        data[7:9] = b"\xff\xff"
    path.write_bytes(data)
    done = measured(path)
    assert done.rows == []
    assert "t.parquet: " in str(done.error)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.jsonl", '{"path": "b.png", "x": "' + "y" * 300 * MB + '"}', f"line 2: more than {MB} characters"),
        ("t.jsonl", '{"path": "b.png", "x": ' + "[" * 90_000 + "]" * 90_000 + "}", "line 2: nested more than 100 deep"),
        ("t.jsonl", '{"path": "b.png", "x": ' + "[" * 300 + "]" * 300 + "}", "line 2: nested more than 100 deep"),
        ("t.jsonl", '{"path": "b.png", "x": ' + "9" * 90_000 + "}", "line 2: Exceeds the limit"),
        ("t.csv", "b.png" + "y" * 300 * MB, f"more than {MB} characters"),
        ("t.csv", ",".join(['"\n' + "y" * 60_000 + '"'] * 40), f"more than {MB} characters"),
    ],
    ids=["long line", "deep", "a little deep", "a large number", "long line of CSV", "long row of CSV"],
)
def test_lines_that_are_no_lines(name: str, text: str, reason: str, measured: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text((json.dumps({"path": "a.png"}) if name.endswith("jsonl") else "path\na.png") + "\n" + text + "\n")
    done = measured(path)
    assert done.good == ["a.png"]
    assert f"{name}: cannot be read: " in str(done.error)
    assert reason in str(done.error)
    assert done.megabytes < 24


def test_a_table_of_many_columns(measured: Any, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path," + "x," * 20_000 + "\n" + "a\n" * 20_000)
    assert "line 1: 20002 columns; at most 10000 are read" in str(measured(tmp_path / "t.csv").error)
