"""How a model's probabilities are computed: by torch on its device, in mixed precision (bf16) or 32 bits, or by ONNX
Runtime on a CPU.

Tiles go to the device as uint8 and are normalised there. A batch that does not fit in memory is halved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from inference.config import Backend, Precision
from inference.onnx import onnx_graph, onnx_session
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.errors import ConfigError, ModelError
from training import TileModel
from training.devices import one_thread
from training.models.classifier import TileClassifier
from training.models.ood import Novelty

if TYPE_CHECKING:
    from training import BagModel, ModelInfo

log = logging.getLogger(__name__)

Predict = Callable[[UInt8Array], Float32Array]
"""Tiles uint8 (B, T, T, 3) -> class probabilities float32 (B, C).

Of a model with `novelty` (B, C + 1): last comes how unlike its training tiles a tile is, see training.models.ood.
"""

AGREEMENT = 1e-4
"""How far a probability of ONNX Runtime's may be from torch's."""
NOVELTY_AGREEMENT = 1e-3
"""How far the novelty may be, absolutely up to 1 and relatively above."""
# What torch's allocator on a CPU and ONNX Runtime say, which have no type of their own; and cuBLAS and cuDNN.
_NO_MEMORY = ("allocate memory", "ALLOC_FAILED")
_PROBE_TILES = 4
_PAYS_FROM = 2000
"""Predictions of a test; as many of a small network's take a few seconds, making its graph up to one."""
# Maximum input pixels and tiles of a batch: about 1 GiB of activations of a small network on a CPU, where larger ones
# gain nothing; on a GPU enough to keep it busy, and halved where it has less memory.
_AUTO_PIXELS = {"cpu": (1 << 20, 64), "cuda": (1 << 24, 512)}


def auto_batch_size(model: TileModel) -> int:
    """Tiles to show a model at once: a power of two that its device and the size of its input decide, nothing else.

    It is not timed, so that equal inputs give equal bytes. Too large a one is halved; see `BatchSizer`.
    """
    return auto_batch(model.device, max(model.info.input_px, model.info.tile_px))


def auto_batch(device: torch.device, side_px: int) -> int:
    """The same for pictures of a side."""
    pixels, limit = _AUTO_PIXELS.get(device.type, _AUTO_PIXELS["cpu"])
    fitting = pixels // side_px**2
    return 1 << (max(1, min(fitting, limit)).bit_length() - 1)


def choose_backend(model: TileModel, backend: Backend, precision: Precision) -> tuple[str, Predict]:
    """The backend that computes, "torch" or "onnx", and its prediction function.

    "auto" is ONNX Runtime for a model on a CPU, and torch for one on a GPU, of TorchScript, or that ONNX Runtime does
    not compute as torch does. Nothing is timed, so that equal inputs give equal bytes. Raises ConfigError for what this
    machine cannot do, and, with "onnx", ModelError for a model that ONNX Runtime does not compute.
    """
    plain = torch_predict(model, precision)
    if backend == "torch":
        return "torch", plain
    scripted, on_cpu = isinstance(model.network.backbone, torch.jit.ScriptModule), model.device.type == "cpu"
    if backend == "auto" and (scripted or not on_cpu):
        return "torch", plain
    if scripted:
        raise ModelError("the model", "is TorchScript, which ONNX Runtime does not run", "use --backend torch")
    if not on_cpu:
        raise ConfigError("backend", "ONNX Runtime computes on the CPU", "use --backend torch, or --device cpu")
    of = model.info
    chosen = agreeing_onnx(model.network, of.temperature, model.novelty, of.tile_px, backend == "onnx")
    return ("torch", plain) if chosen is None else ("onnx", chosen)


@dataclass(frozen=True)
class QuickModel:
    """A tile classifier without its network, as tests know it: see `training.evaluation.predictions.Model`."""

    info: ModelInfo
    sha256: str
    device: torch.device
    predict: Predict
    backend: str


def quickest(model: TileModel | BagModel, predictions: int) -> TileModel | BagModel | QuickModel:
    """The model as a test that asks for so many predictions is to see it: by the rule of `choose_backend`, in 32 bits.

    Batches are no larger than `auto_batch_size`, beyond which a CPU takes more memory and time. For few predictions,
    where making ONNX Runtime's graph would not pay, and of bags, it is the model itself.
    """
    if predictions < _PAYS_FROM or not isinstance(model, TileModel):
        return model
    backend, predict = choose_backend(replace(model, novelty=None), "auto", "32")
    sizer = BatchSizer(predict, (model.sha256, str(model.device), backend, "test"))
    sizer.largest = sizer.largest or auto_batch_size(model)
    return QuickModel(model.info, model.sha256, model.device, sizer, backend)


@lru_cache(maxsize=32)  # a cohort's slides share what took seconds to make; ensembles are smaller than that
def agreeing_onnx(
    network: TileClassifier, temperature: float, novelty: Novelty | None, tile_px: int, required: bool
) -> Predict | None:
    """ONNX Runtime's prediction, shown on a few made-up tiles to be torch's.

    Args:
        network: The network.
        temperature: Its calibration, > 0.
        novelty: Its out-of-distribution detection, or None.
        tile_px: Side of the tiles, pixels.
        required: Whether there is no other way.

    Returns:
        The prediction; None: torch is to be used, and a warning has said why.

    Raises:
        ModelError: If it is required and ONNX Runtime cannot compute the network, or not what torch computes.
    """
    tiles = np.random.default_rng(0).integers(0, 256, (_PROBE_TILES, tile_px, tile_px, 3), np.uint8)
    outputs = _Outputs(network, novelty is not None)

    def plain(tiles: UInt8Array) -> Float32Array:
        with torch.inference_mode(), one_thread():
            return _answers(outputs(network.pixels(torch.from_numpy(tiles))), temperature, novelty)

    try:
        other = onnx_predict(network, temperature, novelty)
        require_agreement(BatchSizer(other)(tiles), BatchSizer(plain)(tiles), novelty is not None)
    except ModelError as error:
        if required:
            raise
        log.warning("the model %s: torch is used, which is slower", error.what)
        return None
    return other


