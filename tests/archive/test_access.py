"""What a table's rows may reach: nothing but its own folder and store, unless the run allows it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from shade_fast import Access, Limits, ShadeFastError, verify_archive
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive import Row
from shade_fast.archive.http import fetch
from shade_fast.terms.limits import is_public
from tests.archive.outputs import Command, Run, finish, images

Rows = Callable[..., list[Row]]


class Server(http.server.ThreadingHTTPServer):
    """A server on the loopback address. answers: path -> what writes the answer; seen: what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.seen: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gives(self, path: str, data: bytes, *, length: bool = True, code: int = 200, **headers: str) -> None:
        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(code)
            for name, value in headers.items():
                handler.send_header(name, value)
            if length:
                handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

        self.answers[path] = answer


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        answer = self.server.answers.get(self.path.partition("?")[0])
        if answer is None:
            self.send_error(404)
        else:
            answer(self)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def rows(run: Run, many: Path, tmp_path: Path) -> Rows:
    """`rows(path, ...)`: the rows of a table in a folder of its own that names these, run with more options."""

    def call(*paths: str, **options: Any) -> list[Row]:
        table = tmp_path / "tables" / "t.jsonl"
        table.parent.mkdir(exist_ok=True)
        table.write_text("".join(json.dumps({"path": path}) + "\n" for path in paths))
        return list(run(table, **options).rows())

    return call


