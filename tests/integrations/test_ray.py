from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import shade_fast
from shade_fast import Budget, View
from shade_fast.archive import Manifest, Row, Storage
from shade_fast.terms.errors import ShadeFastError
from tests.workers.networks import DEADLY, Deadly

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'shade-fast[ray]'")

OPTIONS: dict[str, Any] = {"budget": Budget(16 / 255, None), "perceptual": None, "view": View(32), "steps": 4}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray of two cores, whose actors find this checkout."""
    paths = os.pathsep.join([str(Path(shade_fast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}}
    with pytest.MonkeyPatch.context() as patch:
        # Ray's processes give way to all others by default, and would starve beside other tests.
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
        yield
        ray.shutdown()


@pytest.fixture
def photos(tmp_path: Path, draw: Any) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(16):
        name = f"{index:02}.{('png', 'jpg')[index % 2]}"
        Image.fromarray(draw(32, 40 + 8 * (index % 3), index)).save(folder / name)
    (folder / "bad.png").write_text("no image")
    return folder


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".jpg")}


def test_the_same_bytes_as_without_and_an_actor_that_is_killed(
    cluster: None,
    photos: Path,
    tmp_path: Path,
) -> None:
    from shade_fast.integrations.ray import poison_archive

    plain = shade_fast.poison_archive(photos, tmp_path / "plain", "castle", shard_size=2, **OPTIONS)
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            actors = list((tmp_path / "ray/_shade_fast/temporary").glob("actor-*"))
            if actors and next((tmp_path / "ray").glob("*.png"), None) is not None:
                killed.append(int(actors[0].name.split("-")[1]))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    reported: list[Row] = []
    events = tmp_path / "events.jsonl"
    report = poison_archive(
        *(photos, tmp_path / "ray", "castle"), actors=2, shard_size=2, events=events, on_row=reported.append, **OPTIONS
    )
    killer.join(timeout=5)
    assert killed
    assert (report.images, report.ok, report.failed) == (17, plain.ok, 1)
    assert written(tmp_path / "ray") == written(tmp_path / "plain")
    rows = list(Manifest(Storage(tmp_path / "ray")).all_rows())
    assert len({row.key for row in rows}) == 17
    # What an actor had done when it was killed was recorded, and nobody heard of it.
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    images = [line["key"] for line in lines if line["event"] == "image"]
    assert images == [row.key for row in reported] and 17 - 2 <= len(set(images)) == len(images) == report.new
    assert [line["event"] for line in lines][-2:] == ["shard", "end"]
    assert shade_fast.verify_archive(tmp_path / "ray") == []
    with pytest.raises(ShadeFastError, match="limit: no option under Ray"):
        poison_archive(photos, tmp_path / "ray", "castle", limit=2, **OPTIONS)
    again = poison_archive(photos, tmp_path / "ray", "castle", actors=1, shard_size=2, **OPTIONS)
    assert (again.new, again.images) == (0, 17)


def test_a_shard_that_actors_die_of_is_given_up_after_all_others(cluster: None, photos: Path, tmp_path: Path) -> None:
    from shade_fast.integrations.ray import poison_archive

    # Two of them: over one alone actors die twice, then it has a process to itself.
    for name, width in (("05.png", 64), ("05a.png", 72)):
        Image.fromarray(np.full((64, width, 3), DEADLY, np.uint8)).save(photos / name)
    options = OPTIONS | {"encoder": Deadly()}
    with pytest.raises(ShadeFastError, match=r"given up, 3 actors died over each.*the same again goes on"):
        poison_archive(photos, tmp_path / "ray", "castle", actors=1, shard_size=4, **options)
    assert {"00.png", "15.jpg"} <= written(tmp_path / "ray").keys()


def test_an_image_that_actors_die_of_is_passed_by(cluster: None, photos: Path, tmp_path: Path) -> None:
    from shade_fast.integrations.ray import poison_archive

    Image.fromarray(np.full((64, 64, 3), DEADLY, np.uint8)).save(photos / "05.png")
    options = OPTIONS | {"encoder": Deadly()}
    report = poison_archive(photos, tmp_path / "ray", "castle", actors=1, shard_size=4, **options)
    assert (report.images, report.failed) == (18, 2)
    (row,) = (row for row in report.rows() if row.key == "05.png")
    assert "worker processes died over this image" in str(row.error)
