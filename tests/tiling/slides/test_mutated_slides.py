"""Damaged slides by the hundred: one sentence naming the file, or the pixels of a reference decoder; nothing else.

The reference is OpenSlide, or tifffile for what OpenSlide does not open or misreads. A worker process of bounded
memory reads the tiles of one slide after the other, and tiles each tenth. It is given 20 seconds for each, of its own
where the machine is busy with others' work, and replaced when it dies, as the engine's workers are.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import select
import shutil
import signal
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
from pipeline.execution.pool import DIED, TileProgress, run_slides
from tests.tiling.conftest import ram_folder
from tests.tiling.ndpi_files import write_ndpi
from tests.tiling.philips_files import write_philips
from tiling import TilingConfig, tile_slide

LIMIT_S = 20
MOST_WAITS = 6
MEMORY = 4 << 30  # bytes of address space
BEGINNING = 200  # bytes: about the header of a compressed tile
APERIO = "Aperio Image Library v11.2.1 \r\n480x400 [0,0 480x400] (128x128) JPEG/RGB Q=85|AppMag = 20|MPP = 0.5"

# Reads lines of slide, folder of a store ("": none) and max_bad_tiles; answers each with a JSON line: the error, or how
# the tiles compare. A forked child does the work; its parent says when it has died, and forks another.
_WORKER = """
import json, math, os, resource, sys, traceback
import numpy as np, openslide, tifffile
import tiling.tile
from pathlib import Path
from tiling import Slide, TileStore, TilingConfig, tile_slide
from tiling.core.errors import SpecslideError
from tiling.slides.readers import open_reader
from tiling.tile import plan_tiles, read_tiles

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
os.fsync = lambda fd: None
tiling.tile.write_preview = lambda store, path: None

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
        firsts = [series.levels[0].pages[0] for series in tiff.series]
        page = max(firsts, key=lambda page: page.imagelength * page.imagewidth)
        height, width = page.imagelength, page.imagewidth
        whole = np.full((height + size, width + size, 3), 255, np.int16)
        for index, (offset, length) in enumerate(zip(page.dataoffsets, page.databytecounts)):
            row, column = divmod(index, page.chunked[1])
            y, x = row * page.chunks[0], column * page.chunks[1]
            block = whole[y : min(y + page.chunks[0], height), x : min(x + page.chunks[1], width)]
            try:
                if length:
                    tiff.filehandle.seek(offset)
                    data = tiff.filehandle.read(min(length, path.stat().st_size))
                    segment = page.decode(data, index, jpegtables=page.jpegtables)[0]
                    block[:] = segment[0, : block.shape[0], : block.shape[1]]
            except Exception:
                block[:] = -1  # no tile may show it
        for x, y in corners:
            yield whole[y : y + size, x : x + size]

def reference(path):
    return tifffile_tiles if open_reader(path)[0] == "tifffile" else openslide_tiles

def stored(path, out, config):
    store = TileStore(tile_slide(path, out, config).store)
    return store.tiles, store.read(slice(None))

def shown(path, config):
    with Slide(path) as slide:
        tiles = plan_tiles(slide, config).tiles
        found = list(read_tiles(slide, tiles, config.max_bad_tiles))
    size = config.tile_px
    return tiles.only([row for row, _ in found]), np.array([tile for _, tile in found]).reshape(-1, size, size, 3)

def work(path, out, max_bad_tiles):
    config = TilingConfig(mpp=0.5, tile_px=128, min_tissue=0.1, codec="lossless", max_bad_tiles=max_bad_tiles)
    try:
        tiles, pixels = stored(path, Path(out), config) if out else shown(path, config)
    except SpecslideError as error:
        return {"error": str(error)}
    if tiles.grid.tile_px0 != tiles.grid.tile_px:
        return {"tiles": len(tiles), "compared": 0, "wrong": []}
    corners = tiles.places()
    pairs = zip(corners, pixels, reference(path)(path, corners, tiles.grid.tile_px))
    wrong = [c for c, tile, expected in pairs if expected is None or not np.array_equal(tile, expected)]
    return {"tiles": len(tiles), "compared": len(tiles), "wrong": wrong}

def serve():
    print(json.dumps({"ready": os.getpid()}), flush=True)
    while line := sys.stdin.readline():
        path, out, max_bad_tiles = line.rstrip("\\n").split("\\t")
        try:
            answer = work(Path(path), out, float(max_bad_tiles))
        except Exception:
            answer = {"mistake": traceback.format_exc()}
        print(json.dumps(answer), flush=True)

while child := os.fork():
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        break
    print(json.dumps({"died": code}), flush=True)
