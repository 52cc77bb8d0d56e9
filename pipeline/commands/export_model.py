"""A model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline import console
from pipeline.commands.options import Overwrite, model_folders


def export_model(
    run: Annotated[Path, typer.Argument(help="Folder of a training run, or its model's folder or name.")],
    to: Annotated[Literal["onnx", "torchscript", "wsinfer"], typer.Option(help="What reads it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the export.")],
    overwrite: Overwrite = False,
) -> None:
    """A trained model for other programs, checked against torch: ONNX, TorchScript, or WSInfer's folder.

    WSInfer's folder runs in the wsinfer command and in QuPath's WSInfer extension. The temperature is folded in.

    Examples:

    `specslide export-model run --to onnx --out exported/onnx`

    `specslide export-model run --to wsinfer --out exported/wsinfer`, then
    `wsinfer run --config exported/wsinfer/config.json --model-path exported/wsinfer/torchscript_model.pt ...`
    """
    inner = run / "model"
    folder = inner if inner.is_dir() else run
    (folder,) = model_folders([folder])
    from inference.export_model import export_model as verb
    from training import load_model

    report = verb(load_model(folder), to, out, overwrite=overwrite)
    console.say(f"{report.file}, max difference from torch {report.difference:.1e}")
