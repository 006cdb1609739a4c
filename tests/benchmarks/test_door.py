"""The one door: every command is there, and is imported when it is asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as door

ROOT = Path(door.__file__).resolve().parents[1]


@pytest.mark.parametrize("name", door.COMMANDS)
def test_every_command_says_what_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "gpu resources":
        pytest.importorskip("triton", reason="triton is not installed")
    with pytest.raises(SystemExit) as ended:
        door.main([*name.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m benchmarks {name} ")
    assert (importlib.import_module(f"benchmarks.{door.COMMANDS[name].module}").__doc__ or "").splitlines()[0] in text


def test_without_a_command_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main([]) == 2
    listed = capsys.readouterr().err
    assert all(f"  {name} " in listed for name in door.COMMANDS)
    assert door.main(["gpu", "--help"]) == 0
    lines = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line.strip() for line in lines] == ["gpu check", "gpu model", "gpu resources"]
    assert door.main(["nothing"]) == 2
    assert "There is no command 'nothing'." in capsys.readouterr().err


def test_a_command_is_imported_when_it_is_asked_for() -> None:
    code = "import sys; from benchmarks import __main__ as door; door.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_no_other_module_is_a_door() -> None:
    doors = [path for path in (ROOT / "benchmarks").rglob("*.py") if "__name__ ==" in path.read_text()]
    assert doors == [ROOT / "benchmarks" / "__main__.py"]
