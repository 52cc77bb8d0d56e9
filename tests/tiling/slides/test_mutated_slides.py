"""Damaged slides by the hundred: one sentence naming the file, or the pixels that OpenSlide reads, or tifffile
where OpenSlide refuses the file; nothing else.

A worker process of bounded memory tiles them one after the other. It is given 20 seconds for each, of its own where the
machine is busy with others' work, and replaced when it dies, as the engine's workers are.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import select
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import pytest
import tifffile

from pipeline.demo.synthetic import write_pyramid
from pipeline.execution.pool import TileProgress, run_slides
from tests.tiling.conftest import ram_folder
from tiling import TilingConfig, tile_slide

LIMIT_S = 20
MOST_WAITS = 6
MEMORY = 4 << 30  # bytes of address space
APERIO = "Aperio Image Library v11.2.1 \r\n480x400 [0,0 480x400] (128x128) JPEG/RGB Q=85|AppMag = 20|MPP = 0.5"

# Reads lines of slide, folder and max_bad_tiles; answers each with a JSON line: the error, or how the store compares.
_WORKER = """
import json, os, resource, sys, traceback
import numpy as np, openslide, tifffile
import tiling.tile
from pathlib import Path
from tiling import TileStore, TilingConfig, tile_slide
from tiling.core.errors import SpecslideError

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
os.fsync = lambda fd: None
tiling.tile.write_preview = lambda store, path: None

def openslide_opens(path):
    try:
        openslide.OpenSlide(str(path)).close()
    except openslide.OpenSlideError:
        return False
    return True

def openslide_tiles(path, corners, size):
    slide = openslide.OpenSlide(str(path))
    for corner in corners:
        try:
            rgba = np.asarray(slide.read_region(corner, 0, (size, size)), np.uint16)
        except openslide.OpenSlideError:  # it sticks
            slide.close()
            slide = openslide.OpenSlide(str(path))
            yield None
        else:
            alpha = rgba[..., 3:]
            yield ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    slide.close()

def tifffile_tiles(path, corners, size):
    with tifffile.TiffFile(path) as tiff:
        page = tiff.series[0].levels[0].pages[0]
        height, width = page.imagelength, page.imagewidth
        whole = np.full((height + size, width + size, 3), 255, np.int16)
        for index, (offset, length) in enumerate(zip(page.dataoffsets, page.databytecounts)):
            row, column = divmod(index, page.chunked[1])
            y, x = row * page.chunks[0], column * page.chunks[1]
            block = whole[y : min(y + page.chunks[0], height), x : min(x + page.chunks[1], width)]
            tiff.filehandle.seek(offset)
            data = tiff.filehandle.read(length)
            try:
                if length:
                    segment = page.decode(data, index, jpegtables=page.jpegtables)[0]
                    block[:] = segment[0, : block.shape[0], : block.shape[1]]
            except Exception:
                block[:] = -1  # no tile may show it
        for x, y in corners:
            yield whole[y : y + size, x : x + size]

def work(path, out, max_bad_tiles):
    config = TilingConfig(mpp=0.5, tile_px=128, min_tissue=0.1, codec="lossless", max_bad_tiles=max_bad_tiles)
    try:
        store = TileStore(tile_slide(path, out, config).store)
    except SpecslideError as error:
        return {"error": str(error)}
    if store.grid.tile_px0 != store.grid.tile_px:
        return {"tiles": len(store), "compared": 0, "wrong": []}
    size, corners = store.grid.tile_px, list(zip(store.tiles.x0.tolist(), store.tiles.y0.tolist()))
    oracle = openslide_tiles if openslide_opens(path) else tifffile_tiles
    pairs = zip(corners, store.read(slice(None)), oracle(path, corners, size))
    wrong = [c for c, tile, expected in pairs if expected is None or not np.array_equal(tile, expected)]
    return {"tiles": len(store), "compared": len(store), "wrong": wrong}

print("ready", flush=True)
for line in sys.stdin:
    path, out, max_bad_tiles = line.rstrip("\\n").split("\\t")
    try:
        answer = work(Path(path), Path(out), float(max_bad_tiles))
    except Exception:
        answer = {"mistake": traceback.format_exc()}
    print(json.dumps(answer), flush=True)
