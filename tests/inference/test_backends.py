"""Batches that do not fit, the choice of a backend, and ONNX Runtime against torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference import backends
from inference.backends import (
    AGREEMENT,
    BatchSizer,
    QuickModel,
    auto_batch_size,
    choose_backend,
    onnx_predict,
    quickest,
    uses_bf16,
)
from tests.inference.conftest import MakeModel
from tiling.core.errors import ConfigError, ModelError
from training import TileModel, load_model
from training.evaluation.evaluate import made_with

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def some_tiles(count: int, side: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


@dataclass
class Small:
    """A device on which only so many tiles fit; what it says of a tile is the mean of its red channel."""

    fits: int
    error: Exception = field(default_factory=lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    asked: list[int] = field(default_factory=list)

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.asked.append(len(tiles))
        if len(tiles) > self.fits:
            raise self.error
        red = tiles[..., 0].mean((1, 2)) / 255
        return np.stack([1 - red, red], 1).astype(np.float32)


@pytest.mark.parametrize(
    ("fits", "asked"),
    [(20, [13]), (13, [13]), (12, [13, 6, 6, 1]), (4, [13, 6, 3, 3, 3, 3, 1]), (1, [13, 6, 3, *[1] * 13])],
)
def test_batches_are_halved_until_they_fit_with_the_same_results(fits: int, asked: list[int]) -> None:
    tiles, small = some_tiles(13), Small(fits)
    np.testing.assert_array_equal(BatchSizer(small)(tiles), Small(99)(tiles))
    assert small.asked == asked


def test_what_fitted_is_remembered() -> None:
    tiles, small = some_tiles(8), Small(3)
    halving = BatchSizer(small)
    halving(tiles)
    small.asked.clear()
    np.testing.assert_array_equal(halving(tiles), Small(99)(tiles))
    assert halving.largest == 2
    assert small.asked == [2, 2, 2, 2]


def test_what_fitted_is_remembered_of_a_model() -> None:
    """A slide's predictor is its own; the next slide's does not learn it again, and another model's does."""
    tiles = some_tiles(8)
    for model, asked in (("a", [8, 4, 2, 2, 2, 2]), ("a", [2, 2, 2, 2]), ("b", [8, 4, 2, 2, 2, 2])):
        small = Small(3)
        np.testing.assert_array_equal(BatchSizer(small, model)(tiles), Small(99)(tiles))
        assert small.asked == asked


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_runs_out_in_several_words(error: Exception) -> None:
    assert BatchSizer(Small(2, error))(some_tiles(5)).shape == (5, 2)


def test_a_tile_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"memory.*--device cpu"):
        BatchSizer(Small(0))(some_tiles(4))


