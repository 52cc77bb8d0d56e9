from __future__ import annotations

import pytest
import torch

from training.augment import AUGMENTATIONS, jitter, light, turn, unchanged


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


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations_keep_shape_range_and_seed(name: str) -> None:
    pixels = torch.rand(8, 3, 16, 16, generator=random_state(1))
    before = pixels.clone()
    out = AUGMENTATIONS[name](pixels, random_state(2))
    assert out.shape == pixels.shape
    assert out.dtype == torch.float32
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(pixels, before), "the input is left alone"
    assert torch.equal(out, AUGMENTATIONS[name](pixels, random_state(2)))
    assert name == "none" or not torch.equal(out, AUGMENTATIONS[name](pixels, random_state(3)))


def test_unchanged_is_unchanged() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    assert torch.equal(unchanged(pixels, random_state()), pixels)
    assert not torch.equal(light(pixels, random_state()), pixels)
