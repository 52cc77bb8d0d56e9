"""The command line as a user meets it: what is wrong is said in one sentence, and nothing is left half-written."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import zarr

from inference import HeatmapReport
from inference.maps.scores import slide_scores
from pipeline.commands.options import slides_of
from pipeline.commands.outcomes import heatmap_outcome
from pipeline.demo.synthetic import write_pyramid
from tests.inference.conftest import write_model
from tests.pipeline.conftest import Finished, RunCli, listing
from tiling.core.errors import InputError


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights, of tiles of 128 px at 0.5 mpp; read only unless copied."""
    return write_model(tmp_path_factory.mktemp("models") / "model", tile_px=128)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def said(done: Finished) -> str:
    """All that was shown; no traceback, ever."""
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    return text


def refused(done: Finished, *words: str) -> str:
    """The one sentence of a command that did nothing else."""
    text = said(done)
    assert done.returncode not in (0, -6, -9, -11), text
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    for word in words:
        assert word in lines[0], text
    return lines[0]


def failed_slide(done: Finished, slide_id: str, *words: str) -> None:
    """One line of the table names the slide, with the reason; the command fails."""
    text = said(done)
    assert done.returncode == 1, text
    (line,) = [line for line in done.stdout.splitlines() if re.search(rf"│ {slide_id} .*FAILED", line)]
    for word in words:
        assert word in line, text
    refused(done, "slides failed")


# ------------------------------------------------------------------------------------- criterion 7: slides