def test_no_protocol_but_those_allowed(rows: Rows, server: Server, many: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes((many / "00.png").read_bytes())
    refs = tmp_path / "refs.json"
    template = server.url + "/{{t.__globals__[os].environ[HOME]}}"
    refs.write_text(json.dumps({"version": 1, "templates": {"t": template}, "refs": {"a.png": ["{{t}}"]}}))
    fsspec.filesystem("memory").pipe("/elsewhere/a.png", (many / "00.png").read_bytes())
    named = [
        f"reference://a.png::file://{refs}",
        "simplecache::memory://elsewhere/a.png",
        "memory://elsewhere/a.png",
        f"file://{secret}",
        f"local://{secret}",
        f"dir://a.png::file://{tmp_path}",
        str(secret),
        "../secret.png",
        "sub/../../secret.png",
        server.url + "/a.png",
        "https://127.0.0.1/a.png",
        "s3://bucket/a.png",
        "github://owner:repo@main/a.png",
    ]
    results = rows(*named)
    assert [row.status for row in results] == ["failed"] * len(named)
    assert server.seen == []
    home = os.environ["HOME"]
    record = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert f"/{home}".encode() not in record
    errors = [str(row.error) for row in results]
    assert "a chain of URLs" in errors[0]
    assert "Protocol not known to rows" in errors[2]
    assert "--allow-paths DIR" in errors[6]
    assert "--allow-protocols http" in errors[9]
    assert "--allow-protocols s3" in errors[11]


def test_paths_below_stated_roots(rows: Rows, many: Path, tmp_path: Path, engine: dict[str, Any]) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/inside.png").write_bytes((many / "01.png").read_bytes())
    (tmp_path / "tables/link.png").symlink_to(many / "02.png")
    (tmp_path / "others").mkdir()
    (tmp_path / "others/a.png").write_bytes((many / "03.png").read_bytes())
    named = [
        "inside.png",
        "../many/00.png",
        f"file://{many}/04.png",
        "link.png",
        "../others/a.png",
        f"{many}/../others/a.png",
    ]
    results = rows(*named, access=Access(paths=(str(many),)))
    assert [row.status for row in results] == ["ok", "ok", "ok", "ok", "failed", "failed"]
    assert verify_archive(tmp_path / "out", poisoner=Poisoner(**engine)) == []
    alone = rows(*named, out=tmp_path / "alone")
    assert [row.status for row in alone] == ["ok", *["failed"] * 5]


def test_dots_behind_a_link_lead_where_they_really_do(rows: Rows, many: Path, tmp_path: Path) -> None:
    (tmp_path / "tables/a/b/c").mkdir(parents=True)
    (tmp_path / "tables/link").symlink_to("a/b/c")
    (tmp_path / "secret.png").write_bytes((many / "00.png").read_bytes())
    (tmp_path / "tables/a/secret.png").write_bytes((many / "01.png").read_bytes())
    (row,) = rows("link/../../secret.png")
    assert row.status == "ok"
    assert row.source_sha256 == hashlib.sha256((many / "01.png").read_bytes()).hexdigest()


def test_long_texts_take_no_time(rows: Rows, tmp_path: Path) -> None:
    started = time.monotonic()
    results = rows(
        "a" * 900_000 + " ://", ("a" * 50 + ".") * 10_000 + "://x", "a/" * 400_000, "http://" + "x" * 64 + ".com/a.png"
    )
    assert [row.status for row in results] == ["failed"] * 4
    assert time.monotonic() - started < 10
    assert "a path of 900004 characters" in str(results[0].error)


def test_http_within_what_is_allowed(rows: Rows, server: Server, many: Path, tmp_path: Path) -> None:
    data = (many / "00.png").read_bytes()
    server.gives("/a.png", data)
    server.gives("/chunked.png", data, length=False)
    server.gives("/to-file", b"", code=302, Location=f"file://{many}/00.png")
    server.gives("/to-self", b"", code=302, Location="/to-self")
    server.gives("/to-metadata", b"", code=307, Location="http://169.254.169.254/latest/meta-data/")
    server.gives("/to-https", b"", code=301, Location="https://127.0.0.1/a.png")
    server.gives("/good", b"", code=301, Location="/a.png")
    paths = ["/a.png", "/chunked.png", "/to-file", "/to-self", "/to-metadata", "/to-https", "/good", "/gone.png"]
    named = [server.url + path for path in paths]
    refused = rows(*named, access=Access(protocols=("http",)))
    assert [row.status for row in refused] == ["failed"] * len(paths)
    assert all("--allow-private" in str(row.error) for row in refused)
    assert server.seen == []
    results = rows(
        *named, out=tmp_path / "private", access=Access(protocols=("http",), private_hosts=True, timeout=2, retries=0)
    )
    assert [row.status for row in results] == ["ok", "ok", "failed", "failed", "failed", "failed", "ok", "failed"]
    assert "https is not allowed for rows" in str(results[5].error)
    assert "404" in str(results[7].error)
    assert not results[7].transient
    assert results[0].output == f"127.0.0.1:{server.server_port}/a.png"


def test_a_redirect_from_an_allowed_place_to_a_private_one(server: Server) -> None:
    server.gives("/a", b"", code=302, Location=server.url.replace("127.0.0.1", "localhost") + "/b")
    server.gives("/b", b"secret")
    until = time.monotonic() + 10
    access = Access(protocols=("http",))
    assert fetch(server.url + "/b", access, 100, until, [server.url]) == b"secret"
    with pytest.raises(ShadeFastError, match=r"localhost: is at (127.0.0.1|::1), a loopback, link-local or private"):
        fetch(server.url + "/a", access, 100, until, [server.url])


def test_a_table_and_its_rows_in_one_store(run: Run, server: Server, many: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for index in range(3):
        memory.pipe(f"/store/data/{index}.png", (many / f"{index:02}.png").read_bytes())
    lines = ["../data/0.png", "memory://store/data/1.png", "../../../../store/data/2.png"]
    memory.pipe("/store/tables/t.csv", ("path\n" + "\n".join(lines) + "\n").encode())
    assert [row.status for row in run("memory://store/tables/t.csv").rows()] == ["ok"] * 3
    server.gives(
        "/tables/u.csv", b"path\n../data/a.png\n" + server.url.encode() + b"/data/a.png\nhttp://localhost:1/a.png\n"
    )
    server.gives("/data/a.png", (many / "00.png").read_bytes())
    pytest.importorskip("aiohttp", reason="tables behind https need fsspec's http: pip install aiohttp")
    results = list(run(server.url + "/tables/u.csv", tmp_path / "web").rows())
    assert [row.status for row in results] == ["ok", "ok", "failed"]


def test_bodies_that_are_too_large_or_too_slow(rows: Rows, server: Server) -> None:
    server.gives("/large", bytes(3 << 20))
    server.gives("/unknown", bytes(3 << 20), length=False)

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(600):
            handler.wfile.write(b"x")
            time.sleep(0.1)

    server.answers["/drip"] = drip
    access = Access(protocols=("http",), private_hosts=True, retries=0)
    started = time.monotonic()
    limits = Limits(image_bytes=1 << 20, read_seconds=2)
    results = rows(*(server.url + path for path in ("/large", "/unknown", "/drip")), access=access, limits=limits)
    assert time.monotonic() - started < 20
    assert [row.status for row in results] == ["failed"] * 3
    assert "3145728 bytes; at most 1048576" in str(results[0].error)
    assert "over 1048576 bytes" in str(results[1].error)
    assert "took" in str(results[2].error)
    assert [row.transient for row in results] == [False, False, True]


def test_a_passing_error_is_tried_again(rows: Rows, run: Run, server: Server, many: Path, tmp_path: Path) -> None:
    data = (many / "00.png").read_bytes()
    server.gives("/good", data)
    tries = 0

    def busy(handler: http.server.BaseHTTPRequestHandler) -> None:
        nonlocal tries
        tries += 1
        server.answers["/good" if tries == 2 else "/busy-for-ever"](handler)

    server.gives("/busy-for-ever", b"", code=503)
    server.answers["/busy"] = busy
    access = Access(protocols=("http",), private_hosts=True, retries=1)
    named = [server.url + "/busy", server.url + "/busy-for-ever", server.url + "/gone"]
    results = rows(*named, access=access)
    assert [(row.status, row.transient) for row in results] == [("ok", False), ("failed", True), ("failed", False)]
    assert "503" in str(results[1].error)
    assert "tried 2 times" in str(results[1].error)
    server.gives("/busy-for-ever", (many / "01.png").read_bytes())
    table = tmp_path / "tables/t.jsonl"
    assert run(table, access=access).new == 0
    report = run(table, access=access, retry_failed=True)
    assert (report.new, report.ok, report.failed) == (1, 2, 1)
    lines = [json.loads(line)["path"] for line in (tmp_path / "out/t.jsonl").read_text().splitlines()]
    assert [line is None for line in lines] == [False, False, True]


def test_no_secret_of_a_url_is_written_down(
    command: Command, server: Server, many: Path, tmp_path: Path, engine: dict[str, Any], run: Run
) -> None:
    server.gives("/a.png", (many / "00.png").read_bytes())
    server.gives("/b.png", (many / "01.png").read_bytes())
    place = server.url.removeprefix("http://")
    secrets = ["us3r", "passw0rd", "s1gnature", "fr4gment"]
    named = [
        f"http://us3r:passw0rd@{place}/a.png",
        f"http://{place}/b.png?X-Sig='s1gnature and fr4gment\"",
        f"http://{place}/b.png?X-Sig=s1gnature#fr4gment",
        f"http://us3r:passw0rd@{place}/gone.png?X-Sig=s1gnature",
        "http://us3r:passw0rd@host:notaport/a.png?X-Sig=s1gnature",
        "s3://us3r:passw0rd@bucket/a.png?X-Sig=s1gnature",
    ]
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps({"path": path, "target": "castle"}) + "\n" for path in named))
    allow = ["--allow-protocols", "http", "--allow-private", "--retries", "0", "--events", tmp_path / "events.jsonl"]
    code, printed, errors = finish(command("archive", table, "--out", tmp_path / "out", *allow))
    assert code == 1, errors
    assert ("/a.png", "Basic dXMzcjpwYXNzdzByZA==") in server.seen
    assert any(path.endswith("X-Sig=s1gnature") for path, _ in server.seen)
    table.unlink()
    code, more, others = finish(command("report", tmp_path / "out", engine=False))
    assert code == 0, others
    texts = [printed, errors, more, others, (tmp_path / "events.jsonl").read_text()]
    for path in (tmp_path / "out").rglob("*"):
        texts.append(str(path))
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            texts.append(str(pq.read_table(path).to_pylist()))
        elif path.is_file() and path.suffix not in (".png", ".key") and path.name != "t.jsonl":
            texts.append(path.read_text())
    for secret in secrets:
        assert not any(secret in text for text in texts), secret


