"""Heads against formulas in numpy; chunks, padding and order change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.mil.heads import HEADS, Bag, Chunk, Head, HeadShape

Floats = NDArray[np.float64]

D, C, H, K = 7, 3, 8, 4


def make(name: str) -> Head:
    torch.manual_seed(3)
    return HEADS[name](HeadShape(D, C, H, 0.25, K)).eval()


def tiles(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32))


def bag(features: Tensor, size: int | None = None) -> list[Chunk]:
    """One bag, in chunks of so many tiles."""
    parts = torch.split(features, size or len(features))
    return [Chunk(part[None], torch.ones(1, len(part), dtype=torch.bool)) for part in parts]


def numbers(head: Head) -> dict[str, Floats]:
    return {name: value.detach().numpy().astype(np.float64) for name, value in head.state_dict().items()}


def softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))


def embedded(p: dict[str, Floats], x: Floats) -> Floats:
    return np.asarray(np.maximum(x @ p["embed.0.weight"].T + p["embed.0.bias"], 0))


def pooled_by_formula(name: str, p: dict[str, Floats], x: Floats) -> tuple[Floats, Floats]:
    """Logits (C,) and attention (n,) as the papers write them."""
    h = embedded(p, x)
    if name in ("max", "top-k"):
        each, k = h @ p["classify.weight"].T + p["classify.bias"], min(len(x), K if name == "top-k" else 1)
        first = np.argsort(-each, axis=0)[:k]
        return np.take_along_axis(each, first, 0).mean(axis=0), np.bincount(first.ravel(), minlength=len(x)) / (C * k)
    if name == "mean":
        a = np.full(len(x), 1 / len(x))
    else:
        direction = np.tanh(h @ p["direction.weight"].T + p["direction.bias"])
        if name == "gated":
            direction = direction / (1 + np.exp(-(h @ p["gate.weight"].T + p["gate.bias"])))
        a = softmax(direction @ p["weight.weight"][0])
    return (a @ h) @ p["classify.weight"].T + p["classify.bias"], a


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("name", ["mean", "max", "top-k", "attention", "gated"])
def test_a_head_is_its_formula(name: str, count: int) -> None:
    head, x = make(name), tiles(count)
    logits, attention = pooled_by_formula(name, numbers(head), x.numpy().astype(np.float64))
    with torch.inference_mode():
        found = head(bag(x))
    np.testing.assert_allclose(found.logits[0].numpy(), logits, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.attention[0].numpy(), attention, rtol=0, atol=1e-6)


def block_by_formula(p: dict[str, Floats], name: str, queries: Floats, keys: Floats) -> tuple[Floats, Floats]:
    """MAB(X, Y) of Lee et al. 2019, and the weights (n, q), the mean over the attention heads."""

    def norm(values: Floats, layer: str) -> Floats:
        centred = values - values.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return np.asarray(scaled * p[f"{name}.{layer}.weight"] + p[f"{name}.{layer}.bias"])

    def linear(values: Floats, layer: str) -> Floats:
        return np.asarray(values @ p[f"{name}.{layer}.weight"].T + p[f"{name}.{layer}.bias"])

    q, k, v, side = linear(queries, "query"), linear(keys, "key"), linear(keys, "value"), H // 4
    parts, weights = [], []
    for first in range(0, H, side):
        own = slice(first, first + side)
        weights.append(softmax(k[:, own] @ q[:, own].T / np.sqrt(side)))
        parts.append(weights[-1].T @ v[:, own])
    attended = norm(queries + np.concatenate(parts, axis=1), "after_attention")
    return norm(attended + np.maximum(linear(attended, "layer.0"), 0), "after_layer"), np.mean(weights, axis=0)


def test_the_transformer_is_its_formula() -> None:
    head, x = make("transformer"), tiles(40)
    p = numbers(head)
    h = embedded(p, x.numpy().astype(np.float64))
    summary, _ = block_by_formula(p, "gather", p["points"], h)
    seen, _ = block_by_formula(p, "spread", h, summary)
    vector, attention = block_by_formula(p, "read", p["seed"], seen)
    with torch.inference_mode():
        found = head(bag(x))
    logits = vector[0] @ p["classify.weight"].T + p["classify.bias"]
    np.testing.assert_allclose(found.logits[0].numpy(), logits, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.attention[0].numpy(), attention[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_the_order_of_tiles_changes_nothing(name: str) -> None:
    head, x = make(name), tiles(60)
    order = torch.from_numpy(np.random.default_rng(1).permutation(60))
    with torch.inference_mode():
        found, other = head(bag(x)), head(bag(x[order]))
    torch.testing.assert_close(found.logits, other.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.attention[:, order], other.attention, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 59, 60])
@pytest.mark.parametrize("name", HEADS)
def test_chunks_change_nothing(name: str, size: int) -> None:
    head, x = make(name), 30 * tiles(60)  # so that scores lie far apart
    with torch.inference_mode():
        found, other = head(bag(x)), head(bag(x, size))
    torch.testing.assert_close(found.logits, other.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.attention, other.attention, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("name", HEADS)
def test_bags_of_other_lengths_beside_it_change_nothing(name: str, size: int | None) -> None:
    head, lengths = make(name), (5, 12, 1)
    padded = torch.full((3, 12, D), 1e3)
    real = torch.zeros(3, 12, dtype=torch.bool)
    for number, length in enumerate(lengths):
        padded[number, 12 - length :] = tiles(length, number)  # the padding comes first: a whole chunk of it, too
        real[number, 12 - length :] = True
    step = size or 12
    chunks: Bag = [Chunk(padded[:, i : i + step], real[:, i : i + step]) for i in range(0, 12, step)]
    with torch.inference_mode():
        together = head(chunks)
        for number, length in enumerate(lengths):
            alone = head(bag(tiles(length, number)))
            torch.testing.assert_close(together.logits[number], alone.logits[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together.attention[number, 12 - length :], alone.attention[0])
            assert not together.attention[number, : 12 - length].any()


@pytest.mark.parametrize("name", HEADS)
def test_attention_sums_to_one_and_a_tile_has_the_logits_of_a_bag_of_it(name: str) -> None:
    head, x = make(name), tiles(9)
    with torch.inference_mode():
        found = head(bag(x))
        assert found.attention.sum().item() == pytest.approx(1, abs=1e-6)
        alone = torch.cat([head(bag(x[i : i + 1])).logits for i in range(9)])
        torch.testing.assert_close(head.tile_logits(x), alone)
        if name in ("mean", "attention", "gated"):  # what is pooled linearly is the weighted mean of its tiles
            torch.testing.assert_close(found.attention @ alone, found.logits)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_reach_every_weight_through_chunks(name: str) -> None:
    whole, parts = make(name), make(name)
    whole(bag(tiles(30))).logits.square().sum().backward()
    parts(bag(tiles(30), 8)).logits.square().sum().backward()
    for (key, a), (_, b) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        assert a.grad is not None, key
        assert b.grad is not None, key
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
