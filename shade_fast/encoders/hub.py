"""Models by name: a local folder, a model in the hub's cache, and a download only where `hub:` asks for one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shade_fast.terms.errors import ShadeFastError, reason

PREFIX = "hub:"
#: How transformers reads what `find_model` has found.
PLAIN: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class Kind:
    """A kind of model. marks: files, one of which a folder of it has. files, but: patterns of what a download brings
    and leaves out, never code. weights: files that it brings besides, where there are no .safetensors."""

    marks: tuple[str, ...]
    files: tuple[str, ...]
    but: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


AUTOENCODER = Kind(
    ("config.json", "vae/config.json"),
    (
        *("config.json", "diffusion_pytorch_model*.safetensors*"),
        *("vae/config.json", "vae/diffusion_pytorch_model*.safetensors*"),
    ),
    ("*.non_ema*",),
)
TRANSFORMER = Kind(
    ("config.json",), ("*.json", "*.txt", "*.model", "model*.safetensors"), weights=("pytorch_model*.bin",)
)
PIPELINE = Kind(
    ("model_index.json",),
    ("model_index.json", *(f"*/*.{suffix}" for suffix in ("json", "txt", "model", "safetensors"))),
    ("*.fp16*", "*.non_ema*"),
)


@dataclass(frozen=True)
class Model:
    """name: as it was given, without `hub:`. folder: where its files are."""

    name: str
    folder: Path


def find_model(given: str | os.PathLike[str], kind: Kind) -> Model:
    """A model by a local folder; by `owner/name`, where it is in the hub's cache; or by `hub:owner/name`, which asks
    the hub, and downloads what is missing, unless HF_HUB_OFFLINE is set.

    Without the prefix nothing is asked of the hub. Raises ShadeFastError for an unknown name, and where the hub does
    not give the model.
    """
    text = os.fspath(given)
    identifier = text.removeprefix(PREFIX)
    if identifier == text:
        folder = Path(text).expanduser()
        if text and folder.is_dir():
            return Model(text, folder)
        if not is_identifier(text):
            raise ShadeFastError(f"model {text!r}: no such folder; give one, or a model of the hub as hub:owner/name")
    elif not is_identifier(identifier):
        raise ShadeFastError(f"model {text!r}: {identifier!r} is no model of the hub; give hub:owner/name")

    from huggingface_hub.constants import HF_HUB_OFFLINE

    if identifier != text and not HF_HUB_OFFLINE:
        return Model(identifier, _downloaded(identifier, kind))
    cached = _cached(identifier, kind)
    if cached is None:
        absent = "" if identifier != text else "no such folder, and "
        fix = "unset HF_HUB_OFFLINE and give" if HF_HUB_OFFLINE else "to download it, give"
        raise ShadeFastError(f"model {text!r}: {absent}not in the hub's cache; {fix} {PREFIX}{identifier}")
    return Model(identifier, cached)


def is_identifier(text: str) -> bool:
    """Whether a text is an id of the hub, `owner/name`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


def never_asked(given: str) -> str:
    """A model's name from a record, which anyone may have written, in a form that never asks the hub."""
    while given.startswith(PREFIX):
        given = given.removeprefix(PREFIX)
    return given


def load_pipeline(given: str | os.PathLike[str], device: str) -> Any:
    """A diffusers pipeline, on a device, by what `find_model` takes. It runs no code of its own, and no pickle is read.

    Raises ShadeFastError as `find_model` does and for a pipeline that would run code; what diffusers raises for others.
    """
    from diffusers import DiffusionPipeline

    folder = find_model(given, PIPELINE).folder
    _refuse_own_code(folder)
    pipeline: Any = DiffusionPipeline.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return pipeline.to(device)


def _refuse_own_code(folder: Path) -> None:
    """Raise ShadeFastError for a pipeline whose classes are not all those of diffusers and transformers."""
    import diffusers

    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_bytes())
        kind = index.pop("_class_name", None)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ShadeFastError(f"{path}: not a pipeline's index ({reason(error)})") from error
    known = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    if not (isinstance(known, type) and issubclass(known, diffusers.DiffusionPipeline)):
        raise ShadeFastError(f"{path}: _class_name {kind!r} is no pipeline of diffusers; code of its own is not run")
    for name, value in index.items():
        # Some versions of diffusers import anything that splits into a library and a class.
        library = next(iter(value), None) if isinstance(value, list | str | dict) and len(value) == 2 else None
        if (
            isinstance(library, str)
            and library not in ("diffusers", "transformers")
            and not hasattr(diffusers.pipelines, library)
        ):
            raise ShadeFastError(
                f"{path}: {name} {value!r} is of neither diffusers nor transformers; code of its own is not run"
            )
    for pattern in ("*.py", "*/*.py", "*/model_index.json", "adapter_config.json", "*/adapter_config.json"):
        for file in folder.glob(pattern):
            raise ShadeFastError(f"{file}: a pipeline is not to bring code, or to name other models; take it away")


def _cached(identifier: str, kind: Kind) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for mark in kind.marks:
        file = try_to_load_from_cache(identifier, mark)
        if isinstance(file, str):
            return Path(file).parents[mark.count("/")]
    return None


def _downloaded(identifier: str, kind: Kind) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(identifier, allow_patterns=list(kind.files), ignore_patterns=list(kind.but)))
        if kind.weights and not any(folder.glob("*.safetensors")):
            snapshot_download(identifier, allow_patterns=list(kind.weights))
        return folder
    except Exception as error:  # the hub's client and its transport raise many kinds
        raise ShadeFastError(
            f"model {PREFIX + identifier!r}: the hub does not give it ({reason(error)}); see to name and network"
        ) from error
