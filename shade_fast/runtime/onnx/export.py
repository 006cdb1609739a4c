"""From a traced graph to an ONNX model, checked; kept on disk by what it was made from."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from shade_fast.runtime.onnx import libraries
from shade_fast.runtime.onnx.decompositions import OPSET, OPSET_OF_BFLOAT16
from shade_fast.runtime.onnx.trace import TRACING, Source, read, trace
from shade_fast.system.files import cache_folder, whole_file, write_whole
from shade_fast.terms.errors import ShadeFastError, reason
from shade_fast.terms.version import __version__

#: Tensors of fewer bytes stay in the graph's own file.
INLINE = 1024
PAGE = 4096
#: A model in one piece may have no more bytes: the limit of its file format.
LARGEST = (1 << 31) - 1


def export(graph: fx.GraphModule, inputs: Sequence[Tensor], names: tuple[Sequence[str], Sequence[str]]) -> Any:
    """The ModelProto of a traced graph, past ONNX's checker; names: of its inputs and of its outputs.

    Raises ShadeFastError where the graph holds an operator that ONNX has no form for.
    """
    onnx = libraries.exporter()
    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with TRACING, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                tuple(inputs),
                dynamo=True,
                opset_version=OPSET_OF_BFLOAT16 if _holds_bfloat16(graph) else OPSET,
                input_names=list(names[0]),
                output_names=list(names[1]),
                verbose=False,
            )
        if program is None:
            raise RuntimeError("torch.onnx.export gave no program")
        model = program.model_proto
    except Exception as error:  # an exporter's errors are of many kinds
        raise ShadeFastError(
            f"the network cannot be written as an ONNX graph ({reason(error)}); "
            "use backend='native' or 'reference' for it"
        ) from error
    finally:
        log.setLevel(level)
    _strip(model)
    model.producer_name, model.producer_version = "shade_fast", __version__
    if model.ByteSize() <= LARGEST:
        onnx.checker.check_model(model, full_check=True)
    return model


def _holds_bfloat16(graph: fx.GraphModule) -> bool:
    values = [node.meta.get("val") for node in graph.graph.nodes]
    return any(isinstance(value, Tensor) and value.dtype == torch.bfloat16 for value in values)


def _strip(model: Any) -> None:
    """Leave out where in whose files a node came from."""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    model.graph.doc_string = model.doc_string = ""


def cached(source: Source, kind: str, names: tuple[Sequence[str], Sequence[str]]) -> Path | bytes:
    """What ONNX Runtime loads for a kind of graph of a source: the file in the cache, made where it is not there yet.

    Its key is the hash of the source's operators and weights, the shapes, the kind and all versions. Weights stand in
    a file of their own, named by their hash, that graphs for several shapes share. Files come to be whole or not at
    all; processes that make the same at once do so for nothing, and no harm. Without a folder: the model's bytes.
    """
    folder = _folder()
    if folder is None:
        return _bytes(_made(source, kind, names))
    facts = [source.sha256, source.shapes, kind, list(map(list, names)), __version__, _code(), libraries.versions()]
    path = folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.onnx"
    if not is_whole(path):
        model = _made(source, kind, names)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(model, path)
        except OSError:  # a folder that cannot be written, or is full, costs time, not results
            return _bytes(model)
    return path


def model_of(
    module: nn.Module, inputs: Sequence[Tensor], kind: str, input_names: Sequence[str], output_names: Sequence[str]
) -> bytes:
    """A module's graph of one kind (see `trace.KINDS`) for inputs of these shapes, in one piece.

    Raises ShadeFastError for a module that cannot be traced, or that ONNX has no form for.
    """
    return _bytes(_made(read_module(module, inputs), kind, (input_names, output_names)))


def read_module(module: nn.Module, inputs: Sequence[Tensor]) -> Source:
    """`trace.read`. Raises ShadeFastError for a module that cannot be traced."""
    try:
        return read(module, inputs)
    except ShadeFastError:
        raise
    except Exception as error:  # a module's code may do whatever Python can
        raise ShadeFastError(
            f"the network {type(module).__name__} cannot be traced ({reason(error)}), and "
            "ONNX Runtime runs nothing else; use backend='native' or 'reference' for it"
        ) from error


def _made(source: Source, kind: str, names: tuple[Sequence[str], Sequence[str]]) -> Any:
    graph = trace(source, kind)
    values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    return export(graph, [torch.empty(value.shape, device=source.device) for value in values], names)


@functools.cache
def _code() -> str:
    """Hash of the code that makes graphs: a version under work has many."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _bytes(model: Any) -> bytes:
    if model.ByteSize() > LARGEST:
        raise ShadeFastError(
            f"the graph with its weights has {model.ByteSize():,} bytes, more than an ONNX file in one piece can have: "
            "give SHADE_FAST_CACHE a folder that can be written, where weights are kept apart"
        )
    serialized: bytes = model.SerializeToString()
    return serialized


def _folder() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "onnx"


def is_whole(path: Path) -> bool:
    """Whether a graph is there with the weights that it names."""
    onnx = libraries.exporter()
    try:
        model = onnx.load(path, load_external_data=False)
        ends: dict[str, int] = {}
        for tensor in model.graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where:
                end = int(where["offset"]) + int(where["length"])
                ends[where["location"]] = max(ends.get(where["location"], 0), end)
        return all((path.parent / name).stat().st_size >= end for name, end in ends.items())
    except Exception:  # a damaged file fails in many ways; it is made anew
        return False


def write(model: Any, path: Path) -> None:
    """Write a model, which stays as it is, and beside it the file of its weights. Raises OSError."""
    large = [
        (tensor, hashlib.sha256(tensor.raw_data).digest())
        for tensor in model.graph.initializer
        if len(tensor.raw_data) >= INLINE
    ]
    pieces = {digest: tensor.raw_data for tensor, digest in large}
    name = f"{hashlib.sha256(b''.join(sorted(pieces))).hexdigest()}.weights"
    offsets, end = {}, 0
    for digest in sorted(pieces):
        offsets[digest] = end
        end += -(-len(pieces[digest]) // PAGE) * PAGE
    weights = path.with_name(name)
    if pieces and not (weights.is_file() and weights.stat().st_size == end):
        with whole_file(weights) as file:
            for digest in sorted(pieces):
                file.write(pieces[digest].ljust(-(-len(pieces[digest]) // PAGE) * PAGE, b"\0"))
    try:
        for tensor, digest in large:
            length = len(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = tensor.EXTERNAL
            for key, value in {"location": name, "offset": offsets[digest], "length": length}.items():
                tensor.external_data.add(key=key, value=str(value))
        text = model.SerializeToString()
    finally:
        for tensor, digest in large:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = pieces[digest]
    write_whole(path, text)
