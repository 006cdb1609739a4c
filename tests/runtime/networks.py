"""Small networks with what a frozen one has to get right, and how its results are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shade_fast import load_encoder
from shade_fast.encoders.taesd import taesd_encoder


class Net(nn.Module):
    """A network from a function of its layers and the images."""

    def __init__(self, run: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.layers = nn.ModuleDict(layers)

    def forward(self, images: Tensor) -> object:
        return self.run(images, **self.layers)


class Attention(nn.Module):
    """Self-attention over the pixels, as autoencoders have it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).view(batch, channels, height * width).transpose(1, 2)
        parts = [
            layer(tokens).view(batch, -1, self.heads, channels // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        made = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(batch, -1, channels)
        return x + self.out(made).transpose(1, 2).view(batch, channels, height, width)


def conv(inputs: int, outputs: int, side: int = 3, stride: int = 1, **options: int | bool | str) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, **options)  # type: ignore[arg-type]


def blurred(x: Tensor) -> Tensor:
    row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def shared(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
    """A value that a ReLU makes and four layers take."""
    y = torch.relu(a(x))
    return torch.relu(y + b(y)) + c(y) + y


def padded_by_size(x: Tensor, a: nn.Module) -> Tensor:
    """TensorFlow's padding "SAME": where an even side's windows begin is not where an odd one's do."""
    spare = [max(2 * (-(-side // 2) - 1) + 3 - side, 0) for side in (x.shape[3], x.shape[2])]
    return a(F.pad(x, [part for one in spare for part in (one // 2, one - one // 2)]))


def computed_weights(x: Tensor, **layers: nn.Module) -> Tensor:
    """Weights that are made anew for each size, not always as the first nodes of their kind."""
    if x.shape[3] > 32:
        x = x * 0.5
    for layer in layers.values():
        x = F.conv2d(x, layer.weight * 2, padding=1)
    return x


def on_a_grid(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """Constants that the module makes for each size, one for each pixel."""
    x = torch.tanh(a(x))
    rows, columns = (torch.linspace(0, 1, side, dtype=x.dtype) for side in x.shape[2:])
    made: Tensor = b(x * (rows[:, None] + columns) + rows[:, None])
    return made


TABLES = [torch.linspace(index, index + 1, 8)[:, None, None] for index in range(4)]


def by_a_table(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """A constant that is another for each size, and no parameter or buffer."""
    made: Tensor = b(torch.tanh(a(x)) * TABLES[x.shape[3] % 4])
    return made


def one_weight_twice(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    return F.conv2d(b(a(x)), b.weight, stride=2, padding=1)


def gated(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """Activations by activations: Swish as a product, a gate for each channel, a difference."""
    y = a(x)
    y = y * torch.sigmoid(y)
    y = y * torch.sigmoid(b(y.mean((2, 3), keepdim=True)))
    return y - b(y) / 2


def shuffled(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """Channels in another order, as ShuffleNet's code makes it."""
    y = a(x).contiguous()
    batch, channels, height, width = y.shape
    y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    return b(y.view(batch, channels, height, width))


NETS: dict[str, Callable[[], nn.Module]] = {
    "one convolution": lambda: nn.Sequential(conv(3, 20)),
    "no bias, odd channels": lambda: nn.Sequential(
        conv(3, 17, bias=False), nn.ReLU(), conv(17, 33), nn.ReLU(), conv(33, 5)
    ),
    "kernels and strides": lambda: nn.Sequential(
        conv(3, 16, 7, 2), nn.ReLU(), conv(16, 24, 1), conv(24, 16, 3, 2), conv(16, 8, 5)
    ),
    "padding on two sides": lambda: Net(
        lambda x, a, b: b(F.pad(a(x), (0, 1, 0, 1))), a=conv(3, 16), b=nn.Conv2d(16, 12, 3, 2)
    ),
    "padding that torch makes": lambda: Net(
        lambda x, a, b: b(F.pad(a(x), (1, 1, 1, 1), mode="replicate")), a=conv(3, 16), b=nn.Conv2d(16, 12, 3)
    ),
    "circular padding": lambda: nn.Sequential(conv(3, 8), conv(8, 4, padding_mode="circular")),
    "padding by size": lambda: nn.Sequential(conv(3, 8), Net(padded_by_size, a=nn.Conv2d(8, 12, 3, 2))),
    "weights computed by size": lambda: Net(computed_weights, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8)),
    "constants made by size": lambda: Net(on_a_grid, a=conv(3, 8), b=conv(8, 4)),
    "constants chosen by size": lambda: Net(by_a_table, a=conv(3, 8), b=conv(8, 4)),
    "one weight at two strides": lambda: Net(one_weight_twice, a=conv(3, 8), b=conv(8, 8)),
    "shared value": lambda: Net(shared, a=conv(3, 16), b=conv(16, 16), c=conv(16, 16, 1)),
    "value added to itself": lambda: Net(lambda x, a: (y := a(x)) + y, a=conv(3, 8)),
    "sum of two convolutions": lambda: Net(lambda x, a, b: a(x) + b(x), a=conv(3, 16), b=conv(3, 16, 1)),
    "group norms": lambda: nn.Sequential(
        conv(3, 32),
        nn.GroupNorm(8, 32),
        nn.SiLU(),
        conv(32, 32),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        conv(32, 32),
        nn.GroupNorm(32, 32),
        conv(32, 4),
        nn.SiLU(),
    ),
    "lone activations": lambda: Net(lambda x, a, b: torch.relu(F.silu(a(x))) * 2 + b(x), a=conv(3, 8), b=conv(3, 8)),
    "pools": lambda: Net(
        lambda x, a, b: b(blurred(F.max_pool2d(torch.relu(a(F.max_pool2d(x, 2))), 2, 1))), a=conv(3, 16), b=conv(16, 16)
    ),
    "windows of 16 and 17 pixels": lambda: Net(
        lambda x, a: (
            F.max_pool2d(y := a(x), 16, 4),
            F.conv2d(y, torch.full((8, 1, 17, 17), 1 / 17, dtype=x.dtype), groups=8),
        ),
        a=conv(3, 8),
    ),
    "overlapping pool, rounded up": lambda: Net(
        lambda x, a, b: b(F.max_pool2d(torch.relu(a(x)), 3, 2, ceil_mode=True)), a=conv(3, 16), b=conv(16, 16)
    ),
    "attention, many channels": lambda: nn.Sequential(conv(3, 64, 3, 2), Attention(64, 2), conv(64, 4)),
    "attention, one head": lambda: nn.Sequential(conv(3, 16, 3, 2), Attention(16, 1), conv(16, 4)),
    "attention, four heads": lambda: nn.Sequential(conv(3, 16, 3, 2), Attention(16, 4), conv(16, 4)),
    "ops that torch runs": lambda: Net(
        lambda x, a, b, c: c(torch.cat([torch.tanh(a(x)), F.avg_pool2d(b(x), 3, 1, 1)], dim=1)),
        a=conv(3, 8),
        b=conv(3, 8, groups=1),
        c=conv(16, 4),
    ),
    "grouped and dilated": lambda: nn.Sequential(
        conv(3, 16), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Conv2d(16, 8, 3, padding=2, dilation=2)
    ),
    "scaled images and latents": lambda: Net(
        lambda x, a: (a(x * 2 - 1)[:, :3] - torch.tensor([0.1, 0.2, 0.3], dtype=x.dtype)[None, :, None, None]) * 0.5,
        a=conv(3, 8),
    ),
    "rows chosen": lambda: Net(
        lambda x, a, b: b(a(x).permute(0, 2, 3, 1)[:, 2:18])[:, ::3], a=conv(3, 16), b=nn.Linear(16, 24)
    ),
    "rows scaled": lambda: Net(lambda x, a, b: b(a(x).permute(0, 2, 3, 1)) * 2.0, a=conv(3, 16), b=nn.Linear(16, 24)),
    "activations by activations": lambda: Net(gated, a=conv(3, 8), b=conv(8, 8, 1)),
    "channels shuffled": lambda: Net(shuffled, a=conv(3, 8), b=conv(8, 4)),
    "images taken in twice": lambda: Net(lambda x, a, b: a(x - 0.5) + b(x), a=conv(3, 8), b=conv(3, 8)),
    "images at the end": lambda: Net(lambda x, a: a(x) + x, a=conv(3, 3)),
}


def relative(made: Tensor, right: Tensor) -> float:
    return float((made.double() - right).norm() / right.norm())


def flat(result: object) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)  # type: ignore[call-overload]


#: Ways of `Stops`.
STOPS = ("detach", "detach in place", "no_grad", "no_grad, and writes", "constants")


class Stops(nn.Module):
    """Keeps the gradient from a part, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = conv(3, 8), conv(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x, weight = self.first(images), self.second.weight
        if self.way == "detach":
            y = x.detach()
        elif self.way == "detach in place":
            y = (x * 2).detach_()
        elif self.way == "constants":
            y = x
            with torch.no_grad():
                weight = weight.detach() * 2
        else:
            with torch.no_grad():
                y = x * 2
        if self.way == "no_grad, and writes":
            x[:, 4:].relu_()
        return nn.functional.conv2d(torch.tanh(x) * y, weight)


class Rounded(torch.autograd.Function):
    """Rounds; its gradient passes as if it did not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Quantized(nn.Module):
    """Has a gradient of its own for a part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        made: Tensor = self.second(x + Rounded.apply(x))  # type: ignore[no-untyped-call]
        return made


#: Ways of `Writes`.
WRITES = ("plain", "used after", "used before", "seen before", "a part", "twice")


class Writes(nn.Module):
    """Writes to what a convolution made, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        seen = x.flatten(2) if self.way == "seen before" else None
        before = x * 2 if self.way == "used before" else None
        if self.way == "twice":
            y = self.relu(x.add_(images.mean(1, keepdim=True)))
        else:
            y = self.relu(x[:, :8] if self.way == "a part" else x)
        z = self.second(x if self.way in ("used after", "a part", "twice") else y)
        if seen is not None:
            z = z + seen.reshape(x.shape)[:, :4]
        return z if before is None else z + before[:, :4]


def gradients(module: nn.Module, images: Tensor, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """A module's results, and the gradient of a random sum of them."""
    images = images.clone().requires_grad_(True)
    outputs = flat(module(images))
    generator = torch.Generator().manual_seed(seed)
    total = sum(
        (output * torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)).sum()
        for output in outputs
    )
    (gradient,) = torch.autograd.grad(total, images)  # type: ignore[arg-type]
    return [output.detach() for output in outputs], gradient


def photograph(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def made(name: str, networks: dict[str, Callable[[], nn.Module]] = NETS) -> nn.Module:
    torch.manual_seed(0)
    return networks[name]().eval().requires_grad_(False)


def small_kl() -> nn.Module:
    """Random weights, but the layers and the attention of Stable Diffusion's."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
        )
    return load_encoder(autoencoder).module


def smooth_taesd() -> nn.Module:
    """TAESD's layers with a smooth activation: rounding decides no jumps of the gradient."""
    network = taesd_encoder(16, midblock_norm=True)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return network


#: Those whose graphs ONNX has; smooth ones, but for the lone activations.
ONNX_NETS: dict[str, Callable[[], nn.Module]] = {
    "TAESD with a norm": smooth_taesd,
    "circular padding": lambda: nn.Sequential(conv(3, 8), conv(8, 4, padding_mode="circular")),
    "one convolution": lambda: nn.Sequential(conv(3, 4)),
    "kernels and strides": lambda: nn.Sequential(
        conv(3, 16, 7, 2), nn.SiLU(), nn.Conv2d(16, 8, 3, 3), conv(8, 8, 1), nn.Conv2d(8, 4, 2, 2, padding=1)
    ),
    "grouped, dilated, padded widely": lambda: nn.Sequential(
        conv(3, 16),
        nn.Conv2d(16, 16, 3, 2, padding=1, groups=4),
        nn.Conv2d(16, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, 2, padding=1, dilation=2),
        nn.Conv2d(8, 4, 1, padding=1),
    ),
    "padding on two sides": lambda: Net(
        lambda x, a, b: b(F.pad(a(x), (0, 1, 0, 1))), a=conv(3, 16), b=nn.Conv2d(16, 12, 3, 2)
    ),
    "norms without weights": lambda: nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8, affine=False), conv(8, 4)),
    "attention, two heads": lambda: nn.Sequential(conv(3, 8, 3, 4), Attention(8, 2)),
    "lone activations": lambda: Net(
        lambda x, a: torch.tanh(F.silu(a(x)) * 2 + torch.relu(x + 1).mean(1, True)), a=conv(3, 8)
    ),
}
