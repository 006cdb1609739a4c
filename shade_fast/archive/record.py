"""What an output says of its run: its options, which a later run must share, and who writes just now."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shade_fast.anchors import Anchor, AnchorLibrary
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive.names import from_text
from shade_fast.archive.storage import RECORD_FOLDER, TABLE_SUFFIXES, Storage
from shade_fast.encoders.hub import never_asked
from shade_fast.images import Output
from shade_fast.protect.options import Options
from shade_fast.system.files import cache_folder
from shade_fast.terms.budget import Budget
from shade_fast.terms.checks import number, whole
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Access
from shade_fast.terms.text import redacted
from shade_fast.terms.version import __version__
from shade_fast.views import View

RUN_NAME = f"{RECORD_FOLDER}/run.json"
#: What URLs are hashed with in the record, and the records that overwriting runs have replaced.
KEY_NAME, REPLACED = f"{RECORD_FOLDER}/url.key", f"{RECORD_FOLDER}/replaced"


def describe(
    poisoner: Poisoner,
    sources: Sequence[str],
    target: str | None,
    anchor: Anchor | None,
    output: Output,
    tasks: int,
) -> dict[str, Any]:
    """A run's options as JSON types: what was asked for, with defaults, and the networks that it means here.

    sources: their places. anchor: what `target` means now. tasks: into how many the archive is divided.
    """
    asked, protector = poisoner.options, poisoner.protector
    options = {
        field.name: _plain(getattr(asked, field.name))
        for field in dataclasses.fields(asked)
        if not field.metadata["incidental"]
    }
    return {
        "source": list(sources),
        "target": target,
        "target_sha256": None if anchor is None else anchor.sha256,
        **options,
        "encoder": [
            {
                "spec": os.fspath(spec) if isinstance(spec, str | os.PathLike) else None,
                "name": encoder.name,
                "factor": encoder.factor,
                "channels": encoder.channels,
                "sha256": encoder.sha256,
            }
            for spec, encoder in zip(asked.encoders, poisoner.encoders, strict=True)
        ],
        "perceptual": None
        if poisoner.perceptual is None
        else {"name": poisoner.perceptual.name, "sha256": poisoner.perceptual.sha256},
        "anchors": _anchors(asked.anchors),
        "weights": poisoner.weights,
        "steps": protector.steps,
        "start": None if protector.start is None else {"sha256": protector.start.sha256},
        "backend": poisoner.backend,
        "device": poisoner.device.type,
        "output": output.format,
        "quality": output.quality,
        "tasks": tasks,
        "version": __version__,
    }


def recorded_options(recorded: Mapping[str, Any], backend: str | None = None) -> Options:
    """The options that a record's images can be measured by again. backend: instead of the recorded one.

    Raises ShadeFastError where an encoder or the anchors were given as objects.
    """
    specs = [encoder["spec"] for encoder in recorded["encoder"]]
    if None in specs:
        raise ShadeFastError("the run's encoder was given as an object; verify it from Python, with poisoner=")
    anchors = recorded["anchors"]
    if anchors is not None and anchors["folder"] is None:
        raise ShadeFastError("the run's anchors were given as an object; verify it from Python, with poisoner=")
    devices = recorded["device"]
    if backend is not None:
        devices = "cpu" if backend in ("native", "onnxruntime:cpu") else "auto"
    return Options(
        encoder=[never_asked(spec) for spec in specs],
        weights=recorded["weights"],
        budget=Budget(**recorded["budget"]),
        view=View(recorded["view"]["size"]),
        perceptual=recorded["perceptual"] and recorded["perceptual"]["name"],
        backend=recorded["backend"] if backend is None else backend,
        accuracy=recorded["accuracy"],
        devices=devices,
        anchors=None if anchors is None else AnchorLibrary.from_folder(anchors["folder"]),
    )


def digest(options: Mapping[str, Any]) -> str:
    """The options' hash, as rows have it."""
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def read_run(out: Storage) -> dict[str, Any] | None:
    """The record of the run that made an output; None where there is none. Raises ShadeFastError for a damaged one."""
    check_record(out)
    if out.size(RUN_NAME) is None:
        return None
    try:
        record = json.loads(out.read(RUN_NAME))
        if isinstance(record, dict) and isinstance(record.get("options"), dict):
            return record
    except (ValueError, RecursionError):
        pass
    raise ShadeFastError(
        f"{out.location(RUN_NAME)}: no record of a run; remove {RECORD_FOLDER}, or give another output"
    )