def test_urls_that_differ_in_their_secrets_are_known_again(
    rows: Rows, run: Run, server: Server, many: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        server.gives(f"/{name}.png", (many / "00.png").read_bytes())
    access = Access(protocols=("http",), private_hosts=True)
    named = [f"{server.url}/a.png?sig=1", f"{server.url}/a.png?sig=2", f"{server.url}/b.png?sig=1"]
    results = rows(*named, access=access)
    assert [row.status for row in results] == ["ok", "failed", "ok"]
    assert len({row.source for row in results}) == 3
    assert run(tmp_path / "tables/t.jsonl", access=access).new == 0


def test_addresses() -> None:
    private = ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "172.16.0.1", "100.64.0.1", "0.0.0.0", "::1"]
    private += [
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "224.0.0.1",
        "::",
        "x",
    ]
    assert [address for address in private if is_public(address)] == []
    assert all(map(is_public, ["8.8.8.8", "2001:4860:4860::8888"]))


def test_names_that_are_no_outputs(run: Run, many: Path, tmp_path: Path) -> None:
    (many / "_shade_fast").mkdir()
    (many / "keep").mkdir()
    for name in ("report.html", "t.jsonl", "_shade_fast/a.png", "_SHADE_FAST/b.png", "new\nline.png", "bell\a.png"):
        (many / name).parent.mkdir(exist_ok=True)
        (many / name).write_bytes((many / "00.png").read_bytes())
    named = [".", "/", "..", "", "keep", "_shade_fast", "report.html", "_shade_fast/a.png", "_SHADE_FAST/b.png"]
    named += ["new\nline.png", "bell\a.png", "t.jsonl"]
    table = many / "t.jsonl"
    table.write_text("".join(json.dumps({"path": path}) + "\n" for path in [*named, "00.png"]))
    for mode in ("resume", "overwrite"):
        results = list(run(table, mode=mode).rows())
        assert [row.status for row in results] == ["failed"] * len(named) + ["ok"]
        assert set(images(tmp_path / "out")) == {"00.png", "t.jsonl"}


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_overwriting_removes_one_file_at_a_time(where: str, run: Run, many: Path, tmp_path: Path) -> None:
    out: Any = "memory://bucket/out" if where == "memory" else tmp_path / "out"
    store, base = (
        fsspec.filesystem("memory" if where == "memory" else "file"),
        "/bucket/out" if where == "memory" else str(out),
    )
    (many / "deep").mkdir()
    Image.open(many / "05.png").save(many / "deep/a.png")
    table = many / "t.csv"
    table.write_text("path\n00.png\ndeep/a.png\n")
    run(table, out)
    store.pipe(f"{base}/deep/mine.txt", b"mine")
    store.pipe(f"{base}/mine.txt", b"mine")
    store.pipe(f"{base}/01.png", b"mine")
    (many / "deep.png").mkdir()
    table.write_text("path\n.\n/\ndeep\n01.png\n00.png\n")
    results = list(run(table, out, mode="overwrite").rows())
    assert [row.status for row in results] == ["failed", "failed", "failed", "failed", "ok"]
    assert "exists and no run's record names it; move it away" in str(results[3].error)
    for name in ("deep/mine.txt", "mine.txt", "01.png"):
        assert store.cat(f"{base}/{name}") == b"mine"
    assert store.exists(f"{base}/deep/a.png")


