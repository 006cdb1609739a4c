"""The rooms' walls: what each part of the house may import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Room -> the rooms that it may import, besides itself. What is not here is no room, and every file lies in one.
MAY_IMPORT: dict[str, set[str]] = {
    "kernels": set(),
    "terms": set(),
    "reference": set(),
    "system": {"terms"},
    "images": {"terms"},
    "ops": {"terms", "kernels"},
    "encoders": {"terms"},
    "codecs": {"terms", "system", "images"},
    "anchors": {"terms", "system", "images", "encoders"},
    "views": {"terms", "ops"},
    "runtime": {"terms", "system", "ops"},
    "perceptual": {"terms", "ops"},
    "engine": {"terms", "system", "ops", "encoders", "views", "perceptual", "reference", "runtime"},
    "protect": {
        *("terms", "system", "ops", "images", "encoders", "anchors", "views", "perceptual", "runtime", "engine"),
    },
    "workers": {"terms", "system", "images", "encoders", "anchors", "perceptual", "engine", "protect"},
    "api": {
        *("terms", "system", "ops", "images", "encoders", "anchors", "views", "perceptual", "runtime", "engine"),
        *("protect", "workers"),
    },
    "archive": {
        *("terms", "system", "images", "codecs", "encoders", "anchors", "views", "protect", "workers", "api"),
    },
    "integrations": {"terms", "protect", "archive"},
    "report": {"terms", "system", "images", "codecs", "encoders", "views", "archive"},
    "study": {
        *("terms", "system", "images", "encoders", "anchors", "views", "engine", "protect", "api", "archive"),
    },
    "cli": {
        *("terms", "system", "images", "encoders", "anchors", "views", "runtime", "engine", "protect", "api"),
        *("archive", "report", "study"),
    },
}
#: What is compiled, and so no file of a room's.
COMPILED = {"_cpu", "_cuda"}


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / "kernels" if room == "kernels" else ROOT / "shade_fast" / room).rglob("*.py"))


def room_of(name: str) -> str | None:
    """The room of an imported module; None where it is not the project's, or the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "shade_fast" and len(parts) > 1 else None


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert files_of(room)
    for file in files_of(room):
        for name in imports_of(file):
            found = room_of(name)
            allowed = {None, room, *MAY_IMPORT[room], *(COMPILED if room == "ops" else ())}
            assert found in allowed, f"{file.relative_to(ROOT)} imports {name}, which {room} may not"


def test_every_file_lies_in_a_room() -> None:
    package = ROOT / "shade_fast"
    outside = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if file.relative_to(package).parts[0] not in MAY_IMPORT
    }
    assert outside == {"__init__.py"}


def test_the_rooms_have_no_circle() -> None:
    list(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError


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
        assert shade_fast.runtime.freeze and shade_fast.study.__name__ == "shade_fast.study"
        assert not hasattr(shade_fast, "nothing") and not hasattr(shade_fast, "__wrapped__")
        import shade_fast.api.poisoner, shade_fast.protect.survival
        from shade_fast import survival
        assert survival is shade_fast.survival and callable(survival)
        for name in shade_fast.__all__:
            assert getattr(shade_fast, name) is not None
        try:
            from shade_fast import nothing
        except ImportError:
            print("done")
    """
    shown = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert shown.stdout == "done\n", shown.stderr


RUNTIME = "shade_fast.runtime"
#: The engines, which know the ground floor and themselves; the ground floor knows none of them.
ENGINES = ("cpu", "cuda", "onnx")
#: What opens the engines to the other rooms.
DOORS = {RUNTIME, f"{RUNTIME}.freeze"}


def runtime_imports() -> dict[str, set[str]]:
    """Module of runtime -> those of runtime that it imports when it is loaded."""
    folder = ROOT / "shade_fast/runtime"
    modules = {
        ".".join([RUNTIME, *file.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): file
        for file in folder.rglob("*.py")
    }
    imports: dict[str, set[str]] = {}
    for module, file in modules.items():
        tree = ast.parse(file.read_text())
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
        imports[module] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imports[module] |= {alias.name for alias in node.names if alias.name in modules}
            elif isinstance(node, ast.ImportFrom) and node.module in modules:
                # A name of a package is a module of it, or what the package itself offers.
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                imports[module] |= {name if name in modules else node.module for name in names}
    return imports


def engine_of(module: str) -> str | None:
    part = module.removeprefix(f"{RUNTIME}.").split(".")[0]
    return part if part in ENGINES else None


def test_runtimes_engines_know_the_ground_floor_and_not_each_other() -> None:
    imports = runtime_imports()
    assert {engine_of(module) for module in imports} == {None, *ENGINES}
    for module in imports.keys() - DOORS:
        for imported in imports[module]:
            assert imported not in DOORS, f"{module} imports {imported}, the door"
            assert engine_of(imported) in (None, engine_of(module)), f"{module} imports {imported}"


def test_runtimes_files_have_no_circle() -> None:
    list(TopologicalSorter(runtime_imports()).static_order())  # raises CycleError


def test_a_class_of_runtime_has_a_name_of_its_own() -> None:
    names = [
        node.name.strip("_")
        for file in files_of("runtime")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(names) == sorted(set(names))
