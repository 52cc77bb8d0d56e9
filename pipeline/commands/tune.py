"""A model chosen among candidates by its validation alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import console
from pipeline.commands.options import (
    CheckOption,
    ClusterConfigFile,
    ClusterOption,
    Overwrite,
    TileData,
    WorkerMemory,
    cluster_of,
)
from pipeline.commands.settings import Settings, given_of, options_of, settings_of
from pipeline.execution.partition import Part, parse_part
from pipeline.meter import progress_of
from training.config import TrainConfig, load_train_config
from training.selection.candidates import TUNED, TuneConfig

if TYPE_CHECKING:
    from training.selection.attempts import Attempt
    from training.tune import TuneResult


@options_of(
    TileData,
    TuneConfig,
    TrainConfig,
    common=(
        *TileData.model_fields, *TuneConfig.model_fields, "lambdas", "backbone", "weights", "input_px", "epochs",
        "batch_size", "select", "seed",
    ),
    names={"sd_lambdas": "lambdas", "loggers": "logger"},
    without={*TUNED, "devices", "nodes"} - {"seed", "split_seed"},
)  # fmt: skip
def tune(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs, the table and the chosen model.")],
    settings: Settings,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the images, to use the model on slides.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings of training that all candidates share.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Runs trained at once, one process each; GPUs get one each.")] = 1,
    cluster: ClusterOption = None,
    cluster_config: ClusterConfigFile = None,
    worker_memory: WorkerMemory = None,
    part: Annotated[
        Part | None, typer.Option(parser=parse_part, metavar="I/N", help="Do the I-th of N shares of the runs only.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which runs there would be; train nothing.")] = False,
    overwrite: Overwrite = False,
    check: CheckOption = False,
) -> None:
    """Choose penalty, strength, learning rate and augmentation by validation alone, without labels from elsewhere.

    Each candidate is a run of `train` under each of the same seeds; a finished one is kept, a killed one goes on. The
    rule looks at validation, and at copies of it shifted as another scanner or laboratory might: log loss alone prefers
    networks that use a shortcut. DIR gets tune.md, tune.csv, tune.png, and the chosen model. Another `--rule`, or other
    `--shifts`, on the same runs trains nothing.

    Examples:

    `specslide tune --images index.csv --out tuned --dry-run`

    `specslide tune --images index.csv --mpp 4 --out tuned --penalties none,sd,weight_decay --augments light,strong`

    `specslide tune --stores stores --manifest slides.csv --out tuned --rule agreement --shifts sharpness,stain`

    `specslide tune --images index.csv --out tuned --search random --draws 30 --learning-rates 1e-4,1e-2 --at-once 2`

    `specslide slurm --time 4:00:00 --gpus 1 --array 20 tune --images index.csv --out tuned`
    """
    data = settings_of(TileData, settings, "tune options")
    wanted = settings_of(TuneConfig, settings, "tune options")
    base = load_train_config(config, given_of(TrainConfig, settings))
    where = cluster_of(cluster, cluster_config, memory=worker_memory)
    if check:
        return
    data.require()
    from training.selection.attempts import attempts, missing

    samples = data.samples(base, mpp)
    plan = attempts(out, wanted, base)
    left = missing(plan, samples)
    seeds = "1 seed" if wanted.seeds == 1 else f"{wanted.seeds} seeds"
    done = len(plan) - len(left)
    console.note(f"{len(plan)} runs, {len(plan) // wanted.seeds} candidates under {seeds}: {done} are finished")
    if dry_run:
        _show_plan(plan, left)
        return
    from training.tune import attempt_all, conclude, require_tunable

    require_tunable(samples, base)
    own = [one for one in (part or Part()).of(plan) if one in left]
    if where is None and at_once == 1:
        with progress_of("tune", "runs") as progress:
            attempt_all(own, samples, overwrite=overwrite, progress=progress)
    else:
        from pipeline.execution.tuning import TuneJob, tune_all

        jobs = [TuneJob(one.absolute(), data.absolute(), base, mpp, overwrite) for one in own]
        failed = tune_all(jobs, at_once=at_once, cluster=where)
        for name, reason in failed.items():
            console.show_error(f"{name}: {reason}")
        if failed:
            raise typer.Exit(1)
    if part is not None and (others := missing(plan, samples)):
        console.note(f"{len(others)} runs of other parts are not finished: the last part to end chooses the model")
        return
    _show_result(conclude(samples, out, wanted, base), out)


def _show_plan(plan: Sequence[Attempt], left: Sequence[Attempt]) -> None:
    """The candidates, and how many of their runs are finished."""
    runs, undone = (Counter(one.candidate.name for one in which) for which in (plan, left))
    rows = [(name, f"{count - undone[name]} of {count}") for name, count in runs.items()]
    console.show_table("the weakest regularisation first", ("candidate", "runs finished"), rows)


def _show_result(result: TuneResult, out: Path) -> None:
    """The candidates with what they showed, and which one was chosen."""
    from training.selection.report import taken_by, values_of

    tuning, rows = result.tuning, []
    for one, seen in tuning.seen.items():
        values = values_of(seen)
        shown = (f"{values[name]:.3f}" for name in ("balanced_accuracy", "shifted_balanced_accuracy"))
        rows.append((one.name, *shown, ", ".join(taken_by(tuning, one))))
    rows += [(one.name, "failed", "", why) for one, why in tuning.failed.items()]
    title = f"balanced accuracy, means over seeds; chosen by {tuning.config.rule}: {tuning.chosen.name}, in {out}/model"
    console.show_table(title, ("candidate", "validation", "shifted", "taken by"), rows)
