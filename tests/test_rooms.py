"""The rooms' walls: what each part of the house may import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Room -> the parts of the house, besides itself, that it may import.
MAY_IMPORT = {
    "kernels": set(),
    "shade_fast/reference": set(),
    "shade_fast/ops": {"shade_fast.errors", "shade_fast.kernels", "shade_fast._cpu", "shade_fast._cuda"},
    "shade_fast/encoders": {"shade_fast.errors", "shade_fast.hub"},
    "shade_fast/codecs": {
        *("shade_fast.errors", "shade_fast.images", "shade_fast.jpeg", "shade_fast.limits", "shade_fast.text"),
        "shade_fast.processes",
    },
    "shade_fast/runtime": {"shade_fast.errors", "shade_fast.files", "shade_fast.ops", "shade_fast.version"},
    "shade_fast/perceptual": {"shade_fast.errors", "shade_fast.ops"},
    "shade_fast/engine": {
        *("shade_fast.errors", "shade_fast.checks", "shade_fast.budget", "shade_fast.view", "shade_fast.transforms"),
        *("shade_fast.ops", "shade_fast.pulse"),
        *("shade_fast.encoders", "shade_fast.perceptual", "shade_fast.reference", "shade_fast.runtime"),
    },
    "shade_fast/archive": {
        *("shade_fast.errors", "shade_fast.images", "shade_fast.anchors", "shade_fast.poisoner"),
        *("shade_fast.results", "shade_fast.version", "shade_fast.budget", "shade_fast.view", "shade_fast.work"),
        *("shade_fast.buckets", "shade_fast.workers", "shade_fast.files", "shade_fast.checks"),
        *("shade_fast.codecs", "shade_fast.limits", "shade_fast.text", "shade_fast.hub"),
    },
    "shade_fast/workers": {
        *("shade_fast.errors", "shade_fast.anchors", "shade_fast.encoders", "shade_fast.perceptual"),
        *("shade_fast.images", "shade_fast.work", "shade_fast.poisoner", "shade_fast.limits"),
        *("shade_fast.pulse", "shade_fast.processes"),
    },
    "shade_fast/integrations": {"shade_fast.errors", "shade_fast.checks", "shade_fast.limits", "shade_fast.archive"},
    "shade_fast/study": {
        *("shade_fast.errors", "shade_fast.images", "shade_fast.anchors", "shade_fast.poisoner"),
        *("shade_fast.budget", "shade_fast.view", "shade_fast.encoders", "shade_fast.archive"),
        *("shade_fast.engine", "shade_fast.files", "shade_fast.checks", "shade_fast.limits"),
        "shade_fast.hub",
    },
}


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    own = room.replace("/", ".")
    allowed = MAY_IMPORT[room] | {own, "shade_fast.kernels" if room == "kernels" else own}
    files = [file for file in (ROOT / room).rglob("*.py") if "embedded" not in file.parts]
    assert files
    for file in files:
        for name in imports_of(file):
            inside = name.startswith("shade_fast.") and not any(
                name == part or name.startswith(f"{part}.") for part in allowed
            )
            assert not inside, f"{file.relative_to(ROOT)} imports {name}, which {room} may not"


def test_the_reference_is_plain_torch() -> None:
    for file in (ROOT / "shade_fast/reference").rglob("*.py"):
        tops = {name.split(".")[0] for name in imports_of(file)}
        assert tops <= {"torch", "collections", "__future__", "shade_fast"}, file


def test_csrc_includes_no_torch() -> None:
    for file in (ROOT / "csrc").rglob("*.*"):
        assert not re.search(r'#include\s*[<"](torch|ATen|c10)/', file.read_text()), file


def test_the_package_imports_without_the_heavy_libraries() -> None:
    heavy = ("ray", "webdataset", "diffusers", "transformers", "triton", "lpips", "stlpips_pytorch", "matplotlib")
    code = f"import sys; from shade_fast import *; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_process_that_only_decodes_loads_no_torch() -> None:
    code = "import sys, shade_fast.images; print({'torch', 'pyarrow', 'fsspec', 'diffusers'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_the_package_has_its_names_and_modules_however_they_are_asked_for() -> None:
    code = """
        import shade_fast
        assert set(shade_fast.__all__) <= set(dir(shade_fast))
        assert shade_fast.runtime.freeze and shade_fast.cli_study.__name__ == "shade_fast.cli_study"
        assert not hasattr(shade_fast, "nothing") and not hasattr(shade_fast, "__wrapped__")
        import shade_fast.poisoner, shade_fast.survival
        from shade_fast import survival
        assert survival is shade_fast.survival and survival.__module__ == "shade_fast.survival" and callable(survival)
        for name in shade_fast.__all__:
            assert getattr(shade_fast, name) is not None
        try:
            from shade_fast import nothing
        except ImportError:
            print("done")
    """
    shown = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert shown.stdout == "done\n", shown.stderr
