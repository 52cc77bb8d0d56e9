"""Heads of multiple-instance learning: a bag of tiles' features -> the bag's logits, and each tile's attention.

A bag comes in chunks of its tiles, so that a slide of any length is pooled in the memory of one chunk: what is summed
over tiles under a softmax is summed chunk by chunk, with the largest score so far taken off (Milakov and Gimelshein
2018, arXiv 1805.02867). In training a bag is one chunk. No head knows where a tile lies, nor the order of tiles.

    mean         mean of the embedded tiles
    max          the largest logit of any tile, class by class
    top-k        the mean of the k largest, class by class        Campanella et al. 2019 (doi 10.1038/s41591-019-0508-1)
    attention    attention-based pooling                          Ilse et al. 2018 (arXiv 1802.04712), equation 8
    gated        gated attention                                  the same, equation 9
    transformer  set transformer: induced attention, then pooling Lee et al. 2019 (arXiv 1810.00825), linear in tiles

Attention (n,) is in [0, 1] and sums to 1 over a bag; it is no probability of a class. A tile's own logits are those
that a bag of that tile alone has. Knows nothing of stores, labels or training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Chunk(NamedTuple):
    """The next k tiles of each of B bags; shorter bags are padded."""

    features: Tensor
    """float (B, k, D)"""
    real: Tensor
    """bool (B, k): whether it is a tile and no padding."""


Bag = Iterable[Chunk]
"""The chunks of B bags, each of which has a tile; they can be gone through more than once."""


class Pooled(NamedTuple):
    """What a head makes of B bags of n tiles."""

    logits: Tensor
    """(B, C)"""
    attention: Tensor
    """(B, n): in [0, 1], 0 for padding; sums to 1."""


class HeadShape(NamedTuple):
    """The sizes of a head."""

    dim: int
    """Numbers of a tile's features, D."""
    classes: int
    """C"""
    hidden: int
    """Numbers that a tile is embedded in, H."""
    dropout: float
    """Share of them that is left out in training."""
    top_k: int = 5
    """Of the head `top-k`: the tiles whose logits are a bag's."""


class Head(nn.Module):
    """What all heads share: tiles are embedded one by one, `pool` makes one vector of a bag's, and that has logits."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Sequential(nn.Linear(shape.dim, shape.hidden), nn.ReLU(), nn.Dropout(shape.dropout))
        self.classify = nn.Linear(shape.hidden, shape.classes)

    def forward(self, bag: Bag) -> Pooled:
        """Logits and attention of B bags."""
        vector, attention = self.pool(self.embedded(bag))
        return Pooled(self.classify(vector), attention)

    def pool(self, tiles: Bag) -> tuple[Tensor, Tensor]:
        """Embedded tiles -> a vector a bag (B, H), and the tiles' attention (B, n)."""
        raise NotImplementedError

    def tile_logits(self, features: Tensor) -> Tensor:
        """Logits (n, C) of n bags of one tile each, of features (n, D)."""
        alone = torch.ones(len(features), 1, dtype=torch.bool, device=features.device)
        logits: Tensor = self([Chunk(features[:, None], alone)]).logits
        return logits

    def embedded(self, bag: Bag) -> Bag:
        """The chunks with embedded features (B, k, H); one chunk is embedded once, many each time they are read."""
        if isinstance(bag, list) and len(bag) == 1:
            return [Chunk(self.embed(bag[0].features), bag[0].real)]
        return Embedded(self.embed, bag)


class Embedded:
    """Chunks that are embedded as they are read."""

    def __init__(self, embed: nn.Module, bag: Bag) -> None:
        self.embed, self.bag = embed, bag

    def __iter__(self) -> Iterator[Chunk]:
        for features, real in self.bag:
            yield Chunk(self.embed(features), real)


class ScoredHead(Head):
    """A head whose vector is the mean of the embedded tiles, weighted by the softmax over the tiles of their scores."""

    def score(self, tiles: Tensor) -> Tensor:
        """Embedded tiles (B, k, H) -> scores (B, k)."""
        raise NotImplementedError

    def pool(self, tiles: Bag) -> tuple[Tensor, Tensor]:
        """See `Head`."""
        parts = ((self.score(t)[..., None, None], t[:, :, None], real) for t, real in tiles)
        vectors, weights = softmax_pool(parts)
        return vectors[:, 0, 0], weights[:, :, 0, 0]


class MeanHead(ScoredHead):
    """Mean pooling: all tiles weigh alike."""

    def score(self, tiles: Tensor) -> Tensor:
        """See `ScoredHead`."""
        return tiles.new_zeros(tiles.shape[:2])


class AttentionHead(ScoredHead):
    """Attention-based pooling: the score of a tile h is w . tanh(V h + b)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.direction = nn.Linear(shape.hidden, shape.hidden // 2)
        self.weight = nn.Linear(shape.hidden // 2, 1, bias=False)  # the same for all tiles, it would change no softmax

    def score(self, tiles: Tensor) -> Tensor:
        """See `ScoredHead`."""
        scores: Tensor = self.weight(torch.tanh(self.direction(tiles)))[..., 0]
        return scores


class GatedHead(AttentionHead):
    """Gated attention: the score of a tile h is w . (tanh(V h + b) * sigmoid(U h + c))."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.gate = nn.Linear(shape.hidden, shape.hidden // 2)

    def score(self, tiles: Tensor) -> Tensor:
        """See `ScoredHead`."""
        scores: Tensor = self.weight(torch.tanh(self.direction(tiles)) * torch.sigmoid(self.gate(tiles)))[..., 0]
        return scores


