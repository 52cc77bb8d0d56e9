"""Each operation against OpenCV, Pillow or its formula, on a picture like tissue; in 8-bit grey levels."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.augment_ops import BLUR_PX, STRONG

Picture = NDArray[np.uint8]
SIDE = 48


def tissue() -> Picture:
    """Soft pink and purple blobs with a little noise, uint8 (48, 48, 3)."""
    random = np.random.default_rng(0)
    blobs = cv2.GaussianBlur(random.normal(size=(SIDE, SIDE)), (0, 0), 4)
    blobs = (blobs - blobs.min()) / np.ptp(blobs)
    pale, dark = np.array([235.0, 180.0, 215.0]), np.array([90.0, 50.0, 130.0])
    colours = pale + (dark - pale) * blobs[..., None]
    return np.asarray(np.clip(colours + random.normal(size=colours.shape) * 4, 0, 255), np.uint8)


def applied(name: str, pictures: list[Picture], amounts: list[float]) -> NDArray[np.float64]:
    """Result in grey levels, float64 (n, H, W, 3), clamped as the augmentation does."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    out = STRONG[name].apply(pixels, torch.tensor(amounts), torch.Generator().manual_seed(0))
    return out.clamp(0, 1).permute(0, 2, 3, 1).double().numpy() * 255


def channel(number: int) -> Callable[[Picture, float], NDArray[np.float64]]:
    def scaled(picture: Picture, factor: float) -> NDArray[np.float64]:
        out = picture.astype(np.float64)
        out[..., number] *= factor
        return out

    return scaled


def grey(picture: Picture) -> NDArray[np.float64]:
    return np.asarray(picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))


def hue(picture: Picture, turns: float) -> NDArray[np.float64]:
    hsv = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turns) % 360
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.float64) * 255


def filtered(kernel: list[list[float]]) -> Callable[[Picture, float], NDArray[np.float64]]:
    def blended(picture: Picture, weight: float) -> NDArray[np.float64]:
        identity = np.zeros((3, 3))
        identity[1, 1] = 1
        mixed = (1 - weight) * identity + weight * np.array(kernel)
        return np.asarray(cv2.filter2D(picture.astype(np.float64), -1, mixed), np.float64)

    return blended


def equalised(picture: Picture, _: float) -> Picture:
    return np.stack([cv2.equalizeHist(np.ascontiguousarray(picture[..., c])) for c in range(3)], axis=-1)


ORACLES: dict[str, tuple[Callable[[Picture, float], NDArray[np.generic]], list[float], float]] = {
    "red": (channel(0), [0.0, 0.7, 2.0], 1e-3),
    "green": (channel(1), [0.0, 0.7, 2.0], 1e-3),
    "blue": (channel(2), [0.0, 0.7, 2.0], 1e-3),
    "hue": (hue, [-0.5, 0.1, 0.4], 0.01),
    "saturation": (lambda p, f: grey(p)[..., None] * (1 - f) + f * p, [0.0, 0.5, 2.0], 1e-3),
    "brightness": (lambda p, f: p * f, [0.1, 1.3, 2.0], 1e-3),
    "contrast": (lambda p, f: grey(p).mean() * (1 - f) + f * p, [0.1, 0.8, 2.0], 1e-3),
    "gamma": (lambda p, g: (p / 255) ** g * 255, [0.1, 0.8, 2.0], 0.01),
    "solarise": (lambda p, t: np.array(ImageOps.solarize(Image.fromarray(p), int(t))), [0, 100, 255], 1e-3),
    "posterise": (lambda p, b: np.array(ImageOps.posterize(Image.fromarray(p), int(b))), [1, 4, 8], 1e-3),
    "sharpen": (filtered([[-1, -1, -1], [-1, 9, -1], [-1, -1, -1]]), [0.0, 0.3, 1.0], 0.01),
    "emboss": (filtered([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), [0.0, 0.3, 1.0], 0.01),
    "blur": (
        lambda p, s: cv2.GaussianBlur(p.astype(np.float64), (BLUR_PX, BLUR_PX), s) if s else p.astype(np.float64),
        [0.0, 0.6, 3.0],
        0.01,
    ),
    "autocontrast": (lambda p, _: np.array(ImageOps.autocontrast(Image.fromarray(p))), [0.0, 0.5, 1.0], 1.01),
    "equalise": (equalised, [0.0, 0.5, 1.0], 0.01),
    "grey": (lambda p, _: np.repeat(grey(p)[..., None], 3, axis=-1), [0.0, 0.5, 1.0], 0.2),
}


@pytest.mark.parametrize("name", ORACLES)
def test_each_sample_is_changed_as_the_oracle_changes_it(name: str) -> None:
    oracle, amounts, tolerance = ORACLES[name]
    pictures = [np.ascontiguousarray(np.rot90(tissue(), k)) for k in range(len(amounts))]
    got = applied(name, pictures, amounts)
    for picture, amount, out in zip(pictures, amounts, got, strict=True):
        expected = np.clip(oracle(picture, amount), 0, 255)
        assert np.abs(out - expected).max() <= tolerance


def test_every_operation_has_an_oracle() -> None:
    assert set(STRONG) - set(ORACLES) == {"noise", "jpeg"}


def test_noise_is_grey_and_uniform_and_blended_by_its_weight() -> None:
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    out = applied("noise", [black, black], [0.2, 0.0])
    assert not out[1].any()
    np.testing.assert_array_equal(out[0, ..., 0], out[0, ..., 2])
    values = np.sort(out[0, ..., 0].ravel()) / (0.2 * 255)
    uniform = (np.arange(values.size) + 0.5) / values.size
    assert np.abs(values - uniform).max() < 0.05  # Kolmogorov-Smirnov distance; 1% of honest draws exceed 0.034


@pytest.mark.parametrize(("quality", "mean", "most"), [(95, 1.1, 9), (60, 1.4, 10), (20, 1.8, 20), (0, 6.0, 70)])
def test_simulated_jpeg_is_near_libjpeg(quality: int, mean: float, most: float) -> None:
    picture = tissue()
    coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    real = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB), np.float64)
    gap = np.abs(applied("jpeg", [picture], [quality])[0] - real)
    assert gap.mean() <= mean
    assert gap.max() <= most
    if quality < 95:
        assert gap.mean() < 0.4 * np.abs(picture - real).mean(), "nearer to libjpeg than to the picture"


@pytest.mark.parametrize("name", ["autocontrast", "equalise"])
def test_a_channel_of_one_level_stays(name: str) -> None:
    flat = np.full((SIDE, SIDE, 3), 77, np.uint8)
    np.testing.assert_allclose(applied(name, [flat], [1.0])[0], flat, atol=1e-3)