def truncated(path: Path, slide: Path) -> None:
    path.write_bytes(slide.read_bytes()[: slide.stat().st_size // 3])


def test_a_bad_slide_is_listed_and_the_good_one_made(run_cli: RunCli, small_slide: Path, tmp_path: Path) -> None:
    """Every kind of bad slide in one run, beside a good one."""
    bad = {name: tmp_path / f"{name}.svs" for name in ("text", "empty", "cut", "unscaled", "absent")}
    bad["text"].write_text("no slide at all\n" * 100)
    bad["empty"].touch()
    truncated(bad["cut"], small_slide)
    write_pyramid(bad["unscaled"], np.full((256, 256, 3), 200, np.uint8), mpp=None)
    out = tmp_path / "out"
    done = run_cli("tile", *bad.values(), small_slide, "--out", out, "--tile-px", 128, "--workers", 2)
    text = said(done)
    assert done.returncode == 1
    for name, reason in (
        ("text", "is not a slide"), ("empty", "is an empty file"), ("cut", "damaged"),
        ("unscaled", "--slide-mpp"), ("absent", "No such file"),
    ):  # fmt: skip
        (line,) = [line for line in text.splitlines() if f"│ {name} " in line]
        assert "FAILED" in line
        assert str(bad[name]) in line
        assert reason in line
    refused(done, "5 of 6 slides failed")
    assert {p.name for p in out.iterdir()} == {"small.zarr", "small.png"}
    assert run_cli("verify", out / "small.zarr").returncode == 0


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "unscaled"])
def test_a_bad_slide_alone_leaves_nothing(run_cli: RunCli, small_slide: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.svs"
    match kind:
        case "text":
            path.write_text("no slide")
        case "empty":
            path.touch()
        case "cut":
            truncated(path, small_slide)
        case _:
            write_pyramid(path, np.full((256, 256, 3), 200, np.uint8), mpp=None)
    out = tmp_path / "out"
    failed_slide(run_cli("tile", path, "--out", out, "--workers", 1), kind, str(path))
    assert list(out.iterdir()) == []


def test_a_cut_slide_leaves_no_heatmap(run_cli: RunCli, small_slide: Path, model: Path, tmp_path: Path) -> None:
    truncated(tmp_path / "cut.svs", small_slide)
    (tmp_path / "locked").mkdir(mode=0)
    out = tmp_path / "out"
    done = run_cli("heatmap", tmp_path / "cut.svs", tmp_path / "locked", small_slide, "--model", model, "--out", out)
    (tmp_path / "locked").chmod(0o700)
    text = said(done)
    assert done.returncode == 1, text
    for name, file in (("cut", "cut.svs"), ("locked", "locked")):
        failed_slide(done, name, f"{tmp_path / file}: ")
    assert {p.name for p in out.iterdir()} == {"small", "index.html", "not_analysed.json"}
    index = (out / "index.html").read_text()
    assert "Not analysed" in index
    assert "<td>cut</td><td>cut: " in index
    assert str(tmp_path) not in index, "it is sent away with the results"
    assert "2 of 3 slides failed" in done.stderr


# -------------------------------------------------------------------------------------- criterion 7: refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--overlap", "1.0"], ["overlap", "1.0 is refused"]),
        (["--tile-px", "0"], ["tile_px"]),
        (["--mpp", "-1"], ["mpp"]),
        (["--mpp", "nan"], ["mpp"]),
        (["--codec", "png"], ["codec"]),
        (["--min-tissue", "2"], ["min_tissue"]),
        (["--manifest", "absent.csv"], ["name no slides, or name them twice"]),
        (["--annotations", "absent"], ["absent", "is not a folder"]),
    ],
)
def test_wrong_tile_options_are_refused(
    run_cli: RunCli, small_slide: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    refused(run_cli("tile", small_slide, "--out", "out", *options, cwd=tmp_path), *words)
    assert listing(tmp_path) == {}


def test_a_missing_manifest_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    refused(run_cli("tile", "--manifest", "absent.csv", "--out", "out", cwd=tmp_path), "absent.csv", "No such file")
    assert listing(tmp_path) == {}


def test_twin_slides_are_refused(run_cli: RunCli, small_slide: Path, tmp_path: Path) -> None:
    twin = tmp_path / small_slide.name
    shutil.copy(small_slide, twin)
    before = listing(tmp_path)
    refused(run_cli("tile", small_slide, twin, "--out", tmp_path / "out"), "'small'", str(small_slide), str(twin))
    assert listing(tmp_path) == before


def test_twin_heatmaps_are_refused(small_slide: Path, tmp_path: Path) -> None:
    """Even with --overwrite: the second would replace the first."""
    twin = tmp_path / small_slide.name
    shutil.copy(small_slide, twin)
    store = tmp_path / "small.zarr"
    for other in (twin, store):
        with pytest.raises(InputError, match=f"'small': {small_slide} and {other}"):
            slides_of([small_slide, other], None, None)


def test_a_name_that_cannot_be_an_id_costs_that_slide(run_cli: RunCli, small_slide: Path, tmp_path: Path) -> None:
    shutil.copy(small_slide, tmp_path / "-x.tif")
    (tmp_path / "m.csv").write_text(f"slide_path,slide_id\n{small_slide},index.html\n{small_slide},good\n")
    for given, name in (([tmp_path / "-x.tif", small_slide], "small"), (["--manifest", tmp_path / "m.csv"], "good")):
        done = run_cli("tile", *given, "--out", tmp_path / name, "--tile-px", 128, "--workers", 1)
        assert done.returncode == 1, said(done)
        refused(done, "1 of 2 slides failed")
        assert {p.name for p in (tmp_path / name).iterdir()} == {f"{name}.zarr", f"{name}.png"}
    assert f"{tmp_path / 'm.csv'}: 2 rows, 1 slides" in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert "row 2" in line
    assert "'index.html'" in line


def test_a_folder_of_slides(run_cli: RunCli, small_slide: Path, model: Path, tmp_path: Path) -> None:
    """What is in it and below; stores and results in it are not slides; what is left out, and what may not be read, is
    said.
    """
    wsis = tmp_path / "wsis"
    (wsis / "below").mkdir(parents=True)
    shutil.copy(small_slide, wsis / "below" / "b.tif")
    shutil.copy(small_slide, wsis / "a.tif")
    (wsis / "._a.tif").write_bytes(b"AppleDouble")
    for _ in range(2):  # the second time with the first one's stores and previews among the slides
        done = run_cli("tile", wsis, "--out", wsis / "stores", "--tile-px", 128, "--workers", 1)
        assert done.returncode == 0, said(done)
        assert {p.name for p in (wsis / "stores").iterdir()} == {f"{n}.{e}" for n in "ab" for e in ("zarr", "png")}
    assert f"{wsis}: 2 slides; left out: 2 .png, 1 hidden, 2 tile store" in done.stderr
    (tmp_path / "text.svs").write_text("no slide")
    done = run_cli("info", wsis, tmp_path / "text.svs")
    assert said(done).count("1024 x 1024 px, 0.5 µm/px") == 2
    failed_slide(done, str(tmp_path / "text.svs"), "is not a slide")
    (wsis / "locked").mkdir(mode=0)
    out = tmp_path / "heatmaps"
    done = run_cli("heatmap", wsis / "stores", "--model", model, "--out", out)
    assert done.returncode == 0, said(done)
    done = run_cli("tile", wsis, "--out", wsis / "stores", "--tile-px", 128, "--workers", 1)
    (wsis / "locked").chmod(0o700)
    failed_slide(done, str(wsis / "locked"), "Permission denied")
    assert {p.name for p in out.iterdir() if p.is_dir()} == {"a", "b"}
    shutil.rmtree(wsis / "below")
    shutil.copytree(wsis, tmp_path / "more" / "x")
    refused(run_cli("tile", wsis, tmp_path / "more", "--out", tmp_path / "o"), "'a'", "manifest")


def test_a_slide_too_coarse_is_tiled_at_its_own_scale_if_asked(
    run_cli: RunCli, small_slide: Path, tmp_path: Path
) -> None:
    """And the summary says which, and that the stores do not go together; the other's store is kept."""
    (tmp_path / "coarse.csv").write_text(f"slide_path,slide_id,mpp\n{small_slide},fine,\n{small_slide},coarse,0.686\n")
    asked = ("tile", "--manifest", tmp_path / "coarse.csv", "--out", tmp_path / "o", "--tile-px", 128, "--workers", 1)
    failed_slide(run_cli(*asked), "coarse", "0.5 is finer than the slide's own 0.686", "--mpp native", "--coarser-ok")
    done = run_cli(*asked, "--coarser-ok")
    assert done.returncode == 0, said(done)
    notes = {name: line for line in done.stdout.splitlines() for name in ("fine", "coarse") if f"│ {name} " in line}
    assert notes["fine"].split("│")[3].strip().startswith("kept; tissue")
    assert "made at 0.686 µm/px, its own, coarser than 0.5" in notes["coarse"]
    assert "several scales (1 at 0.5, 1 at 0.686 µm/px)" in done.stderr


def test_a_pipe_or_device_is_no_slide_and_no_manifest(run_cli: RunCli, small_slide: Path, tmp_path: Path) -> None:
    """Opening a pipe waits for ever; a device has no end."""
    os.mkfifo(tmp_path / "fifo.svs")
    refused(run_cli("info", tmp_path / "fifo.svs"), "fifo.svs", "a pipe or device")
    refused(run_cli("tile", "--manifest", "/dev/zero", "--out", tmp_path / "o"), "/dev/zero", "a pipe or device")
    done = run_cli("tile", tmp_path / "fifo.svs", small_slide, "--out", tmp_path / "o", "--workers", 1)
    failed_slide(done, "fifo", "a pipe or device")
    assert (tmp_path / "o" / "small.zarr").is_dir()


def test_an_output_that_is_a_file_is_refused(run_cli: RunCli, small_slide: Path, out: Path) -> None:
    out.write_text("mine")
    refused(run_cli("tile", small_slide, "--out", out), str(out), "a file stands where a folder is needed")
    assert out.read_text() == "mine"


def test_an_output_that_may_not_be_written_is_refused(run_cli: RunCli, small_slide: Path, out: Path) -> None:
    out.mkdir(mode=0o500)
    refused(run_cli("tile", small_slide, "--out", out), str(out), "Permission denied")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("inner", ["", "small.tif", "deep/small.tif"])
def test_an_unreadable_folder_is_named(run_cli: RunCli, small_slide: Path, tmp_path: Path, inner: str) -> None:
    locked = tmp_path / "locked"
    (locked / "deep").mkdir(parents=True)
    for place in (locked, locked / "deep"):
        shutil.copy(small_slide, place)
    locked.chmod(0)
    try:
        done = run_cli("tile", locked / inner, "--out", tmp_path / "out")
    finally:
        locked.chmod(0o700)
    assert done.returncode == 1
    assert str(locked / inner) in said(done)
    assert "Permission denied" in said(done)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "file", "text", "words"),
    [
        ("train", "train.yaml", "epochs: 2\nlerning_rate: 1", ["train.yaml: lerning_rate", "is not a setting"]),
        ("run", "study.yaml", "manifest: m.csv\nout: o\ntile: {mmp: 1}", ["study.yaml: tile.mmp", "is not a setting"]),
    ],
)
def test_unknown_configuration_keys_are_refused(
    run_cli: RunCli, tmp_path: Path, command: str, file: str, text: str, words: list[str]
) -> None:
    (tmp_path / file).write_text(text)
    before = listing(tmp_path)
    options = ["--images", "index.csv", "--out", "run", "--config"] if command == "train" else []
    refused(run_cli(command, *options, file, cwd=tmp_path), *words)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("given", [(), ("stores",), ("manifest",), ("stores", "manifest", "images")])