def test_other_errors_are_not_taken_for_it() -> None:
    small = Small(2, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        BatchSizer(small)(some_tiles(4))
    assert small.asked == [4]


@pytest.mark.parametrize(
    ("device", "side", "tiles"),
    [(CPU, 32, 64), (CPU, 256, 16), (CPU, 224, 16), (CPU, 1024, 1), (CPU, 4096, 1), (GPU, 256, 256), (GPU, 96, 512)],
)
def test_the_batch_size_is_found_from_device_and_side(
    model: TileModel, device: torch.device, side: int, tiles: int
) -> None:
    info = model.info.model_copy(update={"input_px": side, "tile_px": 32})
    assert auto_batch_size(replace(model, info=info, device=device)) == tiles


def test_a_test_of_many_tiles_is_as_by_torch(model: TileModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few are left to torch, and models of bags, which no tile passes through; no batch is larger than pays."""
    small = Small(99)
    with monkeypatch.context() as patch:
        patch.setattr(backends, "choose_backend", lambda *asked: ("torch", small))
        capped = quickest(model, 2000)
    assert isinstance(capped, QuickModel)
    capped.predict(some_tiles(150))
    assert small.asked == [64, 64, 22]
    quick, tiles = quickest(model, 2000), some_tiles(9)
    assert isinstance(quick, QuickModel)
    assert (quick.info, quick.sha256, quick.device) == (model.info, model.sha256, model.device)
    assert (made_with(quick)["backend"], made_with(model)["backend"]) == ("onnx", "torch")
    np.testing.assert_allclose(quick.predict(tiles), model.predict(tiles), atol=AGREEMENT)
    assert quickest(model, 1999) is model
    bags: Any = object()
    assert quickest(bags, 10**6) is bags


# ------------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize(
    ("able", "precision", "found"),
    [(True, "auto", True), (True, "32", False), (True, "bf16", True), (False, "auto", False)],
)
def test_bf16_where_the_hardware_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, able: bool, precision: Any, found: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: able)
    assert uses_bf16(GPU, precision) is found
    assert not uses_bf16(CPU, "auto")


def test_bf16_is_refused_where_it_is_imitated() -> None:
    with pytest.raises(ConfigError, match=r"^precision: "):
        uses_bf16(CPU, "bf16")


# -------------------------------------------------------------------------------------------------- ONNX Runtime


def test_torch_is_the_models_own_prediction(model: TileModel) -> None:
    name, predict = choose_backend(model, "torch", "auto")
    tiles = some_tiles(3)
    assert name == "torch"
    np.testing.assert_array_equal(predict(tiles), model.predict(tiles))


@pytest.mark.parametrize(("tile_px", "temperature"), [(32, 1.0), (50, 2.5)])
def test_onnx_is_equal_to_torch_for_any_batch(make_model: MakeModel, tile_px: int, temperature: float) -> None:
    model = load_model(make_model(tile_px=tile_px, temperature=temperature))
    predict = onnx_predict(model.network, temperature)
    for count in (1, 2, 7):
        tiles = some_tiles(count, tile_px)
        found = predict(tiles)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, model.predict(tiles), atol=AGREEMENT, rtol=0)
        assert found[:, 1].std() > 0 or count == 1


def test_onnx_is_chosen_when_asked_for(model: TileModel) -> None:
    name, predict = choose_backend(model, "onnx", "auto")
    assert name == "onnx"
    np.testing.assert_allclose(predict(some_tiles(3)), model.predict(some_tiles(3)), atol=AGREEMENT, rtol=0)
    assert choose_backend(model, "onnx", "auto")[1] is predict, "made once for all slides"


def test_the_models_of_an_ensemble_are_turned_into_onnx_once(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [load_model(make_model(f"model-{seed}", seed=seed)) for seed in range(6)]
    monkeypatch.setattr(backends, "onnx_predict", lambda *asked: lambda tiles: np.zeros((len(tiles), 2), np.float32))
    monkeypatch.setattr(backends, "require_agreement", lambda *answers: None)
    first, second = ([choose_backend(model, "onnx", "32")[1] for model in models] for _ in range(2))
    assert all(a is b for a, b in zip(first, second, strict=True))


def test_auto_is_onnx_on_a_cpu(model: TileModel) -> None:
    name, predict = choose_backend(model, "auto", "auto")
    assert name == "onnx"
    np.testing.assert_array_equal(predict(some_tiles(3)), choose_backend(model, "onnx", "auto")[1](some_tiles(3)))
    assert choose_backend(model, "auto", "auto")[1] is predict, "made once for all slides"


def test_onnx_s_bytes_depend_on_neither_threads_nor_batches(make_model: MakeModel) -> None:
    model, tiles, threads = load_model(make_model()), some_tiles(13), torch.get_num_threads()
    found = set()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            predict = onnx_predict(model.network, 1.0)
            found |= {predict(tiles).tobytes(), np.concatenate([predict(tiles[:4]), predict(tiles[4:])]).tobytes()}
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_a_wrong_onnx_is_seen_and_said_once(
    monkeypatch: pytest.MonkeyPatch, make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(make_model())
    other = load_model(make_model("other", seed=5))
    monkeypatch.setattr(backends, "onnx_predict", lambda *asked: lambda tiles: 1 - other.predict(tiles))
    with pytest.raises(ModelError, match=r"ONNX.*--backend torch"):
        choose_backend(model, "onnx", "auto")
    for _ in range(2):
        name, predict = choose_backend(model, "auto", "auto")
        assert name == "torch"
        np.testing.assert_array_equal(predict(some_tiles(3)), model.predict(some_tiles(3)))
    assert caplog.text.count("torch is used") == 1


def test_a_network_that_has_no_onnx_is_computed_by_torch(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    """The exporter knows no Bessel functions."""
    model = load_model(make_model())
    logits = model.network.logits
    bessel = torch.special.bessel_j0
    model.network.logits = lambda pixels: bessel(logits(pixels))  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"turned into ONNX.*--backend torch"):
        choose_backend(model, "onnx", "auto")
    name, predict = choose_backend(model, "auto", "auto")
    assert name == "torch"
    np.testing.assert_array_equal(predict(some_tiles(3)), model.predict(some_tiles(3)))
    assert "torch is used" in caplog.text


def test_onnx_is_for_the_cpu(model: TileModel) -> None:
    on_gpu = replace(model, device=GPU)
    assert choose_backend(on_gpu, "auto", "32")[0] == "torch"
    with pytest.raises(ConfigError, match=r"--backend torch.*--device cpu"):
        choose_backend(on_gpu, "onnx", "32")


@pytest.mark.gpu
def test_bf16_on_a_gpu_is_near_32_bits(make_model: MakeModel) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = load_model(make_model(), "cuda")
    tiles = some_tiles(16)
    low, full = (choose_backend(model, "torch", precision)[1](tiles) for precision in ("bf16", "32"))
    np.testing.assert_allclose(low, full, atol=0.02)
