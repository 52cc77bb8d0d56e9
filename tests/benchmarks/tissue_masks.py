"""Tissue masks: what share of the true tissue, of the glass and of the ink each method keeps.

    python -m tests.benchmarks.tissue_masks [--slides path/to/slides] [--pictures OUT] [--methods local otsu ...]

Painted slides of 5 x 5 mm, whose truth is known: each stain on five glasses, then H&E and Masson with what else lies on
glass. Colours follow Beer-Lambert with published optical densities (Ruifrok & Johnston 2001; Landini's table of
ImageJ's Colour Deconvolution); pixels are of 2 um, with noise, saved as JPEG 85, and then averaged as a slide is. Real
slides are judged against a reference of their own: see `reference`. `--pictures` draws every row's mask and truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling import Slide
from tiling.config import TissueConfig
from tiling.overview import Overview
from tiling.tissue import METHODS, find_tissue

SIDE = 2500  # pixels of 2 um
FINE_UM, MASK_UM = 2.0, 8.0
Picture = NDArray[np.float32]
Mask = NDArray[np.bool_]

HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
BLUE_HAEMATOXYLIN = (0.74, 0.63, 0.24)
AEC, PAS, ALCIAN = (0.27, 0.68, 0.68), (0.17, 0.97, 0.15), (0.87, 0.46, 0.16)
MASSON_BLUE, MASSON_RED = (0.80, 0.59, 0.10), (0.10, 0.74, 0.67)
GIEMSA, GIEMSA_EOSIN = (0.83, 0.51, 0.20), (0.09, 0.95, 0.28)
GLASSES = {"white": (245, 245, 243), "grey": (214, 213, 214), "pinkish": (240, 222, 236), "yellowish": (228, 226, 205)}
PENS = {"black": (28, 26, 30), "blue": (35, 55, 175), "green": (25, 130, 70), "red": (205, 30, 40)}


@dataclass(frozen=True)
class Stain:
    """How a tissue is stained: optical densities of stroma, nuclei, and of some marked cells."""

    stroma: tuple[float, float, float]
    stroma_amount: float
    nuclei: tuple[float, float, float]
    nuclei_amount: float
    marked: tuple[float, float, float] = DAB
    marked_amount: float = 0.0
    fat: bool = False
    blur: float = 0.6
    """Gaussian, pixels of 2 um."""


STAINS = {
    "H&E": Stain(EOSIN, 0.45, HAEMATOXYLIN, 1.2),
    "H&E, blue-violet": Stain((0.45, 0.75, 0.2), 0.35, BLUE_HAEMATOXYLIN, 1.9),
    "H&E, red": Stain((0.15, 0.95, 0.35), 0.8, HAEMATOXYLIN, 0.8),
    "H&E, faded": Stain(EOSIN, 0.2, HAEMATOXYLIN, 0.4),
    "H&E, dark": Stain((0.3, 0.9, 0.3), 0.9, HAEMATOXYLIN, 2.0),
    "H&E, brownish": Stain((0.2, 0.8, 0.6), 0.5, (0.6, 0.7, 0.5), 1.2),
    "H-DAB": Stain((0.5, 0.6, 0.5), 0.12, HAEMATOXYLIN, 0.7, DAB, 1.6),
    "AEC": Stain((0.5, 0.6, 0.5), 0.1, HAEMATOXYLIN, 0.6, AEC, 1.3),
    "PAS": Stain(PAS, 0.4, HAEMATOXYLIN, 0.9),
    "Masson, blue": Stain(MASSON_BLUE, 0.8, (0.6, 0.7, 0.5), 1.0),
    "Masson, red": Stain(MASSON_RED, 0.7, (0.6, 0.7, 0.5), 1.0, MASSON_BLUE, 0.8),
    "Giemsa": Stain(GIEMSA, 0.5, GIEMSA, 1.2, GIEMSA_EOSIN, 0.6),
    "Alcian blue": Stain(ALCIAN, 0.6, (0.55, 0.75, 0.35), 0.6),
    "IHC, blue nuclei only": Stain((0.5, 0.6, 0.5), 0.06, HAEMATOXYLIN, 0.5),
    "frozen": Stain(EOSIN, 0.35, HAEMATOXYLIN, 0.9, blur=2.5),
    "fat": Stain(EOSIN, 0.45, HAEMATOXYLIN, 1.0, fat=True),
    "pale": Stain(EOSIN, 0.12, HAEMATOXYLIN, 0.25),
}


@dataclass(frozen=True)
class Painted:
    """A slide in colour, its truth at 2 um, and what must not count: `ink` lies on bare glass."""

    picture: NDArray[np.uint8]
    tissue: Mask
    ink: Mask


def smooth_noise(rng: np.random.Generator, scale_px: float) -> Picture:
    """Noise of about that size, standard normal."""
    small = max(8, round(SIDE / scale_px * 2))
    noise = cv2.GaussianBlur(rng.normal(size=(small, small)).astype(np.float32), (0, 0), 1.0)
    noise = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def blob(rng: np.random.Generator) -> Mask:
    """A piece of tissue, a third of the slide, with a ragged edge."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE - 0.5
    height = 0.33 - np.hypot(x * 1.1, y) + 0.03 * smooth_noise(rng, 500) + 0.006 * smooth_noise(rng, 60)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((height > 0).astype(np.uint8))
    return np.asarray(labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax())


