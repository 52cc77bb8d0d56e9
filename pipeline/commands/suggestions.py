"""What was meant by an unknown option or command: the field's other words, and spellings that are near."""

from __future__ import annotations

import difflib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_OPTIONS = {
    "accumulate": "accumulate-grad-batches accumulation-steps grad-accum gradient-accumulation",
    "annotations": "annotation labels xml-dir",
    "augment": "aug augmentation augmentations",
    "backbone": "arch architecture encoder model-name network",
    "batch-size": "bs batchsize",
    "classes": "class-names",
    "clip-norm": "clip-grad gradient-clip gradient-clipping grad-clip max-grad-norm",
    "devices": "gpus num-gpus nproc",
    "device": "gpu cuda",
    "ema-decay": "ema exponential-moving-average",
    "epochs": "epoch max-epochs n-epochs num-epochs",
    "folds": "cv k-fold k-folds kfold n-folds",
    "formats": "format",
    "images": "image-list index tiles-csv",
    "learning-rate": "lr",
    "manifest": "cohort csv dataset slide-list slides-csv",
    "min-tissue": "tissue-fraction tissue-percent tissue-threshold",
    "model": "checkpoint ckpt model-dir model-path weights-path",
    "mpp": "mag magnification objective level resolution spacing target-mpp",
    "out": "dest destination out-dir outdir output output-dir output-path result-dir save-dir save-path",
    "overlap": "step step-size stride stride-px",
    "overwrite": "force",
    "patience": "early-stopping early-stop",
    "precision": "amp fp16 half mixed-precision",
    "quality": "metrics",
    "readers": "prefetch threads",
    "region-threshold": "threshold",
    "sd-lambda": "lambda spectral-decoupling",
    "search": "path",
    "seed": "random-seed random-state rng-seed",
    "stain-norm": "normalization stain-normalization stain-normalisation",
    "stores": "store-dir tiles tiles-dir patches",
    "tile-px": "patch patch-px patch-size patchsize tile-size tilesize window-size",
    "tissue": "mask mask-dir masks segmentation tissue-mask",
    "tta": "test-time-augmentation",
    "weight-decay": "l2 wd",
    "weights": "init pretrained",
    "where": "filter query",
    "workers": "cpus jobs n-jobs n-workers num-processes num-workers processes",
}
_COMMANDS = {
    "evaluate": "eval test validate",
    "export-model": "convert export onnx",
    "heatmap": "infer inference map predict",
    "info": "inspect show slide-info",
    "init": "new",
    "label": "annotate",
    "manifest": "cohort csv list slides table",
    "provenance": "lineage trace",
    "run": "pipeline study-run",
    "stress": "robustness",
    "tile": "extract patch patches patchify tiling",
    "train": "fit",
    "verify": "check checksum",
}
_MEANT = [{word: name for name, words in table.items() for word in words.split()} for table in (_OPTIONS, _COMMANDS)]
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class SuggestingCommand(TyperCommand):
    """A command that says which of its options an unknown one may have meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line."""
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            unknown: Any = error
            if hasattr(unknown, "possibilities"):
                known = [option for parameter in self.params for option in parameter.opts if option.startswith("--")]
                _suggest(unknown, [f"--{name}" for name in _meant(unknown.option_name, known, _MEANT[0])])
            raise


class SuggestingGroup(TyperGroup):
    """A group that says which of its commands an unknown one may have meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names."""
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            _suggest(error, _meant(args[0], [*self.commands], _MEANT[1]))
            raise


def _meant(word: str, known: list[str], words: dict[str, str]) -> list[str]:
    """What of the known names a word may mean: the field's other word for it, or a similar spelling."""
    plain = word.lstrip("-").lower().replace("_", "-")
    names = [name.lstrip("-") for name in known]
    meant = plain if plain in names else words.get(plain)
    return [meant] if meant in names else difflib.get_close_matches(plain, names, n=2, cutoff=0.7)


def _suggest(error: Any, names: list[str]) -> None:
    error.possibilities = []
    if names:
        error.message = f"{error.message.rstrip('.')}. Did you mean {' or '.join(names)}?"