class TopKHead(Head):
    """A class's logit is the mean of the k largest that any tiles have, of a bag of fewer tiles the mean of all.

    Attention is shared out among the tiles that give the logits: 1/k of a class's to each, and 1/C to each class.
    """

    def forward(self, bag: Bag) -> Pooled:
        """Logits and attention of B bags."""
        parts = [self.classify(t).masked_fill(~real[..., None], -torch.inf) for t, real in self.embedded(bag)]
        each = torch.cat(parts, dim=1)  # (B, n, C)
        largest, giver = each.topk(min(self.shape.top_k, each.shape[1]), dim=1)  # (B, k, C)
        given = largest > -torch.inf
        share = given / given.sum(dim=1, keepdim=True)
        logits = (largest.masked_fill(~given, 0) * share).sum(dim=1)
        attention = logits.new_zeros(each.shape[:2]).scatter_add(1, giver.flatten(1), share.flatten(1))
        return Pooled(logits, attention / self.shape.classes)


class MaxHead(TopKHead):
    """Max pooling: a class's logit is the largest of any tile."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape._replace(top_k=1))


class TransformerHead(Head):
    """A set transformer: inducing points attend to all tiles, each tile to those, and a seed to the tiles.

    Plain self-attention of n tiles costs n^2; this costs n times the number of inducing points. The attention of a tile
    is the seed's, the mean over the attention heads.
    """

    POINTS, HEADS = 16, 4

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        hidden = shape.hidden
        self.points = nn.Parameter(torch.empty(self.POINTS, hidden))
        self.seed = nn.Parameter(torch.empty(1, hidden))
        nn.init.xavier_uniform_(self.points)
        nn.init.xavier_uniform_(self.seed)
        self.gather, self.spread, self.read = (AttentionBlock(hidden, self.HEADS) for _ in range(3))

    def pool(self, tiles: Bag) -> tuple[Tensor, Tensor]:
        """See `Head`."""
        first, _ = next(iter(tiles))
        bags = len(first)
        summary, _ = self.gather(self.points.expand(bags, -1, -1), tiles)  # (B, P, H)
        known = [Chunk(summary, torch.ones(summary.shape[:2], dtype=torch.bool, device=summary.device))]
        seen = Embedded(Spread(self.spread, known), tiles)
        vectors, weights = self.read(self.seed.expand(bags, -1, -1), seen)
        return vectors[:, 0], weights[:, :, 0].mean(dim=-1)


class AttentionBlock(nn.Module):
    """Multihead attention block (MAB) of the set transformer: queries attend to a bag, then a layer of their own."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.after_attention, self.after_layer = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.layer = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU())

    def forward(self, queries: Tensor, bag: Bag) -> tuple[Tensor, Tensor]:
        """Queries (B, q, H) and B bags of n tiles -> (B, q, H), and each query's weights (B, n, q, heads)."""
        split = (self.heads, queries.shape[-1] // self.heads)
        asked = self.query(queries).unflatten(-1, split) * split[1] ** -0.5
        parts = (
            (torch.einsum("bqhd,bkhd->bkqh", asked, self.key(t).unflatten(-1, split)),
             self.value(t).unflatten(-1, split), real)
            for t, real in bag
        )  # fmt: skip
        found, weights = softmax_pool(parts)
        attended = self.after_attention(queries + found.flatten(-2))
        return self.after_layer(attended + self.layer(attended)), weights


class Spread(nn.Module):
    """Embedded tiles (B, k, H), each after it attended to what is known of its bag."""

    def __init__(self, block: AttentionBlock, known: Bag) -> None:
        super().__init__()
        self.block, self.known = block, known

    def forward(self, tiles: Tensor) -> Tensor:
        """See the class."""
        seen: Tensor = self.block(tiles, self.known)[0]
        return seen


def softmax_pool(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The mean of values under the softmax over tiles of their scores, chunk by chunk.

    Args:
        parts: Of each chunk the scores (B, k, q, h) of q queries in h heads, the values (B, k, h, d), and which tiles
            are real, bool (B, k). Each of the B has a real tile.

    Returns:
        The means (B, q, h, d), and the weights (B, n, q, h) of all tiles: 0 for padding, and their sum is 1.
    """
    every: list[Tensor] = []
    total = mass = top = None
    for scores, values, real in parts:
        scores = scores.float().masked_fill(~real[..., None, None], torch.finfo(torch.float32).min)
        every.append(scores)
        peak = scores.detach().amax(dim=1)  # (B, q, h); what is taken off changes no softmax, nor its gradient
        higher = peak if top is None else torch.maximum(top, peak)
        weights = torch.exp(scores - higher[:, None])
        part = torch.einsum("bkqh,bkhd->bqhd", weights, values.float())
        if total is None or mass is None or top is None:
            total, mass = part, weights.sum(dim=1)
        else:
            less = torch.exp(top - higher)
            total, mass = total * less[..., None] + part, mass * less + weights.sum(dim=1)
        top = higher
    if total is None or mass is None or top is None:
        raise ValueError("a bag without a tile")
    return total / mass[..., None], torch.exp(torch.cat(every, dim=1) - top[:, None]) / mass[:, None]


HEADS: dict[str, type[Head]] = {
    "mean": MeanHead,
    "max": MaxHead,
    "top-k": TopKHead,
    "attention": AttentionHead,
    "gated": GatedHead,
    "transformer": TransformerHead,
}
"""A new head is a class and a row."""
