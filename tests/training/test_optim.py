"""What moves the weights, against formulas."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters

from training.models.classifier import make_classifier
from training.optim import clip_gradients, parameter_groups, rate_at, update_ema


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_each_layer_learns_slower_than_the_next(backbone: str) -> None:
    network = make_classifier(backbone, 2, None, 64)
    inner: Any = network.backbone
    groups = parameter_groups(network, 0.05, layer_decay=0.5)
    layer_of = group_parameters(inner, inner.group_matcher(coarse=False), reverse=True)
    last = max(layer_of.values())
    scale_of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    parameters = dict(inner.named_parameters())
    assert len(scale_of) == len(parameters), "each parameter is in one group"
    for name, parameter in parameters.items():
        assert scale_of[id(parameter)] == pytest.approx(0.5 ** (last - layer_of[name]))
        assert decay_of[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0)
    head = next(p for name, p in parameters.items() if name.startswith(inner.pretrained_cfg["classifier"]))
    assert scale_of[id(head)] == 1.0


def test_frozen_parameters_are_in_no_group() -> None:
    network = make_classifier("test_resnet", 2, 32, 32)
    network.freeze()
    decayed, kept = parameter_groups(network, 0.05)
    assert [tuple(p.shape) for p in decayed["params"] + kept["params"]] == [(2, 96), (2,)]


def test_the_running_average_is_the_recursion() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=2)
    average = copy.deepcopy(network)
    expected = {name: value.double() for name, value in average.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.add_(1) if not value.is_floating_point() else value.normal_()
        update_ema(average, network, 0.5, step)
        d = min(0.5, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            new = value.double()
            expected[name] = d * expected[name] + (1 - d) * new if value.is_floating_point() else new
    assert d == 0.5, "the warm-up is over"
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_gradients_are_shortened_to_the_limit_and_only_then() -> None:
    parameters = [torch.zeros(3, requires_grad=True), torch.zeros(1, requires_grad=True), torch.zeros(2)]
    parameters[0].grad, parameters[1].grad = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, None).item() == 5.0
    assert clip_gradients(parameters, 6.0).item() == 5.0
    assert parameters[0].grad.tolist() == [1.0, 2.0, 2.0]
    assert clip_gradients(parameters, 2.5).item() == 5.0
    assert parameters[0].grad.tolist() == pytest.approx([0.5, 1.0, 1.0], abs=1e-5)
    assert parameters[1].grad.tolist() == pytest.approx([2.0], abs=1e-5)


def test_rates_without_a_warm_up_are_half_a_cosine() -> None:
    rates = [rate_at(step, 8, 0) for step in range(8)]
    assert rates == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])
    assert all(a > b for a, b in itertools.pairwise(rates))
