"""Nothing that a slide says of people leaves it: canaries in its label, macro, texts and name, searched for everywhere.

Each slide is laid out as Aperio's scanners do, and carries words and pictures of its own that occur nowhere else. They
are looked for in the bytes of every file, in what those bytes hold when decompressed and decoded, in the pixels of
every picture, in the log, and in what the terminal shows, of runs that succeed and of runs that fail.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pyarrow.parquet
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from inference.exports import formats
from pipeline import cli
from tests.inference.conftest import picture, write_model
from tests.pipeline.conftest import RunCli
from tests.tiling.dicom_files import REPORT, write_instance, write_object
from tests.tiling.icc_files import rgb_profile
from tiling.core.errors import SpecslideError

pytestmark = pytest.mark.usefixtures("one_process")  # whose log is heard, too

Pixels = NDArray[np.uint8]

MAGENTA, LIME = (255, 0, 255), (0, 255, 0)  # of label and macro; no tissue and no colour map has them
_COLOUR_DISTANCE = 60
KINDS = ("user", "date", "barcode", "description", "scanner", "label", "macro", "folder", "name")


@dataclass(frozen=True)
class Canary:
    """A slide and the words that only it says."""

    path: Path
    words: dict[str, str]

    @property
    def slide_id(self) -> str:
        """What its manifest calls it."""
        return f"s{int(self.words['name'][-2:]):02}"


def make_canary(folder: Path, number: int, profile: Callable[[str], bytes] | None = None) -> Canary:
    """Its ICC profile is what `profile` makes of a word; None: no profile, but the word."""
    words = {kind: f"Zq{kind.capitalize()}Canary{number:02}" for kind in KINDS}
    path = folder / words["folder"] / f"{words['name']}.svs"
    path.parent.mkdir(parents=True)
    slide = picture(256)
    facts = (
        f"{words['description']}|AppMag = 20|MPP = 1.0|User = {words['user']}|Date = {words['date']}|"
        f"Barcode = {words['barcode']}|ScanScope ID = {words['scanner']}|Filename = {words['name']}"
    )
    begin = "Aperio Image Library v12.0.15 \r\n"
    with tifffile.TiffWriter(path) as tiff:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": words["scanner"]}
        tiff.write(
            slide, tile=(64, 64), compression="jpeg", compressionargs={"level": 90}, datetime="2001:02:03 04:05:06",
            description=f"{begin}256x256 [0,0 256x256] (64x64) JPEG/RGB Q=90|{facts}", **options,
            extratags=[(code, kind, 0, value, True) for code, kind, value in (
                (315, 2, words["user"]), (316, 2, words["scanner"]), (33432, 2, words["user"]),  # artist, host, rights
                (700, 7, f"<x:xmpmeta><dc:creator>{words['user']}</dc:creator></x:xmpmeta>".encode()),
                (34675, 7, words["user"].encode() * 20 if profile is None else profile(words["user"])),  # ICC
            )],
        )  # fmt: skip
        tiff.write(slide[::4, ::4], description=f"{begin}256x256 -> 64x64 - |{facts}", **options)
        for kind, colour in (("label", MAGENTA), ("macro", LIME)):
            flat = np.full((96, 128, 3), colour, np.uint8)
            flat[8:24, 8:100] = 0  # as if something were written there
            tiff.write(
                flat, subfiletype=1 if kind == "label" else 9, description=f"{begin}{kind} 128x96 {words[kind]}",
                extratags=[(65000, 2, 0, words[kind], True)], **options,
            )  # fmt: skip
    return Canary(path, words)


# ---------------------------------------------------------------------------------------------------- the search


def texts_in(path: Path) -> Iterator[bytes]:
    """All that a file says: its bytes, and what is in them once decompressed."""
    data = path.read_bytes()
    yield data
    yield path.name.encode()
    yield from png_texts(data)
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        yield repr((table.schema.metadata, table.to_pydict())).encode()
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as tiff:
            yield repr(
                [tag.value for page in tiff.pages if isinstance(page, tifffile.TiffPage) for tag in page.tags]
            ).encode()
    for embedded in embedded_in(path):
        yield embedded
        yield from png_texts(embedded)


def png_texts(data: bytes) -> Iterator[bytes]:
    at = 8 if data.startswith(b"\x89PNG") else len(data)
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        chunk = data[at + 8 : at + 8 + length]
        if kind in (b"zTXt", b"iTXt", b"eXIf", b"iCCP"):
            yield chunk
            for start in (m.end() for m in re.finditer(b"\0+", chunk)):
                yield zlib.decompressobj().decompress(chunk[start:]) if chunk[start : start + 1] == b"x" else b""
        at += 12 + length


def embedded_in(path: Path) -> list[bytes]:
    """The files inside a page, as its data URIs hold them."""
    if path.suffix != ".html":
        return []
    return [base64.b64decode(text) for text in re.findall(r"data:[\w/+.-]+;base64,([\w+/=]+)", path.read_text())]


def pictures_in(folder: Path) -> Iterator[tuple[str, Pixels]]:
    """Every picture of a folder: PNG and JPEG files, those inside pages, and the colour arrays of zarr groups."""
    for path in folder.rglob("*"):
        for data in [path.read_bytes(), *embedded_in(path)] if path.is_file() else []:
            if data.startswith((b"\x89PNG", b"\xff\xd8")):
                with Image.open(io.BytesIO(data)) as image:
                    yield path.name, np.asarray(image.convert("RGB"), np.uint8)
        if path.name == "zarr.json" and json.loads(path.read_bytes())["node_type"] == "array":
            array = np.asarray(zarr.open_array(path.parent, mode="r"))
            if array.ndim >= 3 and array.shape[-1] == 3:
                assert array.size, f"{path.parent} is empty, so it shows nothing"
                yield str(path.parent.name), array.reshape(-1, *array.shape[-2:])


def told(text: bytes, words: dict[str, str]) -> list[str]:
    """Which of the words a text holds, in any case, in 8 or 16 bits, plain or in base64."""
    text = text.lower()
    return [kind for kind, word in words.items() if any(spelt in text for spelt in spellings(word))]


@cache
def spellings(word: str) -> tuple[bytes, ...]:
    plain = word.encode()
    # In base64 three bytes are four letters, so a word looks in three ways; its ends depend on what stands beside it.
    encoded = [base64.b64encode(b"x" * before + plain)[4:-4] for before in range(3)]
    return tuple(spelt.lower() for spelt in (plain, word.encode("utf-16-le"), *encoded))


def shows_canary(pixels: Pixels) -> bool:
    distances = [np.abs(pixels.astype(np.int16) - colour).max(-1).min() for colour in (MAGENTA, LIME)]
    return bool(min(distances) < _COLOUR_DISTANCE)


def assert_silent(folder: Path, canaries: list[Canary]) -> None:
    """No file below the folder tells a word or shows a picture of a canary."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {
        f"{path.relative_to(folder)}: {kind}"
        for path in files
        for text in texts_in(path)
        for canary in canaries
        for kind in told(text, canary.words)
    }
    assert found == set()
    names = [name for name, pixels in pictures_in(folder) if shows_canary(pixels)]
    assert names == []