"""


class Worker:
    """The process that does the work; started anew when it has died."""

    def __init__(self, log: Path) -> None:
        self._log, self._process = log, self._start(log)

    def _start(self, log: Path) -> subprocess.Popen[str]:
        with log.open("a") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, str(MEMORY)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def tile(self, slide: Path, out: Path, max_bad_tiles: float) -> dict[str, Any]:
        """What the worker says of that slide; {"died": code} if it died of it, {"hung": seconds} if it is too slow."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{slide}\t{out}\t{max_bad_tiles}\n")
        stdin.flush()
        if not self._answers(stdout):
            self.close()
            self._process = self._start(self._log)
            return {"hung": LIMIT_S}
        line = stdout.readline()
        if line:
            return dict(json.loads(line))
        code = self._process.wait()
        self.close()
        self._process = self._start(self._log)
        return {"died": code}

    def _answers(self, stdout: IO[str]) -> bool:
        """Whether there is an answer, or an end, within the limit: of waiting, or of computing on a busy machine."""
        began = self._cpu_s()
        for _ in range(MOST_WAITS):
            if select.select([stdout], [], [], LIMIT_S)[0]:
                return True
            if self._cpu_s() - began > LIMIT_S / 2:
                break
        return False

    def _cpu_s(self) -> float:
        """Seconds that the worker has computed for."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


# --------------------------------------------------------------------------------------------------------- slides


def picture() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """400 x 480 px: a stained disc with texture on glass."""
    image = np.full((400, 480, 3), 244, np.uint8)
    cv2.circle(image, (240, 200), 190, (222, 140, 180), -1)
    rng = np.random.default_rng(1)
    for x, y in rng.integers(60, 340, (150, 2)).tolist():
        cv2.circle(image, (x + 40, y), 4, (120, 80, 160), -1)
    return image


def small_svs(folder: Path, _dicom: Path | None) -> tuple[str, bytes]:
    path = folder / "whole.svs"
    write_pyramid(path, picture(), mpp=None, tile_px=128, description=APERIO)
    return "slide.svs", path.read_bytes()


def small_tiff(folder: Path, _dicom: Path | None) -> tuple[str, bytes]:
    path = folder / "whole.tif"
    write_pyramid(path, picture(), mpp=0.5, tile_px=128, levels=2)
    return "slide.tif", path.read_bytes()


def small_dicom(_folder: Path, dicom: Path | None) -> tuple[str, bytes]:
    """Four frames from the middle of the real slide: 480 x 480 px. (Explicit VR little endian, offset table.)"""
    assert dicom is not None
    data = max(dicom.iterdir(), key=lambda p: p.stat().st_size).read_bytes()
    start = data.index(struct.pack("<HH", 0x7FE0, 0x0010) + b"OB") + 12
    items, at = [], start
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":
        size = struct.unpack_from("<I", data, at + 4)[0]
        items.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    frames = [items[1 + row * 10 + column] for row in (5, 6) for column in (4, 5)]  # ten tiles of 240 px in a row
    offsets = np.cumsum([0, *(8 + len(frame) for frame in frames[:-1])])
    packed = [struct.pack(f"<{len(offsets)}I", *offsets.tolist()), *frames]
    header = data[:start]
    for tag, value in ((b"\x48\x00\x06\x00UL\x04\x00", 480), (b"\x48\x00\x07\x00UL\x04\x00", 480)):
        place = header.index(tag) + len(tag)
        header = header[:place] + struct.pack("<I", value) + header[place + 4 :]
    header = header.replace(b"\x28\x00\x08\x00IS\x04\x00130 ", b"\x28\x00\x08\x00IS\x04\x004   ")
    body = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item for item in packed)
    return "slide/slide.dcm", header + body + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"


def small_lossless(folder: Path, _dicom: Path | None, compression: str) -> tuple[str, bytes]:
    path = folder / "whole.tif"
    tifffile.imwrite(
        path, picture(), tile=(128, 128), compression=compression, predictor=compression == "zlib", photometric="rgb",
        metadata=None, resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return "slide.tif", path.read_bytes()


SMALL: dict[str, Callable[[Path, Path | None], tuple[str, bytes]]] = {
    "svs": small_svs, "tiff": small_tiff, "dicom": small_dicom,
    "lzw": partial(small_lossless, compression="lzw"), "deflate": partial(small_lossless, compression="zlib"),
}  # fmt: skip


def header_bytes(data: bytes) -> list[int]:
    """The places of a slide that hold no compressed pixels."""
    if data[:2] != b"II":
        return list(range(data.index(struct.pack("<HH", 0x7FE0, 0x0010) + b"OB") + 40))
    header = np.ones(len(data), np.bool_)
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        for page in tiff.pages:
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                header[offset : offset + size] = False
    return np.flatnonzero(header).tolist()


# ------------------------------------------------------------------------------------------------------- mutations


def mutated(data: bytes, header: list[int], dice: random.Random) -> bytes:
    """One of seven kinds of damage, in the headers more often than in the pixels."""
    copy = bytearray(data)
    kind = dice.choice(["header", "header", "field", "field", "field", "anywhere", "cut", "swap", "zeros"])
    if kind == "header":
        for place in dice.choices(header, k=dice.choice([1, 1, 2, 4])):
            copy[place] ^= 1 << dice.randrange(8)
    elif kind == "field":
        size = dice.choice([2, 4, 8])
        place = dice.choice(header) & ~1
        extreme = dice.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, dice.getrandbits(64)])
        copy[place : place + size] = (extreme & (2 ** (8 * size) - 1)).to_bytes(size, "little")
    elif kind == "anywhere":
        for place in dice.choices(range(len(data)), k=dice.choice([1, 4, 16, 64])):
            copy[place] = dice.randrange(256)
    elif kind == "cut":
        del copy[dice.randrange(1, len(data)) :]
    else:
        size = dice.choice([16, 256, 2048])
        a, b = dice.randrange(len(data) - size), dice.randrange(len(data) - size)
        copy[a : a + size] = data[b : b + size] if kind == "swap" else bytes(size)
        if kind == "swap":
            copy[b : b + size] = data[a : a + size]
    return bytes(copy)


# ----------------------------------------------------------------------------------------------------------- tests


def tile_one(slide: Path, _progress: TileProgress) -> None:
    """The engine's task."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tile_slide(slide, slide.with_suffix(".out"), TilingConfig(mpp=0.5, tile_px=128, min_tissue=0.1, codec="lossless"))