def check_record(out: Storage) -> None:
    """Raise ShadeFastError for a link in a local output's record: nothing is read, written or removed through one."""
    if not out.local:
        return
    folders = [out.path(RECORD_FOLDER)]
    for folder in folders:
        linked = [folder] if os.path.islink(folder) else []
        if not linked and os.path.isdir(folder):
            with os.scandir(folder) as entries:
                for entry in entries:
                    (linked if entry.is_symlink() else folders if entry.is_dir() else []).append(entry.path)
        if linked:
            raise ShadeFastError(f"{linked[0]}: is a link, which no record follows; remove it")


def write_run(
    out: Storage, options: Mapping[str, Any], access: Access, *, overwrites: bool, cleared: bool = True
) -> dict[str, Any]:
    """overwrites: whether the run, however often it is resumed, replaces what earlier runs have written. cleared:
    whether the records of those are out of the way; until they are, they are no record of this run."""
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("torch", "numpy", "pillow", "pyarrow", "fsspec")},
        "overwrites": overwrites,
        "cleared": cleared,
        "access": _plain(access),
        "options": dict(options),
        "options_sha256": digest(options),
    }
    return _write(out, record)


def adopt(out: Storage, record: Mapping[str, Any], access: Access) -> None:
    """Make a record this user's: of a run that was begun elsewhere, and is resumed here with the same options."""
    asked = _plain(access)
    if not is_own(out, record) or record.get("access") != asked:
        _write(out, {**record, "access": asked})


def is_own(out: Storage, record: Mapping[str, Any]) -> bool:
    """Whether a record was written by this user, for this place: what it names outside the place can be followed.

    Known by a code under a key of the user's own, which is in the cache folder; without one nothing is.
    """
    try:
        key = _user_key()
    except OSError:
        return False
    written = str(record.get("written_by")).encode(errors="replace")
    return key is not None and hmac.compare_digest(written, _code(key, out, record).encode())


def named_roots(out: Storage, record: Mapping[str, Any]) -> list[str]:
    """The local places that a run's options name, and its output: what its rows can have come from."""
    options = record["options"]
    anchors = options.get("anchors") or {}
    roots = [
        out.root,
        str(resources.files("shade_fast") / "data" / "anchors"),
        anchors.get("folder"),
        options.get("target"),
    ]
    for source in options.get("source", ()):
        path = os.path.normpath(os.path.join(out.root, from_text(source)))
        roots.append(os.path.dirname(path) if path.lower().endswith(TABLE_SUFFIXES) else path)
    roots += record.get("access", {}).get("paths", ())
    return [os.path.realpath(root) for root in roots if root and "://" not in root]


def _write(out: Storage, record: dict[str, Any]) -> dict[str, Any]:
    key = None
    with contextlib.suppress(OSError):  # a cache that cannot be written ends no run
        key = _user_key(make=True)
    record.pop("written_by", None)
    record["written_by"] = None if key is None else _code(key, out, record)
    out.write(RUN_NAME, (json.dumps(record, indent=1) + "\n").encode())
    return record


def _code(key: bytes, out: Storage, record: Mapping[str, Any]) -> str:
    place = os.path.realpath(out.root) if out.local else out.url
    followed = json.dumps([place, record.get("options"), record.get("access")], sort_keys=True)
    return hmac.new(key, followed.encode(errors="surrogateescape"), "sha256").hexdigest()


