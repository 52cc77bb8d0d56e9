from __future__ import annotations

from training.samplers import Shuffled


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = Shuffled(50, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(Shuffled(50, seed=4)) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
