"""What is free, read from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shade_fast.system.memory import free_bytes

GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path) -> Any:
    """`system(cgroup, files)`: 8 GiB are available, this process is in the groups, whose files are these."""

    def free(cgroup: str, files: dict[str, str]) -> int | None:
        written = {
            "proc/meminfo": f"MemTotal: 16000000 kB\nMemFree: 100 kB\nMemAvailable:   {8 * GIB // 1024} kB\nHuge: 0\n",
            "proc/self/cgroup": cgroup,
            **{f"cgroup/{name}": text for name, text in files.items()},
        }
        for name, text in written.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return free_bytes(tmp_path / "proc", tmp_path / "cgroup")

    return free


def test_without_groups_it_is_what_the_system_has_available(system: Any) -> None:
    assert system("", {}) == 8 * GIB


def test_a_group_of_version_2_has_its_limit_less_what_is_used_and_not_idle(system: Any) -> None:
    files = {
        "jobs/one/memory.max": f"{4 * GIB}\n",
        "jobs/one/memory.current": f"{3 * GIB}\n",
        "jobs/one/memory.stat": f"anon 5\ninactive_file {GIB // 2}\nactive_file 7\n",
        "jobs/memory.max": "max\n",
        "jobs/memory.current": f"{7 * GIB}\n",
    }
    assert system("0::/jobs/one\n", files) == GIB + GIB // 2


def test_the_group_above_counts_where_it_leaves_less(system: Any) -> None:
    files = {
        "jobs/one/memory.max": f"{4 * GIB}\n",
        "jobs/one/memory.current": f"{GIB}\n",
        "jobs/memory.max": f"{5 * GIB}\n",
        "jobs/memory.current": f"{6 * GIB}\n",
    }
    assert system("0::/jobs/one\n", files) == 0


def test_a_group_of_version_1_beside_an_empty_one_of_version_2(system: Any) -> None:
    files = {
        "memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
        "memory/box/memory.usage_in_bytes": f"{GIB}\n",
        "memory/box/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 4}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": f"{GIB}\n",
    }
    assert system("4:cpu,memory:/box\n1:cpu:/\n0::/\n", files) == GIB + GIB // 4


def test_a_container_that_sees_its_own_group_as_the_top(system: Any) -> None:
    files = {"memory.max": f"{GIB}\n", "memory.current": "0\n"}
    assert system("0::/docker/0123456789abcdef\n", files) == GIB


def test_what_does_not_say_is_not_known(tmp_path: Path, system: Any) -> None:
    assert free_bytes(tmp_path / "none", tmp_path / "none") is None
    assert system("nonsense\n0::/x\n", {"x/memory.max": "much\n", "x/memory.current": "?"}) == 8 * GIB


def test_this_machine_says_how_much_it_has() -> None:
    free = free_bytes()
    assert free is None or free > 1 << 20
