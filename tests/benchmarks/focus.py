"""Which quality column tells blur: `blur` and `focus` on tiles of real slides that are blurred by known amounts.

    python -m tests.benchmarks.focus [--data ../shared/data] [--tiles 60]

Tiles of each slide at its own scale, twice and four times that, plain glass left out, are blurred by Gaussians of 0 to
4 px, and saved as JPEG 80 after noise of 2 grey levels, or not. Printed: of each slide and scale the medians of the
columns by blur, and the sigma in micrometres; the AUROC of blurred (2 px and more) against sharp, of each column over
all; the share of tiles kept by thresholds; and what `blur` costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from tiling import Slide, TilingConfig
from tiling.config import TissueConfig
from tiling.plan import plan_tiles
from tiling.quality import blur_px, quality
from tiling.stores.codec import decode_jpeg, encode_jpeg
from tiling.tile import read_tiles

U8 = NDArray[np.uint8]
SLIDES = {
    "CMU-1-Small-Region.svs": None,
    "carcinoma-crop.ome.tif": None,
    "her2st_B4.tif": 0.686,
    "her2st_C2.tif": 0.686,
}
"""Of the folder `slides`, with the micrometres per pixel of those that lack them."""
TILES = {"idc_breast": 4.0, "prostate_panda": 2.0}
"""Of the folder `tiles`, with their micrometres per pixel."""
SIGMAS_PX = (0.0, 0.5, 1.0, 2.0, 4.0)
FILTERS: dict[str, Callable[[dict[str, float]], bool]] = {
    "blur < 1": lambda row: row["blur"] < 1,
    "blur < 1.2": lambda row: row["blur"] < 1.2,
    "blur < 1.5": lambda row: row["blur"] < 1.5,
    "focus > 20": lambda row: row["focus"] > 20,
}


def slide_tiles(path: Path, mpp: float | None, times: int, count: int) -> tuple[float, list[U8]]:
    """Tiles of 256 px of a slide, or of 128 px at four times its scale, evenly over what is not plain glass, and their
    micrometres per pixel.
    """
    with Slide(path, mpp=mpp) as slide:
        tissue = TissueConfig(method="otsu", min_object_um2=0)
        tile_px = 256 if times < 4 else 128
        config = TilingConfig(mpp=slide.mpp * times, tile_px=tile_px, tissue=tissue, min_tissue=0.02)
        tiles = plan_tiles(slide, config).tiles
        return slide.mpp * times, spread([tile for _, tile in read_tiles(slide, tiles, 0) if tile.std() > 3], count)


def spread(tiles: list[U8], count: int) -> list[U8]:
    """At most that many of them, evenly."""
    return [tiles[k] for k in np.unique(np.linspace(0, len(tiles) - 1, min(count, len(tiles))).astype(int))]


def folder_tiles(folder: Path, count: int) -> list[U8]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
    chosen = [files[k] for k in np.linspace(0, len(files) - 1, count).astype(int)]
    return [np.array(Image.open(path).convert("RGB")) for path in chosen]


def spoilt(tile: U8, sigma_px: float, rough: bool) -> U8:
    """The tile blurred; then, if `rough`, with noise of 2 grey levels and as JPEG 80."""
    soft = np.asarray(cv2.GaussianBlur(tile, (0, 0), sigma_px) if sigma_px else tile, np.uint8)
    if not rough:
        return np.ascontiguousarray(soft)
    noise = np.random.default_rng(0).normal(0, 2, soft.shape)
    noisy = np.clip(np.rint(soft + noise), 0, 255).astype(np.uint8)
    return decode_jpeg(encode_jpeg(noisy, 80, "4:2:0"))


def auroc(rows: list[dict[str, float]], column: str) -> float:
    """Of blurred by 2 px or more against sharp; of `focus` the low is blurred."""
    judged = [row for row in rows if row["sigma_px"] == 0 or row["sigma_px"] >= 2]
    values = [-row[column] if column == "focus" else row[column] for row in judged]
    return float(roc_auc_score([row["sigma_px"] >= 2 for row in judged], values))


def microseconds(job: Callable[[], object], calls: int = 200) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        job()
    return (time.perf_counter() - start) / calls * 1e6


def main() -> None:
    """Read, blur and measure the tiles; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--tiles", type=int, default=60)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    sources = {
        f"{name.split('.')[0]} x{times}": slide_tiles(options.data / "slides" / name, mpp, times, options.tiles)
        for name, mpp in SLIDES.items()
        for times in (1, 2, 4)
    }
    sources |= {name: (mpp, folder_tiles(options.data / "tiles" / name, options.tiles)) for name, mpp in TILES.items()}
    rows = list[dict[str, float]]()
    print(
        f"{'medians of blur | focus':24s} mpp   tiles "
        + "".join(f"{f'{s:g} px':>16s}" for s in SIGMAS_PX)
        + "  2 px in um"
    )
    for source, (name, (mpp, tiles)) in enumerate(sources.items()):
        for rough in (False, True):
            found = [
                {"source": source, "sigma_px": sigma_px, "rough": rough, **quality(spoilt(tile, sigma_px, rough))}
                for tile in tiles
                for sigma_px in SIGMAS_PX
            ]
            rows += found
            medians = [
                tuple(
                    statistics.median(row[column] for row in found if row["sigma_px"] == s)
                    for column in ("blur", "focus")
                )
                for s in SIGMAS_PX
            ]
            shown = "".join(f"{f'{blur:.2f} | {focus:.0f}':>16s}" for blur, focus in medians)
            print(f"{name + ' rough' * rough:24s} {mpp:.3f} {len(tiles):5d} {shown}  {2 * mpp:.2f}")
    print("\nAUROC of blurred, 2 px and more, against sharp, all tiles together")
    for column in ("blur", "focus"):
        plain, rough_ones = ([row for row in rows if row["rough"] == rough] for rough in (False, True))
        print(f"  {column:6s} {auroc(plain, column):.4f}, rough {auroc(rough_ones, column):.4f}")
    print("\nkept, % of tiles by their blur, all together | the least of any slide and scale")
    for text, keeps in FILTERS.items():
        shares = []
        for sigma_px in SIGMAS_PX:
            of_blur = [row for row in rows if row["sigma_px"] == sigma_px]
            kept = [(row["source"], keeps(row)) for row in of_blur]
            least = min(statistics.mean(k for at, k in kept if at == source) for source in range(len(sources)))
            shares.append(f"{100 * statistics.mean(k for _, k in kept):5.1f} | {100 * least:5.1f}")
        print(f"  {text:12s} " + "".join(f"{share:>16s}" for share in shares))
    tile = sources["her2st_C2 x1"][1][0]
    grey = np.asarray(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), np.uint8)
    costs = [(microseconds(lambda: blur_px(grey)), microseconds(lambda: quality(tile))) for _ in range(9)]
    blur_us, all_us = (statistics.median(values) for values in zip(*costs, strict=True))
    share = statistics.median(blur / (every - blur) for blur, every in costs)
    print(
        f"\nof a tile of 256 px: blur {blur_us:.0f} us, all columns {all_us:.0f} us; {share:.0%} more than without blur"
    )


if __name__ == "__main__":
    main()
