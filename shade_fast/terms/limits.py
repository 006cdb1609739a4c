"""What an archive of other people's files may cost, and what its rows may name: each bound with a safe default."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shade_fast.terms.checks import at_least, number
from shade_fast.terms.errors import ShadeFastError

#: Protocols that a table's row can be allowed to name.
ROW_PROTOCOLS = ("https", "http", "s3", "gs", "az", "file")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _limit(default: float, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Limits:
    """The most that one image, one member or one source may cost; what is over it is refused by name, in its row.

    Every field is an option, `--max NAME=VALUE` (`--max image-bytes=1G`); a field's metadata has its help. Raises
    ShadeFastError for a value that is not above 0.
    """

    image_bytes: int = _limit(
        512 << 20, "bytes of one image file, table cell, tar member or HTTP body; of a table's line or page"
    )
    member_bytes: int = _limit(8 << 30, "bytes of a tar's member that is no image, which is copied")
    header_bytes: int = _limit(1 << 20, "bytes of a tar's extended header, and of a table's path, target or concept")
    stream_bytes: int = _limit(256 << 30, "bytes of a tar, or of a table's values, once decompressed")
    pixels: int = _limit(100_000_000, "pixels of an image")
    view_side: int = _limit(4096, "longer side of what the encoder sees, in pixels")
    view_pixels: int = _limit(4_194_304, "area of what the encoder sees, in pixels")
    memory: int = _limit(1 << 50, "bytes that one image may need in the engine; never more than the machine has free")
    decode_memory: int = _limit(4 << 30, "bytes of address space of a process that decodes")
    decode_seconds: float = _limit(20.0, "processor seconds of decoding one image; three times as many by the clock")
    encode_seconds: float = _limit(120.0, "processor seconds of encoding one image; three times as many by the clock")
    read_seconds: float = _limit(120.0, "seconds of reading one image, all retries together")
    stall_seconds: float = _limit(900.0, "seconds without a step before a device's process counts as hung")
    waiting_bytes: int = _limit(1 << 30, "bytes of images, read or decoded, that wait in memory")
    files: int = _limit(100_000_000, "images of one source")
    folders: int = _limit(1_000_000, "folders of one source")
    depth: int = _limit(64, "folders below one another")
    target_images: int = _limit(64, "images of a folder that a table's row names as its target")

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(entry.default, float):
                checked = number(value)
                if checked is None or checked <= 0:
                    raise ShadeFastError(f"limit {entry.name}={value!r}: give a number above 0")
                object.__setattr__(self, entry.name, checked)
            else:
                object.__setattr__(self, entry.name, at_least(f"limit {entry.name}", value))

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> Limits:
        """From `NAME=VALUE` texts; values may end in K, M, G or T (of 1024). Raises ShadeFastError."""
        values: dict[str, Any] = {}
        known = {entry.name: entry for entry in dataclasses.fields(cls)}
        for text in texts:
            name, _, value = text.partition("=")
            entry = known.get(name.strip().replace("-", "_"))
            parts = re.fullmatch(r"([0-9]*\.?[0-9]+)([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
            if entry is None or parts is None:
                names = ", ".join(limit_names())
                raise ShadeFastError(f"--max {text!r}: give NAME=VALUE, such as image-bytes=1G; names are {names}")
            amount = float(parts[1]) * _UNITS[parts[2].upper()]
            if not amount < 1 << 60:
                raise ShadeFastError(f"--max {text[:60]}: too large")
            values[entry.name] = amount if isinstance(entry.default, float) else int(amount)
        return cls(**values)


def limit_names() -> list[str]:
    """The limits' names as options have them."""
    return [entry.name.replace("_", "-") for entry in dataclasses.fields(Limits)]


@dataclass(frozen=True)
class Access:
    """What a table's rows may name besides files below the table's own folder, and how remote files are read.

    paths: local folders below which rows may name files, by absolute or `../` paths. protocols: of `ROW_PROTOCOLS`.
    private_hosts: whether rows' http and https URLs, and what they redirect to, may be at loopback, link-local or
    private addresses. retries: of an image after a passing error, with back-off. timeout: seconds that a server of
    rows' URLs may be silent.
    Raises ShadeFastError for other protocols and values.
    """

    paths: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    private_hosts: bool = False
    retries: int = 3
    timeout: float = 30.0

    def __post_init__(self) -> None:
        paths = (self.paths,) if isinstance(self.paths, str | os.PathLike) else self.paths
        protocols = (self.protocols,) if isinstance(self.protocols, str) else self.protocols
        object.__setattr__(self, "paths", tuple(str(Path(path).absolute()) for path in paths))
        object.__setattr__(self, "protocols", tuple(protocols))
        for protocol in self.protocols:
            if protocol not in ROW_PROTOCOLS:
                raise ShadeFastError(f"allowed protocol {protocol!r}: give of {', '.join(ROW_PROTOCOLS)}")
        object.__setattr__(self, "retries", at_least("retries", self.retries, 0))
        timeout = number(self.timeout)
        if timeout is None or timeout <= 0:
            raise ShadeFastError(f"timeout={self.timeout!r}: give seconds above 0")
        object.__setattr__(self, "timeout", timeout)


_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_SPECIAL = tuple(map(ipaddress.ip_network, ("3fff::/20", "5f00::/16")))
_IETF = ipaddress.ip_network("192.0.0.0/24")


def is_public(address: str) -> bool:
    """Whether an IP address, in any notation, is public: not loopback, link-local, private, shared, multicast or
    reserved."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if inner is None and parsed in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            parsed = inner
        elif parsed not in _GLOBAL_UNICAST or any(parsed in network for network in _SPECIAL):
            return False
    elif parsed in _IETF:
        return False
    return parsed.is_global and not parsed.is_multicast
