"""How far a study is, by what lies on the disk: while it runs, after a kill, and when parts were removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.study.ledger import Event, State, Step, append
from pipeline.study.status import Item, read_status
from tests.pipeline.conftest import RunCli
from tiling.core.artefact import atomic_folder, locked_folder
from tiling.core.errors import InputError


def publish(folder: Path, name: str = "zarr.json") -> None:
    """A finished folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder), atomic_folder(folder) as new:
        (new / name).write_text("{}")


def planned(*states: State) -> list[Step]:
    """A plan of stores a, b, c ... that stand so, and a training after them."""
    stores = [Step("tile", f"stores/{name}.zarr", state) for name, state in zip("abcdef", states, strict=False)]
    return [*stores, Step("train", "training", "to do")]


def standing(folder: Path) -> dict[str, tuple[str, str]]:
    return {item.name: (item.progress, item.why) for item in read_status(folder).items}


def test_a_study_that_was_killed_in_the_middle(tmp_path: Path) -> None:
    append(tmp_path, "start")
    append(tmp_path, "plan", steps=planned("done", "to do", "to do", "to do", "changed"))
    for name in "ab":
        publish(tmp_path / f"stores/{name}.zarr")
    append(tmp_path, "begun", "tile", "stores/b.zarr")
    append(tmp_path, "made", "tile", "stores/b.zarr", seconds=2)
    append(tmp_path, "begun", "tile", "stores/c.zarr")
    append(tmp_path, "begun", "tile", "stores/d.zarr")
    append(tmp_path, "failed", "tile", "stores/d.zarr", reason="d.svs: is damaged")
    status = read_status(tmp_path)
    assert standing(tmp_path) == {
        "stores/a.zarr": ("done", ""),
        "stores/b.zarr": ("done", ""),
        "stores/c.zarr": ("left", "was interrupted"),
        "stores/d.zarr": ("failed", "d.svs: is damaged"),
        "stores/e.zarr": ("left", ""),
        "training": ("left", ""),
    }
    assert (status.running, status.complete) == (False, False)
    assert status.last is not None
    assert status.last.event == "start"
    assert status.counts() == [
        ("tile", {"done": 2, "failed": 1, "running": 0, "left": 2}),
        ("train", {"done": 0, "failed": 0, "running": 0, "left": 1}),
    ]