def test_training_on_nothing_is_refused(run_cli: RunCli, tmp_path: Path, given: tuple[str, ...]) -> None:
    options = [word for name in given for word in (f"--{name}", "data")]
    refused(run_cli("train", "--out", "run", *options, cwd=tmp_path), "name no data")
    assert listing(tmp_path) == {}


def test_a_model_with_a_changed_byte_is_refused(
    run_cli: RunCli, small_slide: Path, model: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    data = bytearray((copy / "weights.safetensors").read_bytes())
    data[-100] ^= 1
    (copy / "weights.safetensors").write_bytes(data)
    before = listing(tmp_path)
    done = run_cli("heatmap", small_slide, "--model", copy, "--out", tmp_path / "out")
    refused(done, "weights.safetensors", "changed after it was written")
    assert listing(tmp_path) == before


def test_a_slide_too_coarse_for_the_model_says_what_to_do(run_cli: RunCli, model: Path, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "coarse.tif", np.full((256, 256, 3), 200, np.uint8), mpp=2)
    done = run_cli("heatmap", tmp_path / "coarse.tif", "--model", model, "--out", tmp_path / "out")
    failed_slide(done, "coarse", str(tmp_path / "coarse.tif"), "too coarse", "--mpp 2")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["not_analysed.json"]


@pytest.mark.parametrize("path", ["absent", "text.txt", "folder"])
def test_verify_refuses_what_is_no_result(run_cli: RunCli, tmp_path: Path, path: str) -> None:
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    done = run_cli("verify", path, cwd=tmp_path)
    refused(done, path)
    assert "0 intact, 1 damaged" in done.stdout


# ------------------------------------------------------------------------------------------ real slides, whole


@pytest.fixture(scope="session")
def real_store(run_cli: RunCli, svs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lossless store of the real SVS at its own scale, made on the command line; read only unless copied."""
    out = tmp_path_factory.mktemp("real") / "stores"
    done = run_cli("tile", svs, "--out", out, "--mpp", 0.499, "--tile-px", 256, "--codec", "lossless", "--workers", 1)
    assert done.returncode == 0, said(done)
    assert {p.name for p in out.iterdir()} == {"CMU-1-Small-Region.zarr", "CMU-1-Small-Region.png"}
    return out / "CMU-1-Small-Region.zarr"


@pytest.mark.parametrize(
    ("slide", "facts"),
    [
        ("svs", ["2220 x 2967 px", "0.499 ", "aperio", "JPEG", "│ 20 "]),
        ("dicom", ["2220 x 2967 px", "0.499 ", "dicom"]),
        ("ndpi", ["3968 x 4864 px", "0.228", "hamamatsu", "6: 62 x 76, 1/64"]),
        ("ome", ["1101 x 1101 px", "0.227", "ome-tiff"]),
    ],
)
def test_info_tells_the_allowed_facts_and_no_other(
    run_cli: RunCli, request: pytest.FixtureRequest, slide: str, facts: list[str]
) -> None:
    path: Path = request.getfixturevalue(slide)
    done = run_cli("info", path)
    assert done.returncode == 0, said(done)
    for fact in facts:
        assert fact in done.stdout
    assert re.search(r"can be tiled +│ yes", done.stdout)
    assert private_strings(path) & set(re.split(r"[\s│]+", said(done))) == set()


def test_info_says_the_plane_and_the_level_that_cannot_be_decoded(run_cli: RunCli, tmp_path: Path) -> None:
    plane = np.full((128, 192, 3), 200, np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        written: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "compression": "webp"}
        scale = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        tiff.write(np.stack([plane] * 3), metadata={"axes": "ZYXS", **scale}, **written)
    done = run_cli("info", tmp_path / "a.ome.tif")
    for fact in ("focal plane 2 of 3", "tifffile", "WEBP"):
        assert fact in done.stdout
    assert re.search(r"can be tiled +│ yes", done.stdout)
    data = (tmp_path / "a.ome.tif").read_bytes()
    (tmp_path / "a.ome.tif").write_bytes(data.replace(b"WEBP", b"WEPB"))
    done = run_cli("info", tmp_path / "a.ome.tif")
    assert done.returncode == 0, said(done)
    assert re.search(r"can be tiled +│ no: .*level 0", done.stdout)


def private_strings(path: Path) -> set[str]:
    """Words of the slide's properties that identify a person, a time or a machine."""
    file = next(path.glob("*.dcm")) if path.is_dir() else path
    try:
        with openslide.OpenSlide(file) as handle:
            known = dict(handle.properties)
    except openslide.OpenSlideError:
        return set()
    names = ("User", "Date", "Time", "ImageID", "ScanScope ID", "Reference", "UID", "DateTime", "comment")
    words = {word for key, text in known.items() if key.endswith(names) for word in text.split()}
    return {word for word in words if len(word) > 4}


def test_there_is_something_private_to_keep(svs: Path) -> None:
    """Or the test above could not fail."""
    assert "b414003d-95c6-48b0-9369-8010ed517ba7" in private_strings(svs)


def test_nothing_private_reaches_a_store(real_store: Path, svs: Path) -> None:
    secrets = {word.encode() for word in private_strings(svs)} | {str(svs.parent).encode()}
    for file in (p for p in real_store.rglob("*") if p.is_file()):
        data = file.read_bytes()
        assert not [secret for secret in secrets if secret in data], file


def test_the_store_holds_openslides_own_pixels(real_store: Path, svs: Path) -> None:
    group, tiles = zarr.open_group(real_store, mode="r"), zarr.open_array(real_store / "tiles", mode="r")
    x, y = np.asarray(group["x"]), np.asarray(group["y"])
    assert len(x) > 20
    with openslide.OpenSlide(svs) as handle:
        for row in range(0, len(x), 5):
            expected = handle.read_region((int(x[row]), int(y[row])), 0, (256, 256)).convert("RGB")
            inside = (slice(0, 2967 - y[row]), slice(0, 2220 - x[row]))
            np.testing.assert_array_equal(np.asarray(tiles[row])[inside], np.asarray(expected)[inside])


def test_verify_finds_a_flipped_byte_and_names_the_file(run_cli: RunCli, real_store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(real_store, tmp_path / real_store.name))
    shard = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    done = run_cli("verify", real_store, copy)
    refused(done, str(shard))
    assert done.returncode == 1
    assert "1 intact, 1 damaged" in done.stdout


def test_tiling_again_keeps_the_store(run_cli: RunCli, svs: Path, real_store: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in real_store.rglob("*")}
    same = ["--mpp", 0.499, "--tile-px", 256, "--codec", "lossless", "--workers", 1]
    done = run_cli("tile", svs, "--out", real_store.parent, *same)
    assert done.returncode == 0, said(done)
    assert "kept" in done.stdout
    other = run_cli("tile", svs, "--out", real_store.parent, *same, "--overlap", 0.5)
    failed_slide(other, "CMU-1-Small-Region", "overlap was 0.0, is 0.5", "--overwrite")
    assert {p: p.stat().st_mtime_ns for p in real_store.rglob("*")} == before


def test_heatmaps_from_slide_and_store_agree(run_cli: RunCli, svs: Path, real_store: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", tile_px=256, mpp=0.499)
    for source, out in ((svs, "direct"), (real_store, "stored")):
        done = run_cli("heatmap", source, "--model", model, "--out", tmp_path / out)
        assert done.returncode == 0, said(done)
        assert re.search(r"│ CMU-1-Small-Region +│ \d+ tiles, mean 0\.\d+.*│ made", done.stdout)
    direct, stored = (tmp_path / out / "CMU-1-Small-Region" for out in ("direct", "stored"))
    for name in ("predictions.csv", "predictions.parquet", "heatmap.geojson", "overlay.png"):
        assert (direct / name).read_bytes() == (stored / name).read_bytes(), name
    assert run_cli("verify", direct, stored, model).stdout == "3 intact, 0 damaged\n"


def test_a_fluorescence_slide_gives_an_empty_store(run_cli: RunCli, ndpi: Path, tmp_path: Path) -> None:
    done = run_cli("tile", ndpi, "--out", tmp_path / "stores", "--mpp", 1, "--workers", 1)
    assert done.returncode == 0, said(done)
    assert re.search(r"│ fluorescence-dapi +│ 0 tiles +│ made", done.stdout)
    assert run_cli("verify", tmp_path / "stores" / "fluorescence-dapi.zarr").returncode == 0


@pytest.mark.parametrize(
    ("reused", "warning", "note"),
    [(False, None, "made"), (True, None, "kept"), (True, "It lies outside.", "kept. It lies outside.")],
)
def test_the_table_of_heatmaps_warns(reused: bool, warning: str | None, note: str) -> None:
    scores = slide_scores(np.array([0.25, 0.75], np.float32), 0.5, None)
    report = HeatmapReport("s1", Path("out/s1"), 2, scores, reused, warning)
    assert heatmap_outcome(report) == ("s1", "2 tiles, mean 0.500, top 5% 0.750, above threshold 0.500", note)
