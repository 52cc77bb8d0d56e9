"""Known models by name: those that come with the package, and those of the WSInfer zoo. Knows nothing of torch.

Weights of the zoo are never part of specslide: they come from a folder of the user's or, where a network is, the hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tiling.core.files import read_json
from training.models.info import INFO

_HERE = Path(__file__).parent / "packaged"

PACKAGED: Final[dict[str, Path]] = {"breast-idc": _HERE / "breast-idc"}
"""Name -> model folder. Each says in its model.json what it is for, and under which licence."""


def packaged_name(weights_sha256: str) -> str | None:
    """The name of the model that comes with the package and has these weights; None of any other."""
    return _packaged_weights().get(weights_sha256)


@cache
def _packaged_weights() -> dict[str, str]:
    return {read_json(folder / INFO)["hashes"]["weights.safetensors"]: name for name, folder in PACKAGED.items()}


@dataclass(frozen=True)
class ZooModel:
    """What is known of one model of the WSInfer zoo before it is fetched."""

    task: str
    hub: str
    """Where it lies on the Hugging Face hub: `owner/name`."""


def _zoo(name: str, task: str) -> tuple[str, ZooModel]:
    return name, ZooModel(task, f"kaczmarj/{name}")


ZOO: Final[dict[str, ZooModel]] = dict(
    (  # https://huggingface.co/collections/kaczmarj/h-and-e-patch-classification-6638d7c41040b00f87a06f58
        _zoo("breast-tumor-resnet34.tcga-brca", "breast, H&E: tumour"),
        _zoo("breast-tumor-inception_v4.tcga-brca", "breast, H&E: tumour"),
        _zoo("breast-tumor-vgg16mod.tcga-brca", "breast, H&E: tumour"),
        _zoo("colorectal-resnet34.penn", "colon and rectum, H&E: tissue classes"),
        _zoo("colorectal-tiatoolbox-resnet50.kather100k", "colon and rectum, H&E: nine tissue classes"),
        _zoo("lung-tumor-resnet34.tcga-luad", "lung adenocarcinoma, H&E: growth patterns"),
        _zoo("lymphnodes-tiatoolbox-resnet50.patchcamelyon", "lymph node, H&E: metastasis"),
        _zoo("pancancer-lymphocytes-inceptionv4.tcga", "many cancers, H&E: lymphocytes"),
        _zoo("pancreas-tumor-preactresnet34.tcga-paad", "pancreas, H&E: tumour"),
        _zoo("prostate-tumor-resnet34.tcga-prad", "prostate, H&E: benign, grade 3, grade 4 or 5"),
    )
)
"""The models of `wsinfer:NAME`; `wsinfer:OWNER/NAME` is any other of the hub."""
