from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tiling.quality import HED
from training import augment
from training.augment import crop, jitter, light, several, stain_jitter, turn, unchanged
from training.augment_ops import STRONG, Operation
from training.augmentations import AUGMENTATIONS


def random_state(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_turn_gives_all_eight_symmetries_and_nothing_else() -> None:
    square = torch.arange(9.0).reshape(1, 1, 3, 3).expand(-1, 3, -1, -1)
    turned = turn(square.repeat(400, 1, 1, 1), random_state())
    symmetries = {
        tuple(torch.rot90(side, k, (-2, -1)).flatten().tolist()) for side in (square, square.flip(-1)) for k in range(4)
    }
    found = [tuple(t.flatten().tolist()) for t in turned]
    assert set(found) == symmetries
    assert min(found.count(s) for s in symmetries) > 25


def test_jitter_changes_each_sample_by_itself_and_mildly() -> None:
    grey = torch.full((64, 3, 4, 4), 0.5)
    means = jitter(grey, random_state()).mean(dim=(2, 3))
    assert (means - 0.5).abs().max() <= 0.15 + 1e-6
    assert means.std(dim=0).min() > 0.03
    assert (means[:, 0] - means[:, 1]).abs().max() > 0.03


def test_crop_moves_whole_pixels_and_mirrors_what_it_lacks() -> None:
    side, limit = 32, 2
    pixels = torch.rand(1, 3, side, side, generator=random_state(1)).numpy()
    padded = np.pad(pixels, ((0, 0), (0, 0), (limit, limit), (limit, limit)), mode="reflect")[0]
    windows = {
        padded[:, y : y + side, x : x + side].tobytes() for y in range(2 * limit + 1) for x in range(2 * limit + 1)
    }
    cropped = crop(torch.from_numpy(pixels).repeat(400, 1, 1, 1), random_state())
    assert {sample.numpy().tobytes() for sample in cropped} == windows


def test_stain_jitter_changes_amounts_and_nothing_else() -> None:
    """Unmixed in float64 by numpy, each sample's amounts follow a straight line, within the limits, from before."""
    random = np.random.default_rng(0)
    before = random.uniform(0.2, 1.0, (16, 3, 200))  # amounts; light stays below white after any jitter
    light_ = np.exp(-np.einsum("sc,bsn->bcn", HED, before))
    out = stain_jitter(torch.from_numpy(light_).float().reshape(16, 3, 10, 20), random_state())
    after = np.einsum("cs,bcn->bsn", np.linalg.inv(HED), -np.log(out.double().reshape(16, 3, 200).numpy()))
    scales, shifts = [], []
    for b in range(16):
        for s in range(3):
            (scale, shift), residual, *_ = np.polyfit(before[b, s], after[b, s], 1, full=True)
            assert residual[0] < 1e-6
            scales.append(scale - 1)
            shifts.append(shift)
    for changes, limit in ((scales, augment.STAIN_SCALE), (shifts, augment.STAIN_SHIFT)):
        assert np.abs(changes).max() <= limit + 1e-3
        assert np.abs(changes).max() > 0.8 * limit
        assert len(np.unique(np.round(changes, 5))) > 40, "each sample and stain by itself"


def test_black_and_white_survive_stain_jitter() -> None:
    extremes = torch.cat([torch.zeros(8, 3, 4, 4), torch.ones(8, 3, 4, 4)])
    out = stain_jitter(extremes, random_state())
    assert torch.isfinite(out).all()
    assert out[:8].max() < 0.1
    assert out[8:].min() > 0.85


Recorded = list[tuple[str, torch.Tensor, torch.Tensor]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """The calls of `several`: operation, first pixel of each sample, amounts. Pixels are left as they are."""
    calls: Recorded = []

    def watch(name: str) -> Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]:
        def apply(pixels: torch.Tensor, amount: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            calls.append((name, pixels[:, 0, 0, 0].clone(), amount))
            return pixels

        return apply

    watched = {name: Operation(watch(name), op.low, op.high, op.whole) for name, op in STRONG.items()}
    monkeypatch.setattr(augment, "STRONG", watched)
    return calls


def test_each_sample_draws_two_to_four_operations_of_its_own(recorded: Recorded) -> None:
    count = 4000
    samples = torch.arange(count).float()[:, None, None, None].expand(-1, 3, 2, 2) / count
    several(samples, random_state())
    drawn: dict[int, list[str]] = {number: [] for number in range(count)}
    for name, first, _ in recorded:
        for number in (first * count).round().int().tolist():
            drawn[number].append(name)
    assert all(len(set(names)) == len(names) for names in drawn.values()), "no operation twice on a sample"
    lengths = np.bincount([len(names) for names in drawn.values()], minlength=5)
    np.testing.assert_allclose(lengths / count, [0, 0, 0.5, 0.3, 0.2], atol=0.035)  # over 4 standard errors
    uses = {name: sum(name in names for names in drawn.values()) for name in STRONG}
    np.testing.assert_allclose(np.array(list(uses.values())) / count, 2.7 / len(STRONG), atol=0.025)
    assert {names[0] for names in drawn.values()} == set(STRONG), "any may come first"
    assert len(recorded) <= 4 * len(STRONG), "samples with the same draw go together"


def test_amounts_fill_the_ranges_of_strong_augment(recorded: Recorded) -> None:
    several(torch.zeros(4000, 3, 2, 2), random_state())
    ranges = {
        "red": (0, 2), "green": (0, 2), "blue": (0, 2), "hue": (-0.5, 0.5), "saturation": (0, 2),
        "brightness": (0.1, 2), "contrast": (0.1, 2), "gamma": (0.1, 2), "solarise": (0, 255), "posterise": (1, 8),
        "sharpen": (0, 1), "emboss": (0, 1), "blur": (0, 3), "noise": (0, 0.2), "jpeg": (0, 100),
    }  # fmt: skip
    assert set(ranges) | {"autocontrast", "equalise", "grey"} == set(STRONG)
    for name, (low, high) in ranges.items():
        amounts = torch.cat([amount for called, _, amount in recorded if called == name])
        slack = 0.02 * (high - low)
        assert low <= amounts.min() <= low + slack
        assert high - slack <= amounts.max() <= high
        assert torch.equal(amounts, amounts.round()) == (name in {"solarise", "posterise", "jpeg"})


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations_keep_shape_range_and_seed(name: str) -> None:
    pixels = torch.rand(32, 3, 16, 16, generator=random_state(1))
    before = pixels.clone()
    out = AUGMENTATIONS[name](pixels, random_state(2))
    assert out.shape == pixels.shape
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(pixels, before), "the input is left alone"
    assert torch.equal(out, AUGMENTATIONS[name](pixels, random_state(2)))
    assert name == "none" or not torch.equal(out, AUGMENTATIONS[name](pixels, random_state(3)))


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations_take_bytes_and_ignore_the_global_state(name: str) -> None:
    whole = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=random_state(1))
    torch.manual_seed(1)
    out = AUGMENTATIONS[name](whole.float() / 255, random_state(2))
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(out, AUGMENTATIONS[name](whole, random_state(2)))


def test_unchanged_is_unchanged() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    assert torch.equal(unchanged(pixels, random_state()), pixels)
    assert not torch.equal(light(pixels, random_state()), pixels)


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations_run_deterministically_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pixels = torch.rand(64, 3, 32, 32, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        first, again = (AUGMENTATIONS[name](pixels, torch.Generator("cuda").manual_seed(0)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert first.is_cuda
    assert torch.equal(first, again)