def test_a_folder_in_an_images_place_stays_behind_urls_too(run: Run, many: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/walls/out/00.png/inside.txt", b"mine")
    results = {row.key: row for row in run(many, "memory://walls/out", mode="overwrite", limit=2).rows()}
    assert "is a folder; give another output" in str(results["00.png"].error)
    assert results["01.png"].status == "ok"
    assert store.cat("/walls/out/00.png/inside.txt") == b"mine"


def test_targets_of_rows_are_read_as_images_are(run: Run, many: Path, tmp_path: Path, draw: Any) -> None:
    os.mkfifo(many / "pipe.png")
    (many / "few").mkdir()
    (many / "lots").mkdir()
    for seed in range(5):
        Image.fromarray(draw(32, 32, seed)).save(many / f"lots/{seed}.png")
    Image.fromarray(draw(32, 32, 3)).save(many / "few/a.png")
    Image.fromarray(draw(32, 32, 3)).save(tmp_path / "outside.png")
    (many / "large.png").write_bytes(bytes(2 << 20))
    targets = [
        "/dev/zero",
        many / "pipe.png",
        many / "lots",
        tmp_path / "outside.png",
        many / "large.png",
        many / "few",
    ]
    lines = [json.dumps({"path": f"{place:02}.png", "target": str(target)}) for place, target in enumerate(targets)]
    (many / "t.jsonl").write_text("\n".join(lines))
    started = time.monotonic()
    results = list(run(many / "t.jsonl", limits=Limits(target_images=4, image_bytes=1 << 20)).rows())
    assert time.monotonic() - started < 30
    assert [row.status for row in results] == ["failed"] * 5 + ["ok"]
    words = [
        "outside the table's folder",
        "not a file",
        "a folder of 5 images",
        "outside the table's",
        "at most 1048576",
    ]
    for row, word in zip(results, words, strict=False):
        assert word in str(row.error)


def test_one_target_of_many_rows_is_read_once(run: Run, many: Path, draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shade_fast.archive.reading import Reader

    Image.fromarray(draw(32, 32, 3)).save(many / "target.png")
    opened: list[str] = []
    read = Reader.image

    def counted(self: Reader, storage: Any, name: str = "") -> bytes:
        opened.append(storage.root)
        return read(self, storage, name)

    monkeypatch.setattr(Reader, "image", counted)
    lines = [json.dumps({"path": f"{place:02}.png", "target": str(many / "target.png")}) for place in range(10)]
    (many / "t.jsonl").write_text("\n".join(lines))
    assert run(many / "t.jsonl").ok == 10
    assert opened.count(str(many / "target.png")) == 1
