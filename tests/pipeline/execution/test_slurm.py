"""Scripts for Slurm: run here by bash with stand-ins for Slurm's programs, and read by shellcheck."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inference import PredictConfig, load_model
from pipeline import cli
from pipeline.commands.options import slides_of
from pipeline.execution.jobs import heatmap_all
from pipeline.execution.partition import Part
from pipeline.execution.slurm import SlurmConfig, job_script, seconds_of, submit_script
from tests.inference.conftest import write_model
from tests.pipeline.conftest import RunCli
from tiling.core.errors import ConfigError, InputError
from tiling.core.settings import checked
from tiling.stores.store import verify_store

HOSTILE = [
    "a b",
    "o'ut",
    '"',
    "$(touch pwned)",
    "`touch pwned`",
    "*",
    "~",
    "\\",
    "a;touch pwned",
    "new\nline",
    "é",
    "-x=#",
]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder in front of the PATH: `srun` tells its words and ends with $SRUN_CODE, the others tell theirs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, end in {"srun": "int(os.environ.get('SRUN_CODE', 0))", "scontrol": "0"}.items():
        told = tmp_path / f"{name}.json"
        write_program(
            folder / name,
            "import json, os, pathlib, sys\n"
            f"pathlib.Path({str(told)!r}).write_text(json.dumps(sys.argv[1:]))\nsys.exit({end})",
        )
    return folder


def write_program(path: Path, source: str) -> None:
    path.write_text(f"#!{sys.executable}\n{source}\n")
    path.chmod(0o755)


def run_job(script: str, programs: Path, **variables: str) -> int:
    """The exit code of a script that Slurm has started as job 42."""
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"} | variables
    done = subprocess.run(["bash"], input=script, text=True, env=environment, cwd=programs.parent, check=False)
    return done.returncode


def told(programs: Path, name: str) -> list[str] | None:
    """What a stand-in was called with; None if it was not."""
    file = programs.parent / f"{name}.json"
    words: list[str] | None = json.loads(file.read_text()) if file.exists() else None
    return words


def asked(script: str) -> list[str]:
    """The options in front of the first command, which are all that sbatch reads."""
    head = script[: script.index("\nset -u")]
    return [line.removeprefix("#SBATCH ") for line in head.splitlines() if line.startswith("#SBATCH ")]


# ------------------------------------------------------------------------------------------------ the script


def test_the_words_of_a_command_arrive_as_they_are(programs: Path) -> None:
    script = job_script("x", ["specslide", "tile", *HOSTILE], SlurmConfig())
    assert run_job(script, programs) == 0
    assert told(programs, "srun") == ["specslide", "tile", *HOSTILE]
    assert {path.name for path in programs.parent.iterdir()} == {"bin", "srun.json"}


def test_a_task_of_an_array_does_its_part(programs: Path) -> None:
    script = job_script("x", ["specslide", "tile", "a.svs"], SlurmConfig(array=8, cpus=4))
    assert run_job(script, programs, SLURM_ARRAY_TASK_ID="3") == 0
    assert told(programs, "srun") == ["--cpus-per-task=4", "specslide", "tile", "a.svs", "--part", "3/8"]
    assert "--array=1-8" in asked(script)


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, "0", False),
        (1, "0", False),  # some slides are bad: again would be no better
        (2, "0", False),
        (75, "0", True),  # EX_TEMPFAIL: stopped, and its state saved
        (138, "0", True),  # 128 + SIGUSR1
        (137, "0", False),  # killed, out of memory perhaps
        (75, "2", True),
        (75, "3", False),
        (75, None, True),  # Slurm sets no count before the first restart
    ],
)
def test_a_job_that_was_stopped_goes_back_into_the_queue(
    programs: Path, code: int, restarts: str | None, requeued: bool
) -> None:
    variables = {} if restarts is None else {"SLURM_RESTART_COUNT": restarts}
    script = job_script("x", ["specslide", "train"], SlurmConfig(requeues=3))
    assert run_job(script, programs, SRUN_CODE=str(code), **variables) == code
    assert told(programs, "scontrol") == (["requeue", "42"] if requeued else None)


def test_slurm_is_asked_for_what_is_wanted() -> None:
    config = SlurmConfig(
        partition="gpu", qos="short", account="lab_1", time="1-12:00", cpus=8, mem="16G", gpus=4, processes=4,
        notice_s=300, further=("--exclusive", "--comment=o'ne two", "--exclude=node[01-03]"),
    )  # fmt: skip
    assert asked(job_script("specslide-train", ["specslide"], config)) == [
        "--job-name=specslide-train", "--partition=gpu", "--qos=short", "--account=lab_1", "--time=1-12:00",
        "--cpus-per-task=8", "--mem=16G", "--ntasks-per-node=4", "--gpus-per-node=4", "--requeue", "--open-mode=append",
        "--signal=USR1@300", "--exclusive", "--comment='o'\"'\"'ne two'", "--exclude='node[01-03]'",
    ]  # fmt: skip


@pytest.mark.parametrize("time", ["0", "0:00", "0-0"])
def test_no_time_limit_can_be_asked_for(time: str) -> None:
    """`man sbatch`: a time limit of zero requests that no time limit be imposed."""
    config = checked(SlurmConfig, {"time": time}, "slurm options")
    assert f"--time={time}" in asked(job_script("x", ["specslide"], config))


def test_no_word_of_a_command_becomes_an_option_of_slurm() -> None:
    script = job_script("x", ["specslide", "tile", "a\n#SBATCH --uid=0"], SlurmConfig())
    assert asked(script) == asked(job_script("x", ["specslide"], SlurmConfig()))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SlurmConfig(), ["specslide", "run", "study.yaml"]),
        (SlurmConfig(array=8, cpus=4, mem="16G", further=("--exclusive",)), ["specslide", "tile", *HOSTILE]),
        (SlurmConfig(gpus=2, processes=2, time="30", requeues=0), ["/opt/a b/specslide", "train"]),
    ],
)
def test_shellcheck_finds_nothing(config: SlurmConfig, words: list[str]) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("lacks shellcheck: pip install 'specslide[dev]'")
    script = job_script("specslide-x", words, config)
    done = subprocess.run([shellcheck, "--shell=bash", "-"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# ------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("10", 600), ("10:30", 630), ("1:10:30", 4230), ("2-12", 216_000), ("2-12:30", 217_800),
        ("2-12:30:05", 217_805), ("0-0:5", 300),
    ],
)  # fmt: skip
def test_times_are_read_as_slurm_reads_them(time: str, seconds: int) -> None:
    """The forms in `man sbatch`: minutes, M:S, H:M:S, D-H, D-H:M and D-H:M:S."""
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *(
            ({"time": time}, "time: ")
            for time in ("", "-", "1h", "1:2:3:4", "-5", "1-", "1:", "1-2-3", "٣", "1-2:3:4:5")
        ),
        ({"time": "0:1"}, "time: '0:1'.*120 s"),
        ({"time": "2"}, "time: '2'.*120 s"),
        ({"notice_s": 700, "time": "10"}, "700 s"),
        ({"partition": "a b"}, "partition"),
        ({"partition": "a\n#SBATCH --uid=0"}, "partition"),
        ({"account": "a\n"}, "account"),
        ({"mem": "lots"}, "mem"),
        ({"mem": "16G\n"}, "mem"),
        ({"array": 0}, "array"),
        ({"cpus": 0}, "cpus"),
        ({"further": ("-C", "a100")}, "'-C'.*--name=value"),
        ({"further": ("--a=b\n#SBATCH --uid=0",)}, "further"),
        ({"further": ("--a b",)}, "further"),
        ({"colour": "red"}, "colour"),
        ({"at_once": 2}, "at_once"),
        ({"array": 4, "at_once": 0}, "at_once"),
        ({"prelude": ("module load cuda\ntouch pwned",)}, "prelude"),
        ({"prelude": ("#SBATCH --uid=0",)}, "prelude"),
        ({"prelude": (" ",)}, "prelude"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        checked(SlurmConfig, settings, "slurm options")


# -------------------------------------------------------------------------------------------- the command line


def slurm(*arguments: object) -> str:
    """What `specslide slurm ARGUMENTS` prints; raises what it raises."""
    result = CliRunner().invoke(cli.app, ["slurm", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_prints_the_script(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("slide_path\na.svs\n")
    arguments = ["tile", "--manifest", str(tmp_path / "slides.csv"), "--out", "st ores", "--min-tissue", "0"]
    script = slurm(
        "--array",
        2,
        "--cpus",
        3,
        "--time",
        90,
        "--executable",
        "apptainer run 'a b.sif'",
        *arguments,
        "--",
        "--qos=low",
    )
    config = SlurmConfig(array=2, cpus=3, time="90", further=("--qos=low",))
    assert script == job_script("specslide-tile", ["apptainer", "run", "a b.sif", *arguments], config)


def test_a_prelude_comes_first_and_an_array_is_held_back(programs: Path, tmp_path: Path) -> None:
    config = SlurmConfig(array=40, at_once=8, prelude=("export MADE=1", f"echo $MADE$UNSET, > {tmp_path}/said"))
    script = job_script("x", ["specslide", "tile"], config)
    assert "--array=1-40%8" in asked(script)
    assert run_job(script, programs, SLURM_ARRAY_TASK_ID="3") == 0
    assert (tmp_path / "said").read_text() == "1,\n"
    assert told(programs, "srun")[-2:] == ["--part", "3/40"]  # type: ignore[index]


@pytest.mark.parametrize("command", ["evaluate", "stress"])
def test_a_test_is_a_job_that_is_not_put_back(command: str) -> None:
    script = slurm("--prelude", "module load a,b", command, "run/model", "--images", "index.csv", "--out", "test")
    assert "\nmodule load a,b\nset -u\n" in script
    assert " -lt 0 ]" in script


def test_each_gpu_of_a_training_gets_a_process() -> None:
    train = asked(slurm("--gpus", 4, "train", "--images", "index.csv", "--out", "run"))
    assert {"--ntasks-per-node=4", "--gpus-per-node=4"} <= set(train)
    heatmap = asked(slurm("--gpus", 1, "heatmap", "a.svs", "--model", "model", "--out", "heatmaps"))
    assert {"--ntasks-per-node=1", "--gpus-per-node=1"} <= set(heatmap)


def test_without_more_the_installation_itself_runs(programs: Path) -> None:
    script = slurm("heatmap", "a.svs", "--model", "model", "--out", "heatmaps", "--formats", "png,geojson")
    assert run_job(script, programs) == 0
    program, *words = told(programs, "srun") or []
    assert Path(program).exists()
    assert words[-7:] == ["a.svs", "--model", "model", "--out", "heatmaps", "--formats", "png,geojson"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "a.zarr"], "slurm verify: is no command .*; use one of tile, embed, train, tune, evaluate, .*run"),
        (["slurm", "tile"], "slurm slurm: is no command"),
        (["--", "--qos=low"], "is no command"),
        (["tile", "--out", "x"], "name no slides"),
        (["tile", "a", "--out", "x", "--codec", "png"], "codec: 'png'"),
        (["tile", "a", "--out", "x", "--tile-px", "0"], "tile_px: 0"),
        (["tile", "--manifest", "absent.csv", "--out", "x"], "absent.csv: "),
        (["tile", "a", "--out", "x", "--part", "1/2"], "^--part: .*--array"),
        (["tile", "a", "--out", "x", "--", "-C", "a100"], "'-C'"),
        (["train", "--images", "a", "--out", "x", "--epochs", "0"], "epochs: 0"),
        (["train", "--images", "a", "--out", "x", "--logger", "paper"], "loggers.0: 'paper'"),
        (["train", "--images", "a", "--out", "x", "--config", "absent.yaml"], "absent.yaml"),
        (["heatmap", "a", "--model", "m", "--out", "x", "--overlap", "1"], "overlap: 1.0"),
        (["heatmap", "a", "--model", "m", "--out", "x", "--formats", "bmp"], "formats: .*bmp"),
        (["run", "absent.yaml"], "absent.yaml"),
        (["tile", "a", "--out", "x", "--cluster", "moon"], "at: 'moon'"),
        (["run", "study.yaml", "--cluster", "moon"], "at: 'moon'"),
        (["run", "study.yaml", "--worker-memory", "8GB"], "memory: '8GB'.*slurm"),
        (["--array", "2", "tile", "a", "--out", "x", "--cluster", "local:2"], "^--array: .*--cluster"),
        (["tune", "--images", "a", "--out", "x", "--rule", "luck"], "rule: 'luck'"),
        (["tune", "--images", "a", "--out", "x", "--part", "1/2"], "^--part: .*--array"),
        (["--array", "2", "train", "--images", "a", "--out", "x"], "^--array: .*train"),
        (["--executable", "'", "tile", "a", "--out", "x"], "^--executable: "),
        (["--executable", " ", "tile", "a", "--out", "x"], "^--executable: "),
    ],
)
def test_what_the_command_would_refuse_is_refused_before_the_queue(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text("manifest: m.csv\nout: o\ncluster: {at: slurm, workers: 2}\n")
    with pytest.raises((ConfigError, InputError), match=words):
        slurm(*arguments)


@pytest.mark.parametrize(
    "option", [("--cluster", "local:2"), ("--cluster-config", "cluster.yaml"), ("--worker-memory", "8GB")]
)
@pytest.mark.parametrize(
    "command",
    [
        ("tile", "a", "--out", "x"),
        ("heatmap", "a", "--model", "m", "--out", "x"),
        ("tune", "--images", "a", "--out", "x"),
    ],
)
def test_no_task_of_an_array_starts_a_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...], option: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cluster.yaml").write_text("at: local:2\n")
    with pytest.raises(ConfigError, match=f"^--array: .*{option[0]}"):
        slurm("--array", 2, *command, *option)
    assert slurm(*command, *option)
    assert slurm("--array", 2, *command)


@pytest.mark.parametrize(
    "arguments", [["tile", "a"], ["tile", "a", "--out", "x", "--frob"], ["train", "--out", "x", "--epochs", "many"], []]
)
def test_what_the_parser_would_refuse_is_refused_before_the_queue(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.app, ["slurm", *arguments], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (2, "")


def test_sbatch_gets_the_script(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = programs.parent / "script"
    write_program(
        programs / "sbatch",
        f"import pathlib, sys\npathlib.Path({str(script)!r}).write_text(sys.stdin.read())\n"
        "print('17;cluster', *sys.argv[2:])",
    )
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    arguments = ["tile", "a.svs", "--out", "x"]
    assert slurm("--submit", *arguments) == "job 17\n"
    assert script.read_text() == slurm(*arguments)


def test_a_job_that_is_not_taken_is_an_error(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(ConfigError, match=r"^sbatch: "):
        submit_script("#!/bin/bash\n")
    write_program(programs / "sbatch", "import sys\nsys.exit('sbatch: error: invalid partition\\nBatch job failed')")
    with pytest.raises(ConfigError, match="invalid partition"):
        submit_script("#!/bin/bash\n")


# ------------------------------------------------------------------------------------------------- the signal


def test_srun_signals_every_process_of_a_job_and_the_command_stops_in_order(small_slide: Path, tmp_path: Path) -> None:
    """What slurmstepd does, `killpg`; with the exit code the script requeues on, and nothing broken in the log."""
    for number in range(300):
        (tmp_path / f"{number:03}.tif").symlink_to(small_slide)
    slides = sorted(map(str, tmp_path.glob("*.tif")))
    command = [sys.executable, "-m", "pipeline.cli", "tile", *slides, "--workers", "2"]
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [*command, "--out", tmp_path / "stores", "--tile-px", "128"],
        stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not list(tmp_path.glob("stores/*.zarr")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGUSR1)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == os.EX_TEMPFAIL, said
    assert re.search(r"stopped by SIGUSR1 with \d+ of 300 slides done; run the same command again to go on", said)
    assert "Traceback" not in said
    assert "resource_tracker" not in said
    made = list(tmp_path.glob("stores/*.zarr"))
    assert 0 < len(made) < 300
    assert [fault for store in made for fault in verify_store(store)] == []


# ------------------------------------------------------------------------------------------- shares of the slides


def test_tile_does_its_part_only(run_cli: RunCli, small_slide: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.tif").symlink_to(small_slide)
    slides = sorted(tmp_path.glob("*.tif"))
    done = run_cli("tile", *slides, "--out", tmp_path / "out", "--tile-px", 128, "--workers", 1, "--part", "2/3")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.zarr")} == {"b.zarr"}
    done = run_cli("tile", *slides, "--out", tmp_path / "out", "--part", "4/4")
    assert done.returncode == 0, "more parts than slides"


def test_heatmap_does_its_part_only(small_slide: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.tif").symlink_to(small_slide)
    slides = slides_of(sorted(tmp_path.glob("*.tif")), None, None).rows
    model = load_model(write_model(tmp_path / "model", tile_px=128))
    reports, failed = heatmap_all(slides, model, tmp_path / "out", PredictConfig(), part=Part(2, 2))
    assert ([report.slide_id for report in reports], failed) == (["b"], {})
    with pytest.raises(InputError, match="2 slides"):  # the checks are about all slides
        heatmap_all(slides, model, tmp_path / "out", PredictConfig(), roi=small_slide, part=Part(2, 2))
