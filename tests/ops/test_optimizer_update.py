"""The fused optimizer update: kernels against the plain-torch body, and the bounds that it promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shade_fast.ops import native, optimizer_update
from shade_fast.ops.optimizer_update import WHOLE_STEP
from shade_fast.terms.errors import ShadeFastError

SHAPES = [(0, 3, 4, 4), (1, 3, 1, 1), (3, 3, 1, 1), (2, 3, 0, 5), (1, 3, 13, 7), (3, 3, 31, 29), (2, 3, 127, 131)]
LINF = 16 / 255

needs_module = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")
needs_gpu = pytest.mark.skipif(
    not (native.cuda_available() and torch.cuda.is_available()), reason="needs shade_fast._cuda and a GPU"
)
pytestmark = needs_module


def layout(tensor: Tensor, name: str) -> Tensor:
    if name == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if name == "sliced":
        padded = tensor.new_zeros(*tensor.shape[:2], tensor.shape[2] + 2, 2 * tensor.shape[3])
        view = padded[:, :, 1:-1, ::2]
        view.copy_(tensor)
        return view
    if name == "transposed":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    return tensor


def random_arguments(shape: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "delta": (torch.rand(shape, generator=generator) * 2 - 1) * LINF,
        "momentum": torch.randn(shape, generator=generator),
        "gradient": torch.randn(shape, generator=generator) * 1e-4,
        "clean": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "share": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "step": torch.rand(shape[0], generator=generator) * LINF,
    }


def update(arguments: dict[str, Tensor], backend: str, step: float | None = None) -> dict[str, Tensor]:
    """Run on copies that keep their strides, and return what the update changed and gave back."""
    copies = {name: clone(tensor) for name, tensor in arguments.items()}
    steps = {} if step is None else {"step": step}
    mean = optimizer_update(**{**copies, **steps}, decay=0.8, linf=LINF, backend=backend)  # type: ignore[arg-type]
    for name in arguments.keys() - {"delta", "momentum"}:
        torch.testing.assert_close(copies[name], arguments[name], rtol=0, atol=0, equal_nan=True)
    return {"delta": copies["delta"], "momentum": copies["momentum"], "mean": mean}


def clone(tensor: Tensor) -> Tensor:
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("order", ["contiguous", "channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_every_isa_equals_the_reference_bit_for_bit(shape: tuple[int, ...], order: str, every_isa: list[str]) -> None:
    arguments = random_arguments(shape)
    arguments = {name: layout(tensor, order) if tensor.ndim == 4 else tensor for name, tensor in arguments.items()}
    expected = update(arguments, "reference")
    for isa in every_isa:
        native.cpu().select_isa(isa)
        assert_same(update(arguments, "native"), expected)


def test_mixed_memory_orders() -> None:
    arguments = random_arguments((2, 3, 11, 13))
    orders = ["contiguous", "channels_last", "sliced", "transposed", "channels_last"]
    mixed = {
        name: layout(tensor, order) for (name, tensor), order in zip(list(arguments.items())[:5], orders, strict=True)
    }
    assert_same(update({**mixed, "step": arguments["step"]}, "native"), update(arguments, "reference"))


def test_result_does_not_depend_on_threads_or_isa(every_isa: list[str]) -> None:
    arguments = random_arguments((2, 3, 1024, 1031))
    before = torch.get_num_threads()
    results = []
    try:
        for isa in every_isa:
            native.cpu().select_isa(isa)
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(update(arguments, "native"))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same(result, results[0])


def test_an_image_alone_equals_itself_in_a_batch() -> None:
    arguments = random_arguments((3, 3, 150, 151))
    together = update(arguments, "native")
    for i in range(3):
        alone = update({name: tensor[i : i + 1].clone() for name, tensor in arguments.items()}, "native")
        assert_same(alone, {name: tensor[i : i + 1] for name, tensor in together.items()})


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bounds_hold_over_many_steps(backend: str) -> None:
    arguments = random_arguments((2, 3, 33, 31))
    delta, momentum, clean = arguments["delta"], arguments["momentum"], arguments["clean"]
    linf = 0.1
    for seed in range(20):
        gradient = random_arguments((2, 3, 33, 31), seed)["gradient"]
        optimizer_update(delta, momentum, gradient, clean, step=0.07, decay=0.8, linf=linf, backend=backend)
        perturbed = clean.float() / 255 + delta
        assert delta.abs().max() <= torch.tensor(linf)
        assert perturbed.min() >= 0
        assert perturbed.max() <= 1
    assert delta.abs().max() == torch.tensor(linf)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_image_with_a_bad_gradient_stays_as_it_is(bad: float, backend: str) -> None:
    arguments = random_arguments((3, 3, 17, 19))
    arguments["gradient"][1, 2, 3, 4] = bad
    result = update(arguments, backend)
    assert not torch.isfinite(result["mean"][1])
    assert torch.equal(result["delta"][1], arguments["delta"][1])
    assert torch.equal(result["momentum"][1], arguments["momentum"][1])
    for i in (0, 2):
        assert torch.isfinite(result["mean"][i])
        assert not torch.equal(result["delta"][i], arguments["delta"][i])


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("gradient", [0.0, 1e-45], ids=["zero", "too small to invert"])
def test_a_gradient_without_direction_only_decays_the_momentum(gradient: float, backend: str) -> None:
    arguments = random_arguments((2, 3, 5, 7))
    arguments["gradient"].fill_(gradient)
    result = update(arguments, backend)
    assert torch.equal(result["momentum"], 0.8 * arguments["momentum"])
    assert torch.isfinite(result["delta"]).all()


def test_a_large_gradient_does_not_overflow() -> None:
    arguments = random_arguments((2, 3, 9, 9))
    arguments["gradient"].fill_(3e38)
    result = update(arguments, "native")
    assert_same(result, update(arguments, "reference"))
    assert torch.isfinite(result["mean"]).all()


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_without_shares_every_value_takes_the_whole_step(order: str, every_isa: list[str]) -> None:
    arguments = {
        name: layout(tensor, order) if tensor.ndim == 4 else tensor
        for name, tensor in random_arguments((2, 3, 127, 131)).items()
    }
    whole = {**arguments, "share": torch.full_like(arguments["share"], WHOLE_STEP)}
    expected = update(whole, "reference")
    plain = {name: tensor for name, tensor in arguments.items() if name != "share"}
    assert_same(update(plain, "reference"), expected)
    for isa in every_isa:
        native.cpu().select_isa(isa)
        assert_same(update(plain, "native"), expected)


def test_a_value_moves_by_its_share_of_the_step() -> None:
    delta, momentum = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    clean = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
    share = torch.tensor([0, 16, 64, 128], dtype=torch.uint8).view(1, 1, 2, 2).repeat(1, 3, 1, 1)
    optimizer_update(delta, momentum, -torch.ones_like(delta), clean, step=0.02, decay=0.8, linf=0.03, share=share)
    torch.testing.assert_close(delta[0, 0].flatten(), torch.tensor([0, 0.005, 0.02, 0.03]))


def test_step_as_a_number_equals_step_for_each_image() -> None:
    arguments = random_arguments((2, 3, 8, 8))
    same = {**arguments, "step": torch.full((2,), 0.01)}
    assert_same(update(same, "native"), update(arguments, "native", step=0.01))


def test_a_delta_that_requires_grad_can_be_updated() -> None:
    arguments = random_arguments((1, 3, 4, 4))
    arguments["delta"].requires_grad_()
    mean = optimizer_update(**arguments, decay=0.8, linf=LINF)  # type: ignore[arg-type]
    assert not mean.requires_grad


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (0, 3, 4, 4)], ids=["batch 2", "empty"])
def test_opcheck(shape: tuple[int, ...]) -> None:
    arguments = tuple(random_arguments(shape).values())
    torch.library.opcheck(torch.ops.shade_fast.optimizer_update.default, (*arguments, 0.8, LINF))


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_cuda_agrees_with_the_cpu(shape: tuple[int, ...]) -> None:
    arguments = random_arguments(shape)
    result = update({name: tensor.cuda() for name, tensor in arguments.items()}, "native")
    assert_same({name: tensor.cpu() for name, tensor in result.items()}, update(arguments, "native"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": torch.zeros(1, 3, 4, 4)}, "clean is torch.float32"),
        ({"momentum": torch.zeros(1, 3, 4, 4, dtype=torch.float16)}, "momentum is torch.float16"),
        ({"gradient": torch.zeros(1, 3, 4, 5)}, r"gradient is \[1, 3, 4, 5\]"),
        ({"step": torch.zeros(2)}, "step is torch.float32"),
        ({"share": torch.ones(1, 3, 4, 4)}, "share is torch.float32"),
        ({"share": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}, r"share is \[1, 1, 4, 4\]"),
        ({"linf": -0.1}, "linf=-0.1"),
        ({"linf": float("nan")}, "linf=nan"),
        ({"decay": 1.5}, "decay=1.5"),
        ({"backend": "fast"}, "'native' or 'reference'"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, object], message: str) -> None:
    arguments = {**random_arguments((1, 3, 4, 4)), "decay": 0.8, "linf": LINF, **change}
    with pytest.raises(ShadeFastError, match=message):
        optimizer_update(**arguments)  # type: ignore[arg-type]