@contextmanager
def worker(log: Path) -> Iterator[Worker]:
    process = Worker(log)
    try:
        yield process
    finally:
        process.close()


def check_mutants(kind: str, dicom: Path | None, tmp_path: Path, seeds: range) -> Counter[str]:
    """Tile the slide as it is, then its mutants; what became of them."""
    tally: Counter[str] = Counter()
    log = tmp_path / "log"
    with ram_folder(tmp_path) as ram, worker(log) as process:
        name, data = SMALL[kind](ram, dicom)
        header = header_bytes(data)
        for seed in (-1, *seeds):
            folder = ram / str(seed)
            slide = folder / name
            slide.parent.mkdir(parents=True)
            slide.write_bytes(data if seed < 0 else mutated(data, header, random.Random(seed)))
            answer = process.tile(slide, folder / "out", (seed + 1) % 2)  # none may be left out, or any
            where = f"mutant {seed} of {kind}: {answer}"
            if seed < 0:
                assert answer.get("compared", 0) >= 9, where
                assert answer["wrong"] == [], where
            elif "error" in answer:
                tally["refused"] += 1
                assert str(slide) in answer["error"] or answer["error"].startswith("mpp: "), where
                assert "\n" not in answer["error"], where
                assert len(answer["error"]) < 300 + len(str(slide)), where
            elif "died" in answer:
                tally["died"] += 1
                outcome = run_slides(tile_one, [slide], workers=1, title="tiling")[0]
                reasons = ("its worker process died (killed, or out of memory)", f"{slide}: is damaged or incomplete")
                assert (outcome.error or "").startswith(reasons), where  # a fresh one may have just enough memory
            else:
                tally["tiled"] += 1
                assert answer.get("wrong") == [], where
                tally["compared"] += answer["compared"]
            shutil.rmtree(folder)
    assert "Traceback" not in log.read_text()
    return tally


@pytest.mark.parametrize(("kind", "count"), [("svs", 200), ("tiff", 200), ("dicom", 200), ("lzw", 70), ("deflate", 70)])
def test_mutated_slides(kind: str, count: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dicom = request.getfixturevalue("dicom") if kind == "dicom" else None
    tally = check_mutants(kind, dicom, tmp_path, range(count))
    assert tally["refused"] > count // 10
    assert tally["tiled"] > count // 10
    assert tally["compared"] > 3 * count // 2


@pytest.mark.nightly
@pytest.mark.parametrize("kind", SMALL)
def test_thousands_of_mutated_slides(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dicom = request.getfixturevalue("dicom") if kind == "dicom" else None
    tally = check_mutants(kind, dicom, tmp_path, range(200, 2200))
    assert tally["refused"] > 200
