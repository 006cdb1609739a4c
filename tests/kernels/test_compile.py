"""Every Triton kernel compiles ahead of time, without a GPU, for the architectures that the project names."""

from __future__ import annotations

from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from shade_fast.kernels import latent_distance  # noqa: E402

DTYPES = ["fp32", "fp16", "bf16"]
ARCHITECTURES = [80, 90, 100]


def latent_distance_sources(dtype: str) -> list[ASTSource]:
    pointers = {"latents": f"*{dtype}", "anchor": f"*{dtype}"}
    sizes = {"elements": "i32", "blocks": "i32"}
    return [
        ASTSource(
            latent_distance.squared_difference_kernel,
            {**pointers, "partial": "*fp32", **sizes, "block_size": "constexpr"},
            {"block_size": latent_distance.BLOCK},
        ),
        ASTSource(
            latent_distance.root_kernel,
            {"partial": "*fp32", "distance": "*fp32", "splits": "i32", "split_size": "constexpr"},
            {"split_size": latent_distance.MOST_SPLITS},
        ),
        ASTSource(
            latent_distance.gradient_kernel,
            {
                "upstream": "*fp32",
                **pointers,
                "distance": "*fp32",
                "gradient": f"*{dtype}",
                **sizes,
                "block_size": "constexpr",
            },
            {"block_size": latent_distance.BLOCK},
        ),
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda number: f"sm_{number}")
@pytest.mark.parametrize("dtype", DTYPES)
def test_latent_distance(dtype: str, architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for source in latent_distance_sources(dtype):
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
        assert compiled.asm["cubin"]
