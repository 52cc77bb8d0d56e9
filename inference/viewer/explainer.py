"""On which parts of a tile the model of its heatmap depends, computed when a reader of the viewer asks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

from inference.occlusion import Positives, occlusion_map, require_occlusion
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.errors import ModelError

_KEPT = 256  # maps, in memory


class Explainer:
    """Models by the hashes that heatmaps call them by. Thread-safe. Raises ConfigError as `require_occlusion`."""

    def __init__(self, positives: Mapping[str, Positives]) -> None:
        require_occlusion()
        self._positives = positives
        self._kept: OrderedDict[tuple[str, bytes], tuple[float, Float32Array]] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, model_sha256: str) -> bool:
        """Whether the model of a heatmap is at hand."""
        return model_sha256 in self._positives

    def explain(self, model_sha256: str, tile: UInt8Array) -> tuple[float, Float32Array]:
        """A tile's probability, computed again, and its `occlusion_map`.

        One at a time: raises ModelError while another is computed, so that whoever asks for many keeps nobody waiting.
        """
        if not self._lock.acquire(blocking=False):
            raise ModelError("the model", "is busy with another tile", "ask again")
        try:
            key = (model_sha256, tile.tobytes())
            if key not in self._kept:
                positives = self._positives[model_sha256]
                self._kept[key] = float(positives(tile[None])[0]), occlusion_map(tile, positives)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]
        finally:
            self._lock.release()
