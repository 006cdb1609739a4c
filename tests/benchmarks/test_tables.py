"""Tables come from rows, and go between a document's marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.tables import tables, write_tables

TIMES = """case,backend,status,p50_ms,error,images,device,threads,torch,shade_fast,commit
step.kl.256,eager,ok,2000,1e-6,1,a machine,2,2.13,0.1,abc
step.kl.256,native,ok,800,2.5e-5,1,a machine,2,2.13,0.1,abc
step.kl.512,eager,ok,9000,1e-6,1,a machine,2,2.13,0.1,abc
step.kl.512,native,wrong,,,1,a machine,2,2.13,0.1,abc
ops.quantize.512,native,ok,0.5,,1,a machine,2,2.13,0.1,abc
"""
MEMORY_COLUMNS = "case,backend,status,peak_megabytes,allocations,allocated_megabytes,allocator"
MEMORY = f"""{MEMORY_COLUMNS},images,device,threads,torch,shade_fast,commit
step.kl.256,eager,ok,900,120,2000,default,1,a machine,2,2.13,0.1,abc
step.kl.256,eager,ok,950,120,2000,tuned,1,a machine,2,2.13,0.1,abc
step.kl.256,native,ok,300,7,0.8,default,1,a machine,2,2.13,0.1,abc
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, text in (("times.csv", TIMES), ("memory.csv", MEMORY)):
        (tmp_path / name).write_text(text)
    return [tmp_path / "times.csv", tmp_path / "memory.csv"]


def test_tables(files: list[Path]) -> None:
    made = tables(files)
    assert made["step"].splitlines() == [
        "| case | eager, ms | native, ms | eager / native |",
        "| --- | --- | --- | --- |",
        "| step.kl.256 | 2000 | 800 | 2.50 |",
        "| step.kl.512 | 9000 | wrong |  |",
    ]
    assert made["error"].splitlines()[2] == "| step.kl.256 | 1.0e-06 | 2.5e-05 |"
    assert made["memory"].splitlines()[0] == "| case | eager | eager, tuned allocator | native |"
    assert made["allocations"].splitlines()[2] == "| step.kl.256 | 120, 2000.0 MB | 7, 0.8 MB |"
    assert made["ops"].splitlines()[2] == "| ops.quantize.512 | 0.5 |"
    assert made["machine"].splitlines()[2:] == ["| a machine | 2 | 2.13 | 0.1 | abc |"]
    assert made["time to quality"] == ""


def test_tables_go_between_a_documents_marks(files: list[Path], tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(
        "Times\n<!-- table step -->\nold\n<!-- end -->\nafter\n<!-- table other -->\nkept\n<!-- end -->\n"
    )
    for _ in range(2):
        write_tables(files, document)
        text = document.read_text()
        assert text.startswith("Times\n<!-- table step -->\n\n| case |")
        assert text.endswith("|\n\n<!-- end -->\nafter\n<!-- table other -->\nkept\n<!-- end -->\n")
        assert "old" not in text
    document.write_text("no marks")
    with pytest.raises(ValueError, match="no mark"):
        write_tables(files, document)


def test_plots_are_drawn_where_matplotlib_is(files: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plot import write_plots

    assert [path.name for path in write_plots(files, tmp_path)] == ["step.svg", "memory.svg"]
