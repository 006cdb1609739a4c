"""Recording a step as a CUDA graph, and the check that it can be: nothing in it waits for the host."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from shade_fast.terms.errors import ShadeFastError, reason

#: Errors of a device or a machine that has no memory for a step.
OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError)
#: And the texts by which torch and libraries say it in other errors.
_OUT_OF_MEMORY_TEXTS = (
    *("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED"),
    # cuDNN tries its engines, and drops the errors of those that lack memory
    "unable to find an engine to execute this computation",
)
#: Ops whose result the host reads, or whose result's size depends on values.
_READ = {"_local_scalar_dense", "is_nonzero", "equal", "item"}
_SIZED = {"nonzero", "nonzero_numpy", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "argwhere"}


def is_out_of_memory(error: BaseException | None, handled: BaseException | None = None) -> bool:
    """Whether an error, or one that caused it, says that a device or the machine has no memory left.

    handled: the error that was being handled before, `sys.exc_info()[1]`, which did not cause it.
    """
    while error is not None and error is not handled:
        if isinstance(error, OUT_OF_MEMORY) or (
            isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)
        ):
            return True
        error = error.__cause__ if error.__suppress_context__ else error.__context__
    return False


def captured(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that does what `run` does, on tensors that stay where they are: on a GPU it replays a recorded graph.

    `run` runs a few times first. Raises ShadeFastError, with the reason, where it cannot be recorded; an error of
    memory is raised as it is.
    """
    if device.type != "cuda":
        return run
    problems, reads = _examined(run, device)
    if problems:
        raise ShadeFastError(f"the step cannot be recorded: {'; '.join(problems)}")
    try:
        return Recording(run, device, reads)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ShadeFastError(f"the step cannot be recorded ({reason(error)})") from error


class Recording:
    """A run that is recorded as a CUDA graph; a call plays it again.

    Each has its own stream, for the first runs and for the recording: libraries keep work memory for each stream, and
    free it with the graph. It keeps alive what the run reads, which a graph does not.
    """

    def __init__(self, run: Callable[[], None], device: torch.device, reads: Sequence[Any]) -> None:
        self._device, self._reads = device, reads
        self._graph: Any = None
        with torch.cuda.device(device):
            self._stream = _stream(device)
            try:
                self._graph = _recorded(run, self._stream)
            except BaseException:
                _streams[device].append(self._stream)
                raise

    def __call__(self) -> None:
        self._graph.replay()

    def __del__(self) -> None:
        if self._graph is not None and not sys.is_finalizing():
            self._graph.reset()
            _streams[self._device].append(self._stream)


#: by device, the streams of recordings that are gone, to be used again
_streams: dict[torch.device, list[Any]] = {}


def _stream(device: torch.device) -> Any:
    """A stream of the current device that no recording has."""
    try:
        return _streams.setdefault(device, []).pop()
    except IndexError:
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _recorded(run: Callable[[], None], stream: Any) -> Any:
    """A graph of a run, on a stream and in memory of its own, after two other runs there."""
    stream.wait_stream(torch.cuda.current_stream())
    # The current stream is restored, also after a recording that fails.
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            # Other threads may allocate meanwhile, such as the one that uploads the next images.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                run()
        except BaseException:
            # If torch could not end the graph, it would keep allocating for it and free nothing. If it could, the first
            # call refuses, and the pool goes with the graph. (AttributeError: torch before 2.7.)
            with contextlib.suppress(RuntimeError, AttributeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
                torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
            raise
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def complaints(run: Callable[[], None], device: torch.device) -> list[str]:
    """Why `run`, on tensors of a device, cannot be recorded and played again; empty where it can.

    It finds: reads and copies from the device by the host, copies to it, results whose size depends on values, new
    tensors that outlive the run, and a second run that does something other than the first. On the `meta` device
    nothing is computed, so that a step for a GPU is checked without one.
    """
    return _examined(run, device)[0]


def _examined(run: Callable[[], None], device: torch.device) -> tuple[list[str], list[Any]]:
    """The complaints, and the storages that were there before and are read or written."""
    lists = []
    problems: list[str] = []
    try:
        run()  # what the first use creates is not part of a step
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # the same error comes again below
    for _ in range(2):
        watch = _Watch(device)
        try:
            with watch, _Makers(watch.problems):
                run()
        except Exception as error:  # on the meta device, ops that read values fail
            if is_out_of_memory(error):
                raise
            if not watch.problems:
                problems.append(f"it fails ({type(error).__name__}: {error})")
        problems += watch.problems
        problems += [f"{name} leaves a new tensor behind" for name in watch.alive()]
        lists.append(watch.names)
    if lists[0] != lists[1] and not problems:
        problems.append("a second run does something else than the first")
    return list(dict.fromkeys(problems)), list(watch.known.values())


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.names: list[str] = []
        self.problems: list[str] = []
        self._created: dict[int, tuple[str, Any]] = {}
        #: storages that were there before, by their address
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        self.names.append(name)
        inputs = list(_tensors((args, kwargs)))
        for tensor in inputs:
            if _key(tensor) not in self._created:
                self.known[_key(tensor)] = tensor.untyped_storage()
        problem = self._problem(name, args, kwargs, inputs)
        if problem is not None:
            self.problems.append(problem)
        result = function(*args, **kwargs)
        for tensor in _tensors(result):
            key = _key(tensor)
            if key not in self.known and key not in {_key(given) for given in inputs}:
                storage: Any = tensor.untyped_storage()
                self._created[key] = (name, StorageWeakRef(storage))  # type: ignore[no-untyped-call]
        return result

    def alive(self) -> Iterator[str]:
        """Names of the ops whose new tensors are still there."""
        for name, storage in self._created.values():
            if not storage.expired():
                yield name

    def _problem(self, name: str, args: Any, kwargs: Any, inputs: list[Tensor]) -> str | None:
        if name in _READ and any(self._ours(tensor) for tensor in inputs):
            return f"{name} makes the host wait for a value"
        if name in _SIZED:
            return f"{name} gives a tensor whose size depends on values"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                return f"{name} by a mask finds on the host how many values are chosen"
        if name in ("_to_copy", "copy_", "copy"):
            target = kwargs.get("device") or args[0].device
            source = args[1].device if name.startswith("copy") else args[0].device
            if torch.device(target).type != source.type:
                return f"{name} moves a tensor from {source.type} to {torch.device(target).type}"
        if name == "repeat_interleave" and "output_size" not in kwargs and inputs:
            return f"{name} gives a tensor whose size depends on values"
        return None

    def _ours(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device.type


class _Makers(TorchFunctionMode):
    """Finds tensors that are made of the host's values, which dispatch does not show."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__()
        self.problems = problems

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor):
            given = [arg for arg in args if not isinstance(arg, Tensor)]
            if len(given) == len(args) or function is Tensor.new_tensor:
                self.problems.append(f"{function.__name__} makes a tensor of the host's values")
        return function(*args, **(kwargs or {}))


def _tensors(structure: Any) -> Iterator[Tensor]:
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, list | tuple):
        for part in structure:
            yield from _tensors(part)
    elif isinstance(structure, dict):
        for part in structure.values():
            yield from _tensors(part)


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