def scattered(rng: np.random.Generator, share: float, radius_px: float, where: Mask) -> Mask:
    """Discs that cover about that share."""
    discs = np.zeros((SIDE, SIDE), np.uint8)
    for x, y in rng.integers(0, SIDE, (int(share * SIDE * SIDE / (np.pi * radius_px**2)), 2)).tolist():
        if where[y, x]:
            cv2.circle(discs, (x, y), round(radius_px * rng.uniform(0.7, 1.3)), 1, -1)
    return discs > 0


def fat_walls(rng: np.random.Generator) -> Mask:
    """Cells of 70 um between walls of 4 um."""
    seeds = np.ones((SIDE, SIDE), np.uint8)
    seeds[tuple(rng.integers(0, SIDE, (2, (SIDE // 35) ** 2)))] = 0
    _, nearest = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    return cv2.morphologyEx(nearest.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0


def density(rng: np.random.Generator, stain: Stain, tissue: Mask) -> Picture:
    """Optical density of a piece of tissue, float32 (h, w, 3)."""
    fibres = np.clip(1 + 0.25 * smooth_noise(rng, 12) + 0.2 * smooth_noise(rng, 120), 0.3, 2)
    crowded = smooth_noise(rng, 300) > 0.3
    nuclei = scattered(rng, 0.12, 3.5, tissue) | scattered(rng, 0.5, 3.5, tissue & crowded)
    marked = (
        scattered(rng, 0.25, 4, tissue & (smooth_noise(rng, 250) > 0.5)) if stain.marked_amount else ~tissue & tissue
    )
    layers = [
        (stain.stroma, stain.stroma_amount * fibres * (fat_walls(rng) if stain.fat else 1)),
        (stain.nuclei, stain.nuclei_amount * nuclei * (0.15 if stain.fat else 1)),
        (stain.marked, stain.marked_amount * marked),
    ]
    found = sum(np.asarray(amount * tissue, np.float32)[..., None] * np.array(v, np.float32) for v, amount in layers)
    return np.asarray(cv2.GaussianBlur(np.asarray(found, np.float32), (0, 0), stain.blur), np.float32)


def lamp(rng: np.random.Generator) -> Picture:
    """Glass under an uneven lamp."""
    fall = (
        1 - 0.25 * np.linspace(0, 1, SIDE, dtype=np.float32)[None, :, None] * np.linspace(0.5, 1, SIDE)[:, None, None]
    )
    return np.asarray(np.array((246, 244, 240), np.float32) * fall, np.float32)


def flat(colour: tuple[int, int, int], rng: np.random.Generator) -> Picture:
    """Glass of one colour."""
    return np.full((SIDE, SIDE, 3), colour, np.float32)


def taken(rng: np.random.Generator, light: Picture) -> NDArray[np.uint8]:
    """As a scanner saves it: noise, JPEG 85."""
    noisy = np.clip(light + rng.normal(0, 2, (SIDE, SIDE, 1)) + rng.normal(0, 1, light.shape), 0, 255).astype(np.uint8)
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], cv2.IMREAD_COLOR))


Artefact = Callable[[np.random.Generator, Picture, Mask], tuple[Picture, Mask]]
"""Changes the light (h, w, 3) of a slide with that tissue, and says where it laid ink."""


def pen(colour: tuple[int, int, int], rng: np.random.Generator, light: Picture, tissue: Mask) -> tuple[Picture, Mask]:
    """A ring around the tissue, a stroke across it, and a cross on the glass, streaky, 300 um wide."""
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    cv2.ellipse(drawn, (SIDE // 2, SIDE // 2), (1060, 1130), 0, 0, 300, 1, 150, cv2.LINE_AA)
    cv2.line(drawn, (900, 100), (1700, 2400), 1, 120)
    cv2.line(drawn, (80, 80), (380, 400), 1, 110)
    opaque = cv2.GaussianBlur(drawn.astype(np.float32), (0, 0), 3) * np.clip(0.93 + 0.03 * smooth_noise(rng, 40), 0, 1)
    through = np.array(colour, np.float32) / 255
    return light * (1 - opaque[..., None] * (1 - through)), drawn > 0


def dust(rng: np.random.Generator, light: Picture, tissue: Mask) -> tuple[Picture, Mask]:
    """Specks of 5 to 60 um and hairs."""
    shade = np.ones((SIDE, SIDE), np.float32)
    for x, y in rng.integers(0, SIDE, (250, 2)).tolist():
        cv2.circle(shade, (x, y), int(rng.integers(1, 15)), float(rng.uniform(0.2, 0.7)), -1, cv2.LINE_AA)
    for _ in range(6):
        points = np.cumsum(rng.normal(0, 25, (40, 2)), 0) + rng.integers(0, SIDE, 2)
        cv2.polylines(shade, [points.astype(np.int32)], False, 0.5, 5, cv2.LINE_AA)
    return light * cv2.GaussianBlur(shade, (0, 0), 1)[..., None], np.zeros_like(tissue)


def bubbles(rng: np.random.Generator, light: Picture, tissue: Mask) -> tuple[Picture, Mask]:
    """Rings of refraction."""
    shade = np.ones((SIDE, SIDE), np.float32)
    for x, y in rng.integers(0, SIDE, (12, 2)).tolist():
        radius = int(rng.integers(60, 300))
        cv2.circle(shade, (x, y), radius, 0.45, 8, cv2.LINE_AA)
        cv2.circle(shade, (x, y), radius - 9, 1.04, 5, cv2.LINE_AA)
    return light * cv2.GaussianBlur(shade, (0, 0), 1.5)[..., None], np.zeros_like(tissue)


def coverslip(rng: np.random.Generator, light: Picture, tissue: Mask) -> tuple[Picture, Mask]:
    """A dark edge, and glass of another colour beyond."""
    shade = np.ones((SIDE, SIDE, 3), np.float32)
    shade[:, :220] = (0.93, 0.94, 0.96)
    shade[:, 215:228] *= 0.5
    return light * cv2.GaussianBlur(shade, (0, 0), 2), np.zeros_like(tissue)


def padding(rng: np.random.Generator, light: Picture, tissue: Mask) -> tuple[Picture, Mask]:
    """Exact white that no scanner saw."""
    light = light.copy()
    light[:200], light[-300:], light[:, :250] = 400, 400, 400
    return light, np.zeros_like(tissue)


def tinted(rng: np.random.Generator, light: Picture, tissue: Mask) -> tuple[Picture, Mask]:
    """Eosin that has run out of the tissue on to the glass."""
    halo = cv2.GaussianBlur(tissue.astype(np.float32), (0, 0), 200)
    return light * np.exp(-0.25 * halo[..., None] * np.array(EOSIN, np.float32)), np.zeros_like(tissue)


def border(rng: np.random.Generator, light: Picture, tissue: Mask) -> tuple[Picture, Mask]:
    """The black frame of a scan."""
    light = light.copy()
    light[:120], light[:, -160:] = 8, 12
    return light, np.zeros_like(tissue)


ARTEFACTS: dict[str, Artefact] = {
    **{f"{name} pen": partial(pen, colour) for name, colour in PENS.items()},
    "dust and hairs": dust, "bubbles": bubbles, "coverslip edge": coverslip, "white padding": padding,
    "eosin on the glass": tinted, "black border": border,
}  # fmt: skip


def painted(
    stain: Stain, glass: Callable[[np.random.Generator], Picture], artefact: Artefact | None, seed: int
) -> Painted:
    """One slide."""
    rng = np.random.default_rng(seed)
    tissue = blob(rng)
    light = glass(rng) * np.exp(-density(rng, stain, tissue))
    light, ink = artefact(rng, light, tissue) if artefact else (light, np.zeros_like(tissue))
    picture = taken(rng, light)
    if artefact is padding:
        picture[light.min(2) >= 400] = 255
    return Painted(picture, tissue, ink & ~tissue)


def rows(only: str = "") -> Iterator[tuple[str, list[Painted]]]:
    """The rows of the table whose name holds `only`: each a few painted slides."""
    glasses: dict[str, Callable[[np.random.Generator], Picture]] = {
        **{name: partial(flat, colour) for name, colour in GLASSES.items()},
        "lamp": lamp,
    }
    for name, stain in STAINS.items():
        if only not in name:
            continue
        yield name, [painted(stain, glass, None, seed) for seed, glass in enumerate(glasses.values())]
    for name, artefact in ARTEFACTS.items():
        if only not in f"with {name}":
            continue
        stains = ("H&E", "Masson, blue", "Giemsa", "H-DAB")
        colours = ("grey", "yellowish") if artefact is padding else ("white", "pinkish")
        yield (
            f"with {name}",
            [
                painted(STAINS[stain], glasses[colour], artefact, 50 + number)
                for number, (stain, colour) in enumerate((s, c) for s in stains for c in colours)
            ],
        )


def overview_of(painted: Painted) -> Overview:
    """As `read_overview` sees the slide."""
    half = (SIDE // 2, SIDE // 2)
    return Overview.of(np.asarray(cv2.resize(painted.picture, half, interpolation=cv2.INTER_AREA), np.uint8))


def in_small(mask: Mask, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A truth at the mask's scale, as shares."""
    return np.asarray(cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA), np.float32)


def kept(mask: Mask, truth: NDArray[np.float32]) -> float:
    """Share of a truth under the mask."""
    return float((mask * truth).sum() / truth.sum()) if truth.sum() else float("nan")


def drawn(picture: NDArray[np.uint8], mask: Mask, truth: Mask) -> NDArray[np.uint8]:
    """The picture with the truth's outline in black and the mask's in blue, BGR."""
    shown = np.ascontiguousarray(picture[..., ::-1])
    for area, colour, width in ((truth, (0, 0, 0), 1), (mask, (178, 114, 0), 2)):
        lines, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, lines, -1, colour, width)
    return shown


AROUND = {
    "her2st_B4.tif": "150,270 185,266 230,288 300,326 350,346 440,406 480,423 520,438 560,468 600,473 640,498 652,550"
    " 684,610 718,702 600,722 480,732 430,734 400,738 300,748 200,768 100,790 88,770 96,480 93,400 118,368 138,318",
    "her2st_C2.tif": "140,525 580,272 622,284 692,565 640,642 532,712 508,706 270,618 250,612 150,548",
}
"""Drawn by hand around the tissue, pixels of 8 um: the glass beside it is pink of eosin."""


def reference(picture: NDArray[np.uint8], around: str) -> tuple[Mask, Mask]:
    """Tissue and dense tissue of a real slide at 8 um, found another way than by any method: within an outline drawn by
    hand, where the grey levels of 3 x 3 pixels differ by 2% or are 12% darker than that neighbourhood's glass; gaps of
    40 um closed, holes below 20,000 um2 filled. Dense is what absorbs 0.5 and more on the mean.
    """
    density = -np.log((cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) + 1) / 256)
    inside = np.zeros(density.shape, np.uint8)
    cv2.fillPoly(inside, [np.array([point.split(",") for point in around.split()], np.int32)], 1)
    mean = cv2.blur(density, (3, 3))
    spread = np.sqrt(np.maximum(cv2.blur(density * density, (3, 3)) - mean * mean, 0))
    beside = cv2.dilate(inside, np.ones((61, 61), np.uint8)) > inside
    glass = float(np.median(density[beside]))
    seen = ((spread > 0.02) | (mean - glass > 0.12)) & (inside > 0)
    closed = cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    tissue = ~large(closed == 0, 312)
    return large(tissue, 312), tissue & (mean - glass > 0.5)


def large(mask: Mask, min_px: int) -> Mask:
    """The connected objects of at least that many pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    keep[0] = False
    return np.asarray(keep[labels])


@dataclass(frozen=True)
class Shown:
    """A slide as a method sees it, and its truth as shares of pixels (h, w)."""

    overview: Overview
    tissue: NDArray[np.float32]
    ink: NDArray[np.float32]


def shown(slide: Painted) -> Shown:
    """A painted slide in small."""
    overview = overview_of(slide)
    shape = overview.texture.shape
    return Shown(overview, in_small(slide.tissue, shape), in_small(slide.ink, shape))


def real(path: Path) -> tuple[Shown, Mask]:
    """A real slide in small, and its dense tissue."""
    with Slide(path, mpp=0.686) as slide:
        down = MASK_UM / slide.mpp
        width, height = int(slide.width / down), int(slide.height / down)
        size0 = (round(width * down), round(height * down))
        finer = slide.read_scaled(0, 0, size0, (2 * width, 2 * height))
    overview = Overview.of(finer)
    tissue, dense = reference(overview.picture, AROUND[path.name])
    return Shown(overview, tissue.astype(np.float32), np.zeros_like(tissue, np.float32)), dense


def shares(mask: Mask, slide: Shown) -> tuple[float, float, float]:
    """Shares kept of tissue, of bare glass, and of ink on it."""
    return kept(mask, slide.tissue), kept(mask, 1 - np.maximum(slide.tissue, slide.ink)), kept(mask, slide.ink)


def cell(found: list[tuple[float, float, float]]) -> str:
    """The worst of some slides: least tissue, most glass, most ink."""
    tissue, glass, ink = (np.array(values) for values in zip(*found, strict=True))
    text = f"{tissue.min():.3f}, {glass.max():.3f}"
    return text if np.isnan(ink).all() else f"{text}, {np.nanmax(ink):.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, help="folder of her2st_B4.tif and her2st_C2.tif")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of every mask (blue) and truth (black)")
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if name not in ("histoprep", "all")])
    parser.add_argument("--only", default="", help="rows whose name holds this")
    args = parser.parse_args()
    print("kept of tissue (least), of glass (most), of ink on glass (most)\n")
    print("| slides | " + " | ".join(args.methods) + " |")
    print("|---" * (1 + len(args.methods)) + "|")

    def masks(name: str, slides: list[Shown]) -> dict[str, list[Mask]]:
        found = {
            method: [find_tissue(s.overview, MASK_UM, TissueConfig(method=method)).tissue for s in slides]
            for method in args.methods
        }
        if args.pictures:
            args.pictures.mkdir(parents=True, exist_ok=True)
            for method, number in ((m, n) for m in found for n in range(len(slides))):
                file = args.pictures / f"{name}-{number}-{method}.png".replace(" ", "_").replace("&", "n")
                picture = drawn(slides[number].overview.picture, found[method][number], slides[number].tissue > 0.5)
                cv2.imwrite(str(file), picture)
        return found

    for name, slides in rows(args.only):
        seen = [shown(slide) for slide in slides]
        found = masks(name, seen)
        cells = [cell([shares(m, s) for m, s in zip(found[method], seen, strict=True)]) for method in args.methods]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    for file in AROUND if args.slides else ():
        slide, dense = real(args.slides / file)
        found = masks(file, [slide])
        cells = [
            f"{cell([shares(found[method][0], slide)])}; dense {kept(found[method][0], dense.astype(np.float32)):.3f}"
            for method in args.methods
        ]
        print(f"| {file} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
