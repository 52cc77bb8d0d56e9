"""Real processes: two that train together, and one that is stopped and killed from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training.test_fit import changed, files_of, history_of, weights_of
from tests.training.two_processes import SETTINGS
from tiling.core.errors import ConfigError
from training import TrainConfig, samples_from_images, train
from training.processes import processes_of

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240


def start(*command: str) -> subprocess.Popen[str]:
    """A Python of its own, in the repository's root."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_two_processes_are_one_on_the_same_global_batch(image_table: Path, tmp_path: Path) -> None:
    config = TrainConfig(**SETTINGS)
    samples = samples_from_images(image_table, config)
    black = str(samples.slide_id[samples.where("train")[5]])
    cv2.imwrite(str(image_table.parent / black), np.zeros((32, 32, 3), np.uint8))
    samples = samples_from_images(image_table, config)
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    script = str(ROOT / "tests" / "training" / "two_processes.py")
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, str(image_table), str(two))
    process = start(*run)
    single = train(samples, one, config)
    said = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, said

    for a, b in zip(history_of(one), history_of(two / "whole"), strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    for name, value in weights_of(one).items():
        torch.testing.assert_close(weights_of(two / "whole")[name], value, rtol=1e-3, atol=1e-4)
    known, known_by_two = (
        load_file(run / "model" / "novelty.safetensors")["features_means"] for run in (one, two / "whole")
    )
    torch.testing.assert_close(known_by_two, known, rtol=1e-2, atol=1e-3)
    told = {path.stem: path.read_text() for path in two.glob("*.txt")}
    loss = single.metrics["val"]["log_loss"].value
    for rank in (0, 1):
        number, val_loss = told[f"whole-{rank}"].split()
        assert int(number) == rank
        assert float(val_loss) == pytest.approx(loss, rel=1e-4), "both have seen all of the split"
        assert told[f"torn-{rank}"].startswith("75 ")
        assert "after step 4 of 6" in told[f"torn-{rank}"], "asked on one, stopped on both"
        assert told[f"odd-{rank}"].startswith("batch_size: a batch of 9 tiles cannot be shared out evenly among 2")
        assert told[f"broken-{rank}"].startswith("epoch 1: the logits are no longer finite")
        assert f"on tiles of {black};" in told[f"broken-{rank}"], "named by both, whichever had it"
    assert files_of(two / "torn") == files_of(two / "whole")
    assert not (two / "odd").exists()


def test_a_stopped_or_killed_command_goes_on(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    config = changed(tiny, epochs=15, checkpoint_steps=7, bootstrap_resamples=20)
    settings = tmp_path / "train.yaml"
    settings.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    out = tmp_path / "run"
    command = (
        "-m",
        "pipeline.cli",
        "train",
        "--images",
        str(image_table),
        "--config",
        str(settings),
        "--out",
        str(out),
    )

    process = start(*command)
    wait_for(out / "log" / "metrics.csv", process)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == os.EX_TEMPFAIL, said
    assert "stopped by SIGUSR1 after step" in " ".join(said.split())
    assert not (out / "model").exists()

    last = out / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns
    process = start(*command)
    while last.stat().st_mtime_ns == before and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "model").exists()

    samples = samples_from_images(image_table, config)
    train(samples, out, config)
    train(samples, tmp_path / "whole", config)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert load_file(out / "model" / "weights.safetensors")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize(
    ("environment", "settings", "expected"),
    [
        ({}, {}, (1, 1)),
        ({}, {"devices": 2}, (2, 1)),
        (TORCHRUN, {}, (2, 3)),
        (TORCHRUN, {"devices": 2, "nodes": 3}, (2, 3)),
        (SLURM, {}, (4, 2)),
        (SLURM | {"SLURM_JOB_NAME": "bash"}, {}, (1, 1)),  # on a node that was asked for to work on by hand
        ({"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, {"devices": 2}, (2, 1)),
    ],
)
def test_processes_are_those_the_launcher_started(
    environment: dict[str, str], settings: dict[str, object], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes_of(TrainConfig.model_validate({"device": "cpu"} | settings)) == expected


@pytest.mark.parametrize(
    ("environment", "settings", "key", "what"),
    [
        (TORCHRUN, {"devices": 4}, "devices", "4 .*torchrun.* 2"),
        (TORCHRUN, {"nodes": 1}, "nodes", "1 .*torchrun.* 3"),
        (SLURM, {"devices": 2}, "devices", "2 .*srun.* 4"),
        ({"SLURM_NTASKS": "4"}, {}, "devices", "--ntasks=4"),
    ],
)
def test_processes_that_cannot_be_are_refused(
    environment: dict[str, str], settings: dict[str, object], key: str, what: str, image_table: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = TrainConfig.model_validate({"device": "cpu", "backbone": "test_resnet", "weights": "none"} | settings)
    samples = samples_from_images(image_table, config)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=what) as caught:
        train(samples, tmp_path / "run", config)
    assert caught.value.where == key
    assert not (tmp_path / "run").exists()