def words_in(text: str, canaries: list[Canary], *, but: tuple[str, ...] = ()) -> set[str]:
    return {kind for canary in canaries for kind in told(text.encode(), canary.words)} - set(but)


# ---------------------------------------------------------------------------------------------------- the runs


@dataclass
class Ran:
    """What the terminal and the log said."""

    said: str = ""
    log: str = ""


def command(ran: Ran, caplog: pytest.LogCaptureFixture, *arguments: object, code: int = 0) -> None:
    with caplog.at_level(logging.DEBUG):
        done = CliRunner().invoke(cli.app, ["--verbose", *map(str, arguments)])
    error = str(done.exception) if isinstance(done.exception, SpecslideError) else ""
    assert done.exit_code == code, done.output
    ran.said += done.output + error
    ran.log += caplog.text
    caplog.clear()


def manifest_of(canaries: list[Canary], path: Path) -> Path:
    lines = [f"{canary.path},{canary.slide_id}" for canary in canaries]
    path.write_text("\n".join(["slide_path,slide_id", *lines]) + "\n")
    return path


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.nightly)])
def test_nothing_of_a_slide_leaves_it(count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From slides to stores and heatmaps in every format, by the ids of a manifest; from slides directly; and again."""
    canaries = [make_canary(tmp_path / "slides", number) for number in range(count)]
    model = write_model(tmp_path / "model", threshold=0.4, mpp=1.0)
    out, ran = tmp_path / "out", Ran()
    stores, made = out / "stores", out / "heatmaps"
    tile = [
        "tile",
        "--manifest",
        manifest_of(canaries, tmp_path / "slides.csv"),
        "--mpp",
        1,
        "--tile-px",
        32,
        "--out",
        stores,
    ]
    command(ran, caplog, *tile, "--workers", 1)
    command(ran, caplog, *tile, "--workers", 1)  # what is there is kept, and said to be
    found = sorted(stores.glob("*.zarr"))
    assert [path.stem for path in found] == [canary.slide_id for canary in canaries]
    heatmap = ["heatmap", *found, "--model", model, "--formats", ",".join(formats()), "--out", made]
    command(ran, caplog, *heatmap)
    command(ran, caplog, *heatmap)
    by_id = ["--manifest", tmp_path / "slides.csv", "--model", model, "--formats", ",".join(formats())]
    command(ran, caplog, "heatmap", *by_id, "--out", out / "direct")
    command(ran, caplog, "verify", *found, *made.glob("s*"))
    (made / canaries[0].slide_id / "overlay.png").write_bytes(b"damaged")
    (stores / f"{canaries[0].slide_id}.zarr" / "zarr.json").unlink()
    command(ran, caplog, "verify", *found, *made.glob("s*"), code=1)
    (stores / f"{canaries[0].slide_id}.zarr").rename(tmp_path / "damaged.zarr")
    (made / canaries[0].slide_id / "overlay.png").unlink()
    assert {path.name for path in (out / "direct").iterdir() if path.is_dir()} == {c.slide_id for c in canaries}
    assert_silent(out, canaries)
    assert words_in(ran.said + ran.log, canaries) == set()
    assert canaries[0].slide_id in ran.said
    assert ran.log


@pytest.mark.nightly
def test_nothing_leaves_through_a_whole_study(run_cli: RunCli, tmp_path: Path) -> None:
    """Stores, trainings, tests, heatmaps, pages, ledger and terminal, of slides whose XMP and ICC profile tell, too."""
    canaries = [make_canary(tmp_path / "slides", number) for number in range(9)]
    parts = ("train", "train", "train", "train", "val", "val", "test", "test", "test")
    lines = ["slide_path,slide_id,case_id,label,split"]
    for number, (canary, split) in enumerate(zip(canaries, parts, strict=True)):
        label = ("benign", "tumour")[number % 2]
        lines.append(f"{canary.path},{canary.slide_id},c{number},{label},{split}")
    (tmp_path / "slides.csv").write_text("\n".join(lines))
    damaged(canaries[-1], "cut")
    (tmp_path / "study.yaml").write_text("""
manifest: slides.csv
out: results
tile: {mpp: 1.0, tile_px: 32}
train: {backbone: test_resnet, weights: none, input_px: 32, epochs: 1, batch_size: 16, threads: 1,
        bootstrap_resamples: 2}
evaluate: {resamples: 2}
stress: {shifts: [hue], strengths: 1, resamples: 2}
workers: 1
""")
    done = run_cli("-v", "run", tmp_path / "study.yaml", cwd=tmp_path)
    assert done.returncode == 1, "one of the slides is cut"
    assert "s08" in done.stdout + done.stderr
    assert (tmp_path / "results" / "heatmaps" / "s06" / "report.html").exists()
    assert words_in(done.stdout + done.stderr, canaries) == set()
    assert_silent(tmp_path / "results", canaries)


def damaged(canary: Canary, how: str) -> None:
    data = bytearray(canary.path.read_bytes())
    if how == "cut":
        del data[len(data) // 8 :]  # within the tiles of level 0: cut behind them, the slide is whole
    elif how == "noise in the tiles":
        with tifffile.TiffFile(canary.path) as tiff:
            page = tiff.pages.first
            for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                data[start : start + size] = bytes(size)
    elif how == "no scale":
        data = bytearray(bytes(data).replace(b"MPP = 1.0", b"MPP = ???"))
    else:
        data[:4] = b"GIF8"
    canary.path.write_bytes(bytes(data))


HOW = ("cut", "noise in the tiles", "no scale", "no TIFF")


@pytest.mark.parametrize("how", HOW)
def test_a_slide_that_fails_is_named_and_nothing_of_it_is_told(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the id of the manifest, alone; or, of a file that the user passed, by that, so that it can be found."""
    canary = make_canary(tmp_path / "slides", 7)
    damaged(canary, how)
    model, out, ran = write_model(tmp_path / "model", mpp=1.0), tmp_path / "out", Ran()
    by_id = ["--manifest", manifest_of([canary], tmp_path / "slides.csv")]
    command(ran, caplog, "tile", *by_id, "--out", out / "stores", "--mpp", 1, "--tile-px", 32, "--workers", 1, code=1)
    command(ran, caplog, "heatmap", *by_id, "--model", model, "--out", out / "heatmaps", code=1)
    assert words_in(ran.said + ran.log, [canary]) == set()
    assert ran.said.count("s07") >= 4, "each table and its reason call the slide by its id"
    assert_silent(out, [canary])
    ran = Ran()
    command(ran, caplog, "heatmap", canary.path, "--model", model, "--out", out / "by name", code=1)
    assert words_in(ran.said, [canary]) == {"name", "folder"}, "or nobody could find the file"
    assert words_in(ran.log, [canary], but=("name", "folder")) == set()


def test_a_profile_is_applied_or_refused_and_tells_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    canaries = [make_canary(tmp_path / "slides", number, (rgb_profile, None)[number]) for number in range(2)]
    model, out, ran = write_model(tmp_path / "model", mpp=1.0), tmp_path / "out", Ran()
    by_id = ["--manifest", manifest_of(canaries, tmp_path / "slides.csv"), "--icc", "srgb"]
    tile = ["tile", *by_id, "--out", out / "stores", "--mpp", 1, "--tile-px", 32, "--workers", 1]
    command(ran, caplog, *tile, code=1)
    command(ran, caplog, "heatmap", *by_id, "--model", model, "--out", out / "heatmaps", code=1)
    assert [path.name for path in (out / "stores").glob("*.zarr")] == ["s00.zarr"]
    assert (out / "heatmaps" / "s00" / "report.html").exists()
    assert "ICC" in ran.said
    assert words_in(ran.said + ran.log, canaries) == set()
    assert_silent(out, canaries)


@pytest.mark.nightly
def test_nothing_of_a_photographs_exif_or_an_ndpis_tags_leaves_it(
    ndpi: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = {kind: f"Zq{kind.capitalize()}Canary00" for kind in ("artist", "comment", "place", "name")}
    words |= {"date": "ZqDateCanary:17:02:", "created": "ZqCreated0"}
    photograph, scan = (tmp_path / f"{words['name']}.{ending}" for ending in ("jpg", "ndpi"))
    exif = Image.Exif()
    exif[0x013B], exif[0x010E] = words["artist"], words["comment"]
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + words["comment"].encode()
    exif.get_ifd(0x8825)[0x001B] = b"ASCII\0\0\0" + words["place"].encode()
    Image.fromarray(picture(512)).save(photograph, exif=exif, comment=words["comment"].encode())
    data = bytearray(ndpi.read_bytes())
    for place, kind in ((47, "date"), (82, "created")):  # of tag 306, and of Hamamatsu's own 65449
        data[place : place + len(words[kind])] = words[kind].encode()
    scan.write_bytes(data)
    canaries = [Canary(path, words) for path in (photograph, scan)]
    held = {kind for path in (photograph, scan) for kind in told(path.read_bytes() + path.name.encode(), words)}
    assert held == set(words)
    (tmp_path / "slides.csv").write_text(f"slide_path,slide_id,mpp\n{photograph},s00,1\n{scan},s01,\n")
    model, out, ran = write_model(tmp_path / "model", mpp=1.0), tmp_path / "out", Ran()
    tile = ["tile", "--manifest", tmp_path / "slides.csv", "--mpp", 1, "--tile-px", 32, "--tissue", "all"]
    command(ran, caplog, *tile, "--out", out / "stores", "--workers", 1)
    stores = sorted((out / "stores").glob("*.zarr"))
    assert [store.stem for store in stores] == ["s00", "s01"]
    more = ["--formats", ",".join(formats()), "--out", out / "heatmaps"]
    command(ran, caplog, "heatmap", *stores, "--model", model, *more)
    assert words_in(ran.said + ran.log, canaries) == set()
    assert_silent(out, canaries)


@pytest.mark.nightly
@pytest.mark.parametrize("how", ["whole", "cut"])
def test_nothing_of_a_slide_is_in_what_dask_says(run_cli: RunCli, tmp_path: Path, how: str) -> None:
    canary = make_canary(tmp_path / "slides", 8)
    if how == "cut":
        damaged(canary, how)
    tile = ["tile", "--manifest", manifest_of([canary], tmp_path / "slides.csv"), "--mpp", 1, "--tile-px", 32]
    done = run_cli("--verbose", *tile, "--out", tmp_path / "out", "--cluster", "local:1", cwd=tmp_path)
    assert done.returncode == int(how == "cut"), done.stderr
    assert "s08" in done.stdout
    assert words_in(done.stdout + done.stderr, [canary]) == set()
    assert_silent(tmp_path / "out", [canary])


def test_nothing_of_a_dicom_slide_leaves_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whether it is tiled or fails, for its transfer syntax, its header, or a second slide in its folder."""
    words = {kind: f"Zq{kind.capitalize()}Canary09" for kind in ("patient", "barcode", "date", "folder", "name")}
    more: dict[str, Any] = {
        "PatientName": words["patient"],
        "PatientID": words["patient"],
        "ContainerIdentifier": words["barcode"],
    }
    more |= {"AcquisitionContextDescription": words["date"], "StudyDescription": words["date"]}
    folders = [tmp_path / words["folder"] / f"{words['name']}{number}" for number in range(4)]
    for folder in folders:
        write_instance(folder / f"{words['name']}.dcm", picture(512), mpp=1.0, **more)
        label = np.full((96, 128, 3), MAGENTA, np.uint8)
        write_instance(folder / f"{words['name']}.label", label, flavour="LABEL", **more)
        write_object(folder / f"{words['name']}.report", REPORT)
    write_instance(folders[1] / f"{words['name']}.dcm", picture(512), syntax="1.2.840.10008.1.2.4.80", **more)
    (folders[2] / f"{words['name']}.dcm").write_bytes(bytes(128) + b"DICM" + words["patient"].encode() * 9)
    write_instance(folders[3] / f"{words['name']}2.dcm", picture(512), series="2", **more)
    lines = [f"{folder},s{number:02}" for number, folder in enumerate(folders)]
    (tmp_path / "slides.csv").write_text("\n".join(["slide_path,slide_id", *lines]) + "\n")
    out, ran = tmp_path / "out", Ran()
    tile = ["tile", "--manifest", tmp_path / "slides.csv", "--mpp", 1, "--tile-px", 64, "--out", out, "--workers", 1]
    command(ran, caplog, *tile, code=1)
    assert [path.name for path in out.glob("*.zarr")] == ["s00.zarr"]
    assert "JPEG-LS" in ran.said
    canary = Canary(folders[0], words)
    assert words_in(ran.said + ran.log, [canary]) == set()
    assert_silent(out, [canary])


def test_the_terminal_of_a_run_that_fails(run_cli: RunCli, tmp_path: Path) -> None:
    """A process of its own, whose libraries write to the terminal themselves."""
    canaries = [make_canary(tmp_path / "slides", number) for number in range(3)]
    for canary, how in zip(canaries, HOW, strict=False):
        damaged(canary, how)
    manifest = manifest_of(canaries, tmp_path / "slides.csv")
    done = run_cli(
        "-v", "tile", "--manifest", manifest, "--mpp", 1, "--tile-px", 32, "--out", tmp_path / "out", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "3 of 3 slides failed" in done.stderr
    assert words_in(done.stdout + done.stderr, canaries) == set()
    assert_silent(tmp_path / "out", canaries)


# ----------------------------------------------------------------------------------------- does the search find?


def test_the_canaries_sing(tmp_path: Path) -> None:
    """OpenSlide reads every word and both pictures from the slide, so what leaks could be found."""
    canary = make_canary(tmp_path, 1)
    with openslide.OpenSlide(canary.path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        said = " ".join(slide.properties.values())
        for kind in ("label", "macro"):
            slide.associated_images[kind].convert("RGB").save(tmp_path / f"{kind}.png")
    assert {"user", "date", "barcode", "description", "scanner", "name"} <= words_in(said, [canary])
    for kind in ("label", "macro"):
        with Image.open(tmp_path / f"{kind}.png") as image:
            assert shows_canary(np.asarray(image, np.uint8))
    assert told(canary.path.read_bytes(), canary.words) == [kind for kind in KINDS if kind != "folder"]


def leak(folder: Path, canary: Canary, way: str) -> None:
    """Give a word, or the label's picture, away in one way."""
    word, label = canary.words["user"], Image.new("RGB", (64, 64), MAGENTA)
    file = io.BytesIO()
    label.resize((16, 16)).save(file, "JPEG", quality=60)
    uri = base64.b64encode(file.getvalue()).decode()
    match way:
        case "plain":
            (folder / "a.json").write_text(json.dumps({"user": word.upper()}))
        case "a file's name":
            (folder / f"{word}.txt").write_text("")
        case "a PNG's compressed text":
            from PIL.PngImagePlugin import PngInfo

            info = PngInfo()
            info.add_text("Author", word, zip=True)
            Image.new("RGB", (8, 8)).save(folder / "a.png", pnginfo=info)
        case "a table's metadata":
            table = pyarrow.table({"a": [word]}).replace_schema_metadata({"b": "c"})
            pyarrow.parquet.write_table(table, folder / "a.parquet", compression="zstd")
        case "base64":
            (folder / "a.html").write_text(base64.b64encode(f"The users are {word}.".encode()).decode())
        case "a picture in a page":
            (folder / "a.html").write_text(f'<img src="data:image/jpeg;base64,{uri}">')
        case "a picture's corner":
            pixels = np.full((300, 300, 3), 200, np.uint8)
            pixels[:5, :5] = np.asarray(label)[:5, :5]
            Image.fromarray(pixels).save(folder / "a.png")
        case "an array of a store":
            array = zarr.create_array(folder / "a.zarr", shape=(64, 64, 3), dtype="uint8")
            array[:] = np.asarray(label)


WAYS = (
    "plain", "a file's name", "a PNG's compressed text", "a table's metadata", "base64", "a picture in a page",
    "a picture's corner", "an array of a store",
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_leak_is_found(tmp_path: Path, way: str) -> None:
    canary = make_canary(tmp_path / "slides", 1)
    (tmp_path / "out").mkdir()
    assert_silent(tmp_path / "out", [canary])
    leak(tmp_path / "out", canary, way)
    with pytest.raises(AssertionError):
        assert_silent(tmp_path / "out", [canary])
