from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional

from training.losses import (
    Reduction,
    SpectralDecouplingLoss,
    balanced_weights,
    consistency_penalty,
    convert_lambda,
    cross_entropy,
    l2_penalty,
    spectral_decoupling,
)

REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean")


def random_batch(classes: int, samples: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(samples, classes, generator=generator, requires_grad=True)
    return logits, torch.randint(0, classes, (samples,), generator=generator)


@pytest.mark.parametrize(("sd_lambda", "saturation"), [(0.1, 0.837), (0.01, 0.966), (0.001, 0.995)])
def test_separable_sample_settles_at_the_closed_form(sd_lambda: float, saturation: float) -> None:
    # the loss of a positive sample is stationary where sigmoid(-z) = lambda * z
    z = brentq(lambda z: 1 / (1 + math.exp(z)) - sd_lambda * z, 0, 50)
    assert 1 / (1 + math.exp(-z)) == pytest.approx(saturation, abs=5e-4)

    logit = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([logit], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    loss = SpectralDecouplingLoss(sd_lambda)

    def closure() -> Tensor:
        optimiser.zero_grad()
        value: Tensor = loss(logit, torch.ones(1))
        torch.autograd.backward(value)
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    assert logit.item() == pytest.approx(z, abs=2e-3)
    assert torch.sigmoid(logit).item() == pytest.approx(saturation, abs=5e-4)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_value_and_gradient_are_the_closed_form(classes: int, reduction: Reduction) -> None:
    logits, labels = random_batch(classes)
    terms = SpectralDecouplingLoss(0.3, reduction).terms(logits, labels)
    torch.autograd.backward(terms.total)

    z = logits.detach()
    square = z.square().sum(dim=1).mean()
    weight = 0.3 / 2 if reduction == "sum" else 0.3 / classes
    residual = torch.softmax(z, dim=1) - functional.one_hot(labels, classes)
    torch.testing.assert_close(terms.ce, functional.cross_entropy(z, labels))
    torch.testing.assert_close(terms.sd.detach(), weight * square)
    torch.testing.assert_close(terms.total, terms.ce + terms.sd)
    torch.testing.assert_close(logits.grad, (residual + 2 * weight * z) / len(z))


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
@pytest.mark.parametrize(("reduction", "weight"), [("sum", 0.1), ("mean", 0.2)])
def test_single_logit_is_binary_cross_entropy(shape: tuple[int, ...], reduction: Reduction, weight: float) -> None:
    z = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0], requires_grad=True)
    targets = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    terms = SpectralDecouplingLoss(0.2, reduction).terms(z.reshape(shape), targets.reshape(shape))
    torch.autograd.backward(terms.total)
    torch.testing.assert_close(terms.ce, functional.binary_cross_entropy_with_logits(z, targets))
    torch.testing.assert_close(terms.sd, weight * z.square().mean())
    torch.testing.assert_close(z.grad, (torch.sigmoid(z) - targets + 2 * weight * z).detach() / 5)


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_converted_lambda_gives_the_same_loss(classes: int) -> None:
    logits, _ = random_batch(classes)
    converted = convert_lambda(0.05, classes, "sum", "mean")
    assert converted == pytest.approx(0.05 * classes / 2)
    assert convert_lambda(converted, classes, "mean", "sum") == pytest.approx(0.05)
    torch.testing.assert_close(spectral_decoupling(logits, converted, "mean"), spectral_decoupling(logits, 0.05, "sum"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_lambda_zero_is_plain_cross_entropy(reduction: Reduction) -> None:
    logits, labels = random_batch(4)
    assert torch.equal(SpectralDecouplingLoss(0, reduction)(logits, labels), functional.cross_entropy(logits, labels))


def test_half_precision_logits_are_squared_in_full() -> None:
    logits = torch.full((2, 2), 300.0, dtype=torch.float16)  # 300^2 overflows float16
    assert spectral_decoupling(logits, 1.0).item() == pytest.approx(300.0**2)


@pytest.mark.parametrize("sd_lambda", [-0.1, float("nan"), float("inf")])
def test_bad_lambda_is_refused(sd_lambda: float) -> None:
    with pytest.raises(ValueError, match="sd_lambda"):
        SpectralDecouplingLoss(sd_lambda)


def test_bad_reduction_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="'max'"):
        SpectralDecouplingLoss(0.1, "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"3 logits.*2 labels"):
        SpectralDecouplingLoss(0.1)(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gamma_weights_and_smoothing_are_the_closed_form(classes: int, reduction: Reduction, smoothing: float) -> None:
    logits, labels = random_batch(classes)
    gamma, weights = (0.44, 2.5, -1.0)[:classes], (0.5, 2.0, 1.25)[:classes]
    loss = SpectralDecouplingLoss(0.3, reduction, gamma=gamma, class_weights=weights, label_smoothing=smoothing)
    terms = loss.terms(logits, labels)
    torch.autograd.backward(terms.total)

    z, w = logits.detach(), torch.tensor(weights)[labels, None]
    off = z - torch.tensor(gamma)
    half = 0.3 / 2 if reduction == "sum" else 0.3 / classes
    target = (1 - smoothing) * functional.one_hot(labels, classes) + smoothing / classes
    torch.testing.assert_close(terms.ce.detach(), -(w * target * torch.log_softmax(z, dim=1)).sum() / len(z))
    torch.testing.assert_close(terms.sd.detach(), half * off.square().sum() / len(z))
    torch.testing.assert_close(terms.total, terms.ce + terms.sd)
    torch.testing.assert_close(logits.grad, (w * (torch.softmax(z, dim=1) - target) + 2 * half * off) / len(z))


def test_single_logit_has_a_gamma_too() -> None:
    z = torch.tensor([-2.0, 0.5, 3.0])
    assert spectral_decoupling(z, 0.2, gamma=(1.0,)).item() == pytest.approx(0.1 * (9 + 0.25 + 4) / 3)


def test_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    logits, labels = random_batch(3, 9)
    loss = SpectralDecouplingLoss(0.2, gamma=(1.0, 0.0, 2.0), class_weights=(0.2, 1.0, 3.0), label_smoothing=0.1)
    parts = sum(loss(logits[a:b], labels[a:b]) * (b - a) for a, b in ((0, 2), (2, 5), (5, 9)))
    torch.testing.assert_close(loss(logits, labels), parts / 9)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    counts = [30, 5, 13]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.repeat(np.arange(3), counts))
    np.testing.assert_allclose(balanced_weights(counts), expected)
    assert np.dot(balanced_weights(counts), counts) / sum(counts) == pytest.approx(1)


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ({"gamma": (float("nan"), 0.0)}, "gamma"),
        ({"class_weights": (1.0, -1.0)}, "class_weights"),
        ({"class_weights": (1.0, float("inf"))}, "class_weights"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
    ],
)
def test_bad_loss_settings_are_refused(setting: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        SpectralDecouplingLoss(0.1, **setting)


def test_settings_that_do_not_fit_the_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 .*gamma.* 2 "):
        spectral_decoupling(torch.zeros(4, 2), 0.1, gamma=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="logit"):
        cross_entropy(torch.zeros(4), torch.zeros(4), label_smoothing=0.1)


def test_the_penalty_on_change_and_its_gradients_are_the_closed_form() -> None:
    logits, of_copies = (random_batch(3)[0].detach().roll(n, 0).requires_grad_() for n in (0, 1))
    penalty = consistency_penalty(logits, of_copies, 0.6)
    torch.autograd.backward(penalty)
    apart = (logits - of_copies).detach()
    assert penalty.item() == pytest.approx(0.3 * float((apart.numpy() ** 2).sum()) / 7, rel=1e-6)
    torch.testing.assert_close(logits.grad, 0.6 / 7 * apart)
    torch.testing.assert_close(of_copies.grad, -0.6 / 7 * apart)


def test_the_l2_penalty_and_its_gradient_are_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator, requires_grad=True) for shape in ((3, 4), (2, 3, 2, 2))]
    penalty = l2_penalty(weights, 0.3)
    torch.autograd.backward(penalty)
    flat = np.concatenate([w.detach().numpy().ravel() for w in weights])
    assert penalty.item() == pytest.approx(0.15 * float(flat @ flat), rel=1e-6)
    for w in weights:
        torch.testing.assert_close(w.grad, 0.3 * w.detach())
