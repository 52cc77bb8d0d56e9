"""One cohort with WSInfer, run in a venv that has it.

    python with_wsinfer.py SLIDES_DIR OUT CONFIG_JSON MODEL

Settings: its defaults, on openslide. Beside a CPU-only torch the wheel of torchvision cannot load its operators; the
two schemas it looks for are declared, which is all that importing it needs. Its list of published models, which it
fetches whenever it starts, is left empty: this machine may have no network. The time is that of `run_inference`, its
loop over the tiles, without the search for tissue.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def main(slides: str, out: str, config: str, model: str) -> None:
    torch = importlib.import_module("torch")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    zoo: Any = importlib.import_module("wsinfer_zoo.client")
    zoo.load_registry = lambda: SimpleNamespace(models={})
    infer: Any = importlib.import_module("wsinfer.cli.infer")
    inner, took = infer.run_inference, []

    def timed(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = inner(*args, **options)
        took.append(time.perf_counter() - start)
        return result

    infer.run_inference = timed
    command = importlib.import_module("wsinfer.cli.cli").cli
    run = ["run", "--wsi-dir", slides, "--results-dir", out, "--config", config, "--model-path", model]
    command(["--backend", "openslide", *run], standalone_mode=False)
    tiles = sum(len(table.read_text().splitlines()) - 1 for table in Path(out).glob("model-outputs-csv/*.csv"))
    print(json.dumps({"tiles": tiles, "seconds": took[0]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