def _user_key(*, make: bool = False) -> bytes | None:
    """The user's own key; None where there is none, or no place for one. Raises OSError."""
    cache = cache_folder()
    if cache is None:
        return None
    path = cache / "record.key"
    if make and not path.exists():
        _create(path, secrets.token_bytes(32))
    return path.read_bytes() if path.exists() else None


def _create(path: Path, data: bytes) -> None:
    """Write a file that this user alone can read, unless it is there: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".shade_fast-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()


def url_key(out: Storage, *, make: bool = False) -> bytes:
    """What URLs are hashed with in this output's record; a key of the moment where there is none and none is made."""
    size = out.size(KEY_NAME)
    if size is not None:
        if not 0 < size <= 64:
            raise ShadeFastError(f"{out.location(KEY_NAME)}: {size} bytes; it is no key, remove it")
        return out.read(KEY_NAME)
    if make and out.local:
        _create(Path(out.path(KEY_NAME)), out.key or secrets.token_bytes(16))
        return out.read(KEY_NAME)
    if make:
        out.write(KEY_NAME, out.key or secrets.token_bytes(16))
        return out.read(KEY_NAME)
    return secrets.token_bytes(16)


def check_same(out: Storage, record: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise ShadeFastError, saying which options differ, where an output was begun with others."""
    before = record["options"]
    differences = [
        f"{name} was {json.dumps(before.get(name))}, now {json.dumps(options.get(name))}"
        for name in sorted(before.keys() | options.keys())
        if before.get(name) != options.get(name)
    ]
    if differences:
        raise ShadeFastError(
            f"{out.url}: was begun with other options: {'; '.join(differences)}. Give those again, another output, or "
            "mode overwrite"
        )


@contextlib.contextmanager
def locked(out: Storage, name: str) -> Iterator[None]:
    """Hold a lock on an output, which the system takes back when the process ends, however it ends.

    For a URL the lock is this machine's alone: object stores have none. Raises ShadeFastError where another holds it.
    """
    if out.local:
        path = Path(out.path(f"{RECORD_FOLDER}/locks/{name}"))
    else:
        cache = cache_folder() or Path(tempfile.gettempdir()) / f"shade_fast-{os.getuid()}"
        path = cache / "locks" / f"{hashlib.sha256(redacted(out.url).encode()).hexdigest()}-{name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_own(path.parent)
        descriptor = _lock(path, out)
    except OSError as error:
        raise ShadeFastError(f"{path.parent}: cannot be written: {error.strerror}; give another output") from error
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _check_own(folder: Path) -> None:
    """Raise OSError for a folder of locks that is a link, below one in the record, or another user's."""
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or folder.parent.is_symlink():
        raise OSError(errno.ELOOP, "is a link, which locks do not follow; remove it")
    if facts.st_uid not in (os.getuid(), 0) and not os.access(folder, os.W_OK):
        raise OSError(errno.EPERM, "is another user's")


def _lock(path: Path, out: Storage) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file since it was opened here; the lock would be on nothing.
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise ShadeFastError(f"{out.url}: {holder} is writing there; wait for it, or give another output") from None
        except BaseException:
            os.close(descriptor)
            raise


def _plain(value: Any) -> Any:
    """An option's value as JSON has it."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"transform": type(value).__name__, **fields} if hasattr(value, "draw") else fields
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    for kind in (whole, number):
        plain = kind(value)
        if plain is not None:
            return plain
    return os.fspath(value) if isinstance(value, os.PathLike) else type(value).__name__


def _anchors(library: AnchorLibrary | None) -> dict[str, Any] | None:
    """Which anchors a library has; None for the embedded one."""
    if library is None:
        return None
    sums: dict[str, list[str]] = {}
    for name in library:
        anchor = library[name]
        paths = [Path(path) for path in anchor.paths if path is not None]
        files = len(paths) == len(anchor.paths)
        sums[name] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] if files else [anchor.sha256]
    return {"folder": library.folder, "sha256": hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()}
