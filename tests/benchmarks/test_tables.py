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
SCALING = """case,shape,backend,status,p50_ms,images_per_second,images,device,threads,torch,shade_fast,commit
scaling.threads.1,1x3x512x512,native,ok,200,5,1,a machine,1,2.13,0.1,abc
scaling.threads.2,1x3x512x512,native,ok,100,10,1,a machine,2,2.13,0.1,abc
"""
QUALITY_COLUMNS = "optimizer,beside,encoder,size,steps,photographs,linf,lpips_bound,start,distance,lpips,seconds"
QUALITY = f"""{QUALITY_COLUMNS},device,threads,torch,shade_fast,commit
release,release,an encoder,128,100,2,0.05,,100,62,0.2,18,a machine,2,2.13,0.1,abc
release,release,an encoder,128,500,2,0.05,,100,60,0.2,90,a machine,2,2.13,0.1,abc
momentum,release,an encoder,128,20,2,0.05,,100,61,0.2,3,a machine,2,2.13,0.1,abc
momentum,release,an encoder,128,40,2,0.05,,100,59,0.25,6,a machine,2,2.13,0.1,abc
paper,paper,an encoder,128,500,2,,0.07,100,50,0.069,300,a machine,2,2.13,0.1,abc
momentum,paper,an encoder,128,40,2,0.0627,0.07,100,70,0.069,20,a machine,2,2.13,0.1,abc
"""
FILES = {"times.csv": TIMES, "memory.csv": MEMORY, "scaling.csv": SCALING, "quality.csv": QUALITY}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in FILES]


def test_tables(files: list[Path]) -> None:
    texts = tables(files)
    assert texts["step"].splitlines() == [
        "| case | eager, ms | native, ms | eager / native |",
        "| --- | --- | --- | --- |",
        "| step.kl.256 | 2000 | 800 | 2.50 |",
        "| step.kl.512 | 9000 | wrong |  |",
    ]
    assert texts["error"].splitlines()[2] == "| step.kl.256 | 1.0e-06 | 2.5e-05 |"
    assert texts["memory"].splitlines()[0] == "| case | eager | eager, tuned allocator | native |"
    assert texts["allocations"].splitlines()[2] == "| step.kl.256 | 120, 2000.0 MB | 7, 0.8 MB |"
    assert texts["ops"].splitlines()[2] == "| ops.quantize.512 | 0.5 |"
    assert texts["machine"].splitlines()[2] == "| a machine | 2 | 2.13 | 0.1 | abc |"
    assert texts["scaling"].splitlines()[2:] == [
        "| scaling.threads.1 | 1x3x512x512 | 1 | 5 |",
        "| scaling.threads.2 | 1x3x512x512 | 2 | 10 |",
    ]
    assert texts["time to quality"].splitlines()[2:] == [
        "| release | L∞ 0.05 | 100 | 62.0% | 0.2000 | 18 | 20 | 61.0% | 0.2000 | 3 | 6.0 |",
        "| release | L∞ 0.05 | 500 | 60.0% | 0.2000 | 90 | 40 | 59.0% | 0.2500 | 6 | 15.0 |",
        "| paper | LPIPS 0.07 | 500 | 50.0% | 0.0690 | 300 | none reaches it |  |  |  |  |",
        "",
        "2 photographs at 128², an encoder.",
    ]
    assert tables(files[:1])["time to quality"] == ""


def test_the_summary_has_what_both_sides_and_another_did(files: list[Path]) -> None:
    files[0].write_text(
        TIMES.replace("kl.256", "kl.512.lpips").replace("wrong,,", "ok,3000,1e-6")
        + "step.kl.512,compile,ok,6000,1e-6,1,a machine,2,2.13,0.1,abc\n"
    )
    files[1].write_text(
        MEMORY.replace("kl.256", "kl.512") + "step.kl.512,compile,ok,600,9,80,default,1,a machine,2,2.13,0.1,abc\n"
    )
    assert tables(files)["summary"].splitlines()[2:] == [
        "| one step, kl at 512² | 9000 ms | 6000 ms (compile) | 3000 ms | 3.0 |",
        "| memory of a step, kl at 512² | 900 MB | 600 MB (compile) | 300 MB | 3.0 |",
        "| what the release loop reaches in 500 steps | 90 s |  | 6 s in 40 | 15.0 |",
        "| what the paper loop reaches in 500 steps | 300 s |  | not reached |  |",
    ]


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

    assert [path.name for path in write_plots(files, tmp_path)] == [
        "step.svg",
        "memory.svg",
        "quality.svg",
        "scaling.svg",
    ]