_HOLD = """
import sys, time
from pathlib import Path
from tiling.core.artefact import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_study_that_runs(tmp_path: Path) -> None:
    """Another process holds it: what it has begun is running; when it is killed, that was interrupted."""
    append(tmp_path, "start")
    append(tmp_path, "plan", steps=planned("to do"))
    append(tmp_path, "begun", "tile", "stores/a.zarr")
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path / "study"], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as job:  # fmt: skip
        assert job.stdout is not None
        assert job.stdout.readline() == "held\n"
        assert read_status(tmp_path).running
        assert standing(tmp_path)["stores/a.zarr"] == ("running", "")
        job.kill()
        job.wait()
    assert not read_status(tmp_path).running
    assert standing(tmp_path)["stores/a.zarr"] == ("left", "was interrupted")


def test_a_second_run_counts_for_itself(tmp_path: Path) -> None:
    """What failed before and is made now is done; what was removed is left."""
    publish(tmp_path / "stores/a.zarr")
    publish(tmp_path / "stores/b.zarr")
    publish(tmp_path / "training/model", "model.json")
    append(tmp_path, "start")
    append(tmp_path, "plan", steps=planned("to do", "to do"))
    append(tmp_path, "failed", "tile", "stores/a.zarr", reason="no mpp")
    append(tmp_path, "end", seconds=1)
    append(tmp_path, "start")
    append(tmp_path, "plan", steps=planned("to do", "done"))
    append(tmp_path, "made", "tile", "stores/a.zarr")
    append(tmp_path, "kept", "train", "training")
    append(tmp_path, "plan", steps=[Step("heatmap", "heatmaps/a", "to do")])
    append(tmp_path, "skipped", "heatmap", "heatmaps/a", reason="nothing to do")
    append(tmp_path, "end", seconds=2)
    assert read_status(tmp_path).complete
    (tmp_path / "stores/b.zarr/commit.json").unlink()
    assert standing(tmp_path)["stores/b.zarr"] == ("left", "was removed")


def test_heatmaps_are_known_once_the_split_is(tmp_path: Path) -> None:
    """A later plan takes the place of what an earlier one could not know, in the order of the stages."""
    first = [*planned("done"), Step("heatmap", "heatmaps/...", "to do"), Step("slides", "evaluation/slides", "to do")]
    append(tmp_path, "start")
    append(tmp_path, "plan", steps=first)
    append(tmp_path, "plan", steps=[Step("heatmap", f"heatmaps/{name}", "to do") for name in "xy"])
    names = [item.name for item in read_status(tmp_path).items]
    assert names == ["stores/a.zarr", "training", "heatmaps/x", "heatmaps/y", "evaluation/slides"]


def test_a_study_that_has_not_planned_yet(tmp_path: Path) -> None:
    append(tmp_path, "start")
    status = read_status(tmp_path)
    assert status.items == ()
    assert not status.complete
    assert isinstance(status.last, Event)


def test_a_folder_of_stores_and_heatmaps(tmp_path: Path) -> None:
    publish(tmp_path / "a.zarr")
    publish(tmp_path / "slide", "slide.json")
    (tmp_path / ".b.zarr.partial").mkdir()
    (tmp_path / "c.zarr").mkdir()
    (tmp_path / "other").mkdir()
    assert set(read_status(tmp_path).items) == {
        Item("tile", "a.zarr", "done"),
        Item("heatmap", "slide", "done"),
        Item("tile", "b.zarr", "left", "was interrupted"),
        Item("tile", "c.zarr", "left", "is not whole"),
    }


def test_slides_that_have_no_heatmap_are_failed(tmp_path: Path) -> None:
    """Which the cohort index knows of; what has been made since, or is being made, is not."""
    (tmp_path / "not_analysed.json").write_text(json.dumps({"a": "a: is cut short", "b": "no mpp", "c": "no mpp"}))
    failed = {"a": ("failed", "a: is cut short"), "b": ("failed", "no mpp"), "c": ("failed", "no mpp")}
    assert standing(tmp_path) == failed
    publish(tmp_path / "b", "slide.json")
    (tmp_path / ".c.partial").mkdir()
    status = read_status(tmp_path)
    assert set(status.items) == {
        Item("heatmap", "a", "failed", "a: is cut short"),
        Item("heatmap", "b", "done"),
        Item("heatmap", "c", "left", "was interrupted"),
    }
    assert not status.complete
    assert status.counts() == [("heatmap", {"done": 1, "failed": 1, "running": 0, "left": 1})]
    for name in "ac":
        publish(tmp_path / name, "slide.json")
    assert read_status(tmp_path).complete


@pytest.mark.parametrize("name", ["absent", "empty", "file"])
def test_what_holds_no_results_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=name):
        read_status(tmp_path / name)


def test_status_on_the_command_line(tmp_path: Path, run_cli: RunCli) -> None:
    """0 if everything is done, 1 with the reasons if not."""
    append(tmp_path, "start")
    append(tmp_path, "plan", steps=planned("done")[:1])
    publish(tmp_path / "stores/a.zarr")
    done = run_cli("status", tmp_path)
    assert done.returncode == 0
    assert "nobody is at work" in " ".join(done.stdout.split())
    append(tmp_path, "failed", "tile", "stores/a.zarr", reason="a.svs: has no scale; pass --slide-mpp")
    failed = run_cli("status", tmp_path)
    assert failed.returncode == 1
    assert "a.svs: has no scale; pass --slide-mpp" in failed.stdout
    refused = run_cli("status", tmp_path / "absent")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


def test_a_name_that_no_file_can_have_is_not_there(tmp_path: Path) -> None:
    append(tmp_path, "plan", steps=[Step("tile", f"stores/{'a' * 300}.zarr", "done")])
    assert [item.progress for item in read_status(tmp_path).items] == ["left"]