else:
    serve()
    os._exit(0)
"""


class Worker:
    """The process that does the work; another does when it has died."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._start()

    def _start(self) -> None:
        with self._log.open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, str(MEMORY)], start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        self._pid = int(self._line()["ready"])

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))

    def tile(self, slide: Path, out: Path | None, max_bad_tiles: float) -> dict[str, Any]:
        """What the worker says of that slide; {"died": code} if it died of it, {"hung": seconds} if it is too slow."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{slide}\t{out or ''}\t{max_bad_tiles}\n")
        stdin.flush()
        if not self._answers(stdout):
            self.close()
            self._start()
            return {"hung": LIMIT_S}
        answer = self._line()
        if "died" in answer:
            self._pid = int(self._line()["ready"])
        return answer

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
        """Seconds that the worker has computed for; 0 when it has died, which it will answer."""
        try:
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
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


def small_ome(folder: Path, _dicom: Path | None) -> tuple[str, bytes]:
    """With the coarser level in a directory below the first, as Bio-Formats writes it."""
    path, coarse = folder / "whole.ome.tif", cv2.resize(picture(), (240, 200), interpolation=cv2.INTER_AREA)
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        how: dict[str, Any] = {"tile": (128, 128), "compression": "jpeg", "photometric": "rgb"}
        tiff.write(picture(), subifds=1, metadata=metadata, **how)
        tiff.write(coarse, subfiletype=1, **how)
    return "slide.ome.tif", path.read_bytes()


def small_jpeg2000(folder: Path, _dicom: Path | None, compression: str) -> tuple[str, bytes]:
    """Aperio's own way of it, which OpenSlide reads, or the one of plain TIFFs, which it does not."""
    path = folder / "whole.tif"
    tifffile.imwrite(
        path, picture(), tile=(128, 128), compression=compression, compressionargs={"reversible": True},
        photometric="rgb", metadata=None, resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
        description=APERIO.replace("JPEG/RGB Q=85", "J2K/KDU Q=30") if compression.startswith("aperio") else None,
    )  # fmt: skip
    return "slide.tif", path.read_bytes()


def small_ndpi(folder: Path, _dicom: Path | None) -> tuple[str, bytes]:
    path = write_ndpi(
        folder / "whole.ndpi", [picture(), np.asarray(cv2.resize(picture(), (240, 200)), np.uint8)], "444", restart=10
    )
    return "slide.ndpi", path.read_bytes()


def small_philips(folder: Path, _dicom: Path | None) -> tuple[str, bytes]:
    return "slide.tiff", write_philips(folder / "whole.tiff", picture(), (1, 2), tile_px=128, mpp=0.5).read_bytes()


SMALL: dict[str, Callable[[Path, Path | None], tuple[str, bytes]]] = {
    "svs": small_svs, "tiff": small_tiff, "dicom": small_dicom,
    "lzw": partial(small_lossless, compression="lzw"), "deflate": partial(small_lossless, compression="zlib"),
    "ome": small_ome, "ndpi": small_ndpi, "aperio-jpeg2000": partial(small_jpeg2000, compression="aperio_jp2000_rgb"),
    "jpeg2000": partial(small_jpeg2000, compression="jpeg2000"), "philips": small_philips,
}  # fmt: skip


def header_bytes(data: bytes) -> list[int]:
    """The places of a slide that hold no compressed pixels, and the beginnings of the first ones of each picture."""
    if data[:2] != b"II":
        return list(range(data.index(struct.pack("<HH", 0x7FE0, 0x0010) + b"OB") + 40))
    header = np.ones(len(data), np.bool_)
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        for page in tiff.pages:
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                header[offset : offset + size] = False
            for offset in page.dataoffsets[:1]:
                header[offset : offset + BEGINNING] = True
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
            out = folder / "out" if seed % 10 in (0, 9) else None
            answer = process.tile(slide, out, (seed + 1) % 2)  # none may be left out, or any
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
                reasons = (DIED, f"{slide}: is damaged or incomplete", f"{slide}: has too many tiles that cannot be")
                assert (outcome.error or "").startswith(reasons), where  # a fresh one may have just enough memory
            else:
                tally["tiled"] += 1
                assert answer.get("wrong") == [], where
                tally["compared"] += answer["compared"]
            shutil.rmtree(folder)
    assert "Traceback" not in log.read_text()
    return tally


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("svs", 70), ("tiff", 70), ("dicom", 60), ("lzw", 40), ("deflate", 40), ("ome", 50), ("ndpi", 40),
        ("aperio-jpeg2000", 40), ("jpeg2000", 30), ("philips", 40),
    ],
)  # fmt: skip
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