def require_agreement(found: Float32Array, expected: Float32Array, novelty: bool) -> None:
    """Raise ModelError unless the answers (B, C), or with novelty (B, C + 1), agree."""
    apart, allowed = np.abs(found - expected), np.full_like(expected, AGREEMENT)
    if novelty:
        allowed[:, -1] = NOVELTY_AGREEMENT * np.maximum(expected[:, -1], 1)
    worst = np.unravel_index(np.argmax(apart / allowed), apart.shape)  # the first NaN, if there is one
    if not apart[worst] <= allowed[worst]:
        raise ModelError("the model", f"ONNX Runtime is {apart[worst]:.2g} from torch", "use --backend torch")


def uses_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether a network computes in bf16: where the hardware does. Imitated, it is far slower than 32 bits.

    Raises ConfigError where it is asked for and cannot be done.
    """
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not able:
        raise ConfigError("precision", "bf16 needs a GPU that computes in it", "use 32 or auto")
    return able and precision != "32"


def torch_predict(model: TileModel, precision: Precision) -> Predict:
    """The model's own prediction, in bf16 where that is meant; softmax and distances are float32 then too."""
    asked = model.predict if model.novelty is None else partial(_with_novelty, model)
    if not uses_bf16(model.device, precision):
        return asked

    def predict(tiles: UInt8Array) -> Float32Array:
        with torch.autocast("cuda", torch.bfloat16):
            return asked(tiles)

    return predict


def _with_novelty(model: TileModel, tiles: UInt8Array) -> Float32Array:
    probabilities, ratios = model.predict_with_novelty(tiles)
    return probabilities if ratios is None else np.column_stack([probabilities, ratios])


def onnx_predict(network: TileClassifier, temperature: float, novelty: Novelty | None = None) -> Predict:
    """The prediction of a network on the CPU by ONNX Runtime, with as many threads as torch has.

    Only the backbone is ONNX's: tiles are resized, and stains normalised, by the code that training used. Raises
    ModelError for a network it cannot take.
    """
    outputs = ["logits"] if novelty is None else ["logits", "features"]
    example = torch.zeros(2, 3, network.input_px, network.input_px)
    graph = onnx_graph(_Outputs(network, novelty is not None), example, "pixels", outputs)
    try:
        run = onnx_session(graph)
    except RuntimeError as error:
        raise ModelError("the model", f"is not computed by ONNX Runtime ({error})", "use --backend torch") from None

    def predict(tiles: UInt8Array) -> Float32Array:
        with torch.inference_mode():
            pixels = network.pixels(torch.from_numpy(np.ascontiguousarray(tiles)))
            return _answers([torch.from_numpy(output) for output in run(pixels.numpy())], temperature, novelty)

    return predict


class _Outputs(nn.Module):
    """Pixels -> (logits,), or with features (logits, features)."""

    def __init__(self, network: TileClassifier, features: bool) -> None:
        super().__init__()
        self.network, self.features = network, features

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.network.logits_and_features(pixels) if self.features else (self.network.logits(pixels),)


def _answers(outputs: Sequence[Tensor], temperature: float, novelty: Novelty | None) -> Float32Array:
    """What `Predict` gives, of what the network does."""
    logits, *features = outputs
    probabilities = torch.softmax(logits / temperature, dim=1).numpy()
    return probabilities if novelty is None else np.column_stack([probabilities, novelty.ratios(*features).numpy()])


FITTING: dict[Hashable, int] = {}  # a cohort's slides share what was learned


class BatchSizer:
    """A prediction whose batches are halved, from now on, when one does not fit in the device's memory.

    Tiles do not see each other, so the results are those of the whole batch. Raises ModelError if a single tile does
    not fit.
    """

    def __init__(self, predict: Predict, of: Hashable = None) -> None:
        """What is learned `of` a model on its device, this process remembers."""
        self._predict, self._of = predict, of
        self.largest: int | None = FITTING.get(of)
        """Tiles that are known to fit; None while nothing has failed."""

    def __call__(self, tiles: UInt8Array) -> Float32Array:
        """As `Predict`, for at least one tile."""
        parts: list[Float32Array] = []
        start = 0
        while start < len(tiles):
            part = tiles[start : start + (self.largest or len(tiles))]
            found = self._tried(part)
            if found is None:
                self.largest = len(part) // 2
                if self._of is not None:
                    FITTING[self._of] = self.largest
                log.warning("%d tiles at once do not fit in memory, going on with %d", len(part), self.largest)
            else:
                parts.append(found)
                start += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _tried(self, tiles: UInt8Array) -> Float32Array | None:
        try:
            return self._predict(tiles)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(tiles) == 1:
                fix = "close what else uses the memory, or use --device cpu"
                raise ModelError("the model", "does not fit in the device's memory with a single tile", fix) from None
        # Only now is the error gone, and with it what its frames held.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def _out_of_memory(error: Exception) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(word in str(error) for word in _NO_MEMORY)
