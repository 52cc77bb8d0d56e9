"""Damaged and forged files by the hundred: each is read, or refused in one sentence that names it; nothing else.

`tally` is for the tests. Run as a program this module reads mutants of one kind in a process of bounded memory and
time, whose audit hook sees what is written elsewhere, run or asked of a network. What is signed is signed again, so
that all hashes fit and only what a file says can give it away. Slides: tests/tiling/slides/test_mutated_slides.py.
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tests.forged import sign, write_commit

LIMIT_S = 20
"""Of a mutant, in CPU seconds; of waiting without computing, on a busy machine, six times that."""
MEMORY = 2 << 30
"""Bytes of address space that reading may take."""
TOKENS = (
    b"<", b">", b'"', b"'", b",", b";", b"\n", b"\r", b"\t", b"&a;", b"<!DOCTYPE x>", b"[", b"]", b"{", b"}", b"null",
    b"NaN", b"-1e999", b"1" + b"0" * 400, b"\0", b"\xff", b"\xef\xbb\xbf", b"utf-16", b"gb18030", b'"type":', b"..",
    b"MultiPolygon", b"Region", b"/", b"%2F", b"&a ", b"*a", b"!!python/name:os.system", b"? ", b": ", b"- ", b"<<: ",
    b"\xed\xa0\x80", b"../../../../etc/passwd", b"=1+1", b"a" * 5000,
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 0.5, 2**31, 2**63, 10**30, -(10**18), 1e308, math.inf, -math.inf, math.nan, "", "\0", "..",
    "../../../../tmp/elsewhere", "/etc/passwd", "a" * 100_000, "\ud800", "\x1b[31m", "uint8", [], {}, [[[[[]]]]],
    [0] * 10_000, [1e9, 1e9], {"a": 1}, [2**40, 2**40],
)  # fmt: skip


class Kind(NamedTuple):
    """What is mutated: how the originals are made in a folder, what of them is changed, and how it is read."""

    make: Callable[[Path], None]
    change: Callable[[Path, Random], None]
    read: Callable[[Path], None]


class Tally(NamedTuple):
    """What became of the mutants: how many were read and refused, and what must not be, by the mutant's number."""

    read: int
    refused: int
    faults: dict[int, str]


def tally(kind: str, folder: Path, numbers: range) -> Tally:
    """Read mutants of a kind in `folder`; a process that dies or hangs is followed by another for the rest."""
    KINDS[kind].make(folder / "whole")
    verdicts: dict[int, str] = {}
    while len(verdicts) < len(numbers):
        first = numbers[len(verdicts)]
        for verdict in _answers(kind, folder, first, numbers.stop):
            verdicts[numbers[len(verdicts)]] = verdict
    found = Counter(verdicts.values())
    faults = {number: verdict for number, verdict in verdicts.items() if verdict not in ("read", "refused")}
    return Tally(found["read"], found["refused"], faults)


def _answers(kind: str, folder: Path, first: int, last: int) -> Iterator[str]:
    """The verdicts of one process, in their order; the last one may be how it ended."""
    command = [sys.executable, "-W", "ignore", "-m", __name__, kind, str(folder), str(first), str(last)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "stderr").open("a") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment)
    assert process.stdout is not None
    given = -1  # the first line says that the original is read
    try:
        while given < last - first:
            ready = select.select([process.stdout], [], [], 6 * LIMIT_S)[0]
            line = process.stdout.readline() if ready else b""
            if not line:
                assert given >= 0, (folder / "stderr").read_text()[-2000:]
                if not ready:
                    process.kill()
                code = process.wait()
                yield "hung" if not ready or code == -signal.SIGPROF else f"died of {code}"
                return
            if given >= 0:
                yield json.loads(line)
            given += 1
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# -------------------------------------------------------------------------------------------------------- changes


def changed_bytes(data: bytes, draw: Random, tokens: Sequence[bytes] = TOKENS) -> bytes:
    """The bytes with up to three changes: one flipped, inserted, cut out, repeated, or the end cut off."""
    for _ in range(draw.randint(1, 3)):
        at, length = draw.randrange(len(data) + 1), draw.randint(1, 40)
        match draw.randrange(10):
            case 0 | 1 | 2 | 3:
                data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
            case 4 | 5:
                data = data[:at] + draw.choice(tokens) + data[at:]
            case 6 | 7:
                data = data[:at] + data[at + length :]
            case 8:
                data = data[:at] + data[at : at + length] * draw.randint(2, 50) + data[at:]
            case _:
                data = data[:at]
    return data


def changed_json(value: Any, draw: Random) -> Any:
    """A JSON value in which up to three values or keys are others; `value` itself is changed."""
    for _ in range(draw.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return deepcopy(draw.choice(ODD))
        within, key = draw.choice(places)
        match draw.randrange(6):
            case 0 | 1 | 2:
                within[key] = deepcopy(draw.choice(ODD))
            case 3:
                del within[key]
            case 4:
                within[key] = deepcopy(draw.choice([inner[name] for inner, name in places]))
            case _ if isinstance(within, dict):
                within[draw.choice(["", "../a", "a" * 300, "x\0", "version"])] = within.pop(key)
            case _:
                within.append(deepcopy(within[key]))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value within a value, as the list or object that holds it, and its index or key."""
    for key in range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ():
        yield value, key
        yield from _places(value[key])


def change_file(folder: Path, draw: Random) -> None:
    """Change the one file of a folder, or one that is called `mutant`."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path = next((path for path in files if path.name.startswith("mutant")), files[0])
    path.write_bytes(changed_bytes(path.read_bytes(), draw))


def change_signed(folder: Path, draw: Random) -> None:
    """Change files of the published folder `mutant*` in this one, JSON by its values mostly, and sign it again."""
    place = next(path for path in sorted(folder.iterdir()) if path.name.startswith("mutant"))
    files = sorted(path for path in place.rglob("*") if path.is_file())
    described = [path for path in files if path.suffix == ".json"]
    path = draw.choice(described) if draw.random() < 0.7 else draw.choice(files)
    if path.suffix == ".json" and draw.random() < 0.8:
        value = changed_json(json.loads(path.read_bytes()), draw)
        if path.name == "commit.json" and isinstance(value, dict):
            try:
                write_commit(place, value)
            except ValueError:  # no canonical spelling: infinity, half a character
                path.write_text(json.dumps(value))
            return
        path.write_text(json.dumps(value))
    else:
        path.write_bytes(changed_bytes(path.read_bytes(), draw))
    if path.name != "commit.json":
        sign(place)


# ---------------------------------------------------------------------------------------------------------- kinds


def _text(name: str, text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_text(text)

    return make


MANIFEST = """slide_path,slide_id,case_id,label,split,mpp,annotation,site
slides/a.svs,a,case1,tumour,train,0.5,a.geojson,x
"slides/b c.svs",b,case1,normal,train,,,x
slides/d.svs,d,case2,tumour,val,0.25,,y
slides/e.svs,e,case3,normal,test,0.5,e.xml,
"""
STUDY = """manifest: cohort/manifest.csv
out: results
tile: {mpp: 1.0, tile_px: 64, tissue: {method: local, drop_ink: true}}
train: {backbone: test_resnet, weights: none, input_px: 32, epochs: 1, batch_size: 16, augment: stain, threads: 1}
repeats: {seeds: [0, 1]}
evaluate: {resamples: 5}
stress: {shifts: [hue], strengths: 1, resamples: 5}
heatmap: {slides: test}
workers: 1
"""
LEDGER = """{"time":"2026-01-01T00:00:00.000+00:00","event":"start"}
{"time":"2026-01-01T00:00:00.000+00:00","event":"plan","steps":[["tile","stores/a.zarr","to do",""]]}
{"time":"2026-01-01T00:00:01.000+00:00","event":"made","stage":"tile","name":"stores/a.zarr","seconds":1.0}
{"time":"2026-01-01T00:00:02.000+00:00","event":"failed","seconds":2.0,"reason":"no label"}
"""


def _make_parquet(folder: Path) -> None:
    import csv

    import pyarrow.parquet

    folder.mkdir()
    rows = list(csv.DictReader(MANIFEST.splitlines()))
    columns = {name: [row[name] or None for row in rows] for name in rows[0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "manifest.parquet")


def _make_images(folder: Path) -> None:
    import cv2
    import numpy as np

    folder.mkdir()
    lines = ["path,label,case_id,split,site"]
    for number in range(12):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8, 3), number, np.uint8))
        lines.append(f"{number}.png,{'ab'[number % 2]},c{number // 2},{('train', 'val', 'test')[number // 4]},s")
    (folder / "mutant.csv").write_text("\n".join(lines) + "\n")


def _make_radiograph(folder: Path) -> None:
    from tests.training.data.test_radiographs import CURVE, grey, table, write

    folder.mkdir()
    more: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -24, "VOILUTSequence": table(-24, CURVE, 12)}
    write(folder / "mutant.dcm", grey(12, shape=(8, 8)), 12, PixelSpacing=[0.1, 0.1], PixelPaddingValue=9, **more)


def _make_packed(ending: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from tests.training.data.test_import_pictures import hub_parquet, picture, web_tar

        folder.mkdir()
        pictures = [picture(value) for value in range(6)]
        if ending == "tar":
            members = [(f"{i}.png", data) for i, data in enumerate(pictures)]
            members += [(f"{i}.json", json.dumps({"label": "ab"[i % 2]}).encode()) for i in range(6)]
            web_tar(folder / "mutant.tar", dict(sorted(members)))
        else:
            hub_parquet(folder / "mutant.parquet", {"image": pictures, "label": [0, 1] * 3}, ["a", "b"])

    return make


def _make_results(write: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import numpy as np

        from tests.inference import test_import_results

        folder.mkdir()
        tiles = np.array([[32 * i, 64, 32, 1 - i / 10, i / 10] for i in range(8)], np.float64)
        made = test_import_results.CASES[write][0](folder, tiles)
        made.rename(folder / f"mutant{made.suffix}")

    return make


def _make_store(folder: Path, name: str = "mutant.zarr") -> None:
    import cv2
    import numpy as np

    from pipeline.demo.synthetic import write_pyramid
    from tiling import TilingConfig, tile_slide

    folder.mkdir(exist_ok=True)
    picture = np.full((200, 240, 3), 244, np.uint8)
    cv2.circle(picture, (120, 100), 80, (222, 140, 180), -1)
    for x, y in np.random.default_rng(0).integers(60, 140, (60, 2)).tolist():
        cv2.circle(picture, (x + 20, y), 4, (120, 80, 160), -1)
    write_pyramid(folder.parent / "slide.tif", picture, mpp=0.5, levels=2)
    config = TilingConfig(mpp=0.5, tile_px=32, min_tissue=0.1, codec="jpeg:90")
    made = tile_slide(folder.parent / "slide.tif", folder.parent / "made", config).store
    shutil.copytree(made, folder / name)


def _make_features(folder: Path) -> None:
    from tests.tiling.stores.test_features import made, random_features

    folder.mkdir()
    made(folder / "mutant.features.zarr", random_features(20))


def _make_model(folder: Path, name: str = "mutant") -> None:
    from tests.inference.conftest import write_model

    write_model(folder / name, mpp=0.5, tile_px=32)


def _make_heatmap(folder: Path) -> None:
    from inference import load_model, make_heatmap

    folder.mkdir()
    _make_store(folder.parent / "stores", "a.zarr")
    _make_model(folder.parent / "models", "a")
    model = load_model(folder.parent / "models" / "a")
    for name in ("mutant", "other"):
        make_heatmap(folder.parent / "stores" / "a.zarr", model, folder, slide_id=name)
    lines = ("slide_path,slide_id,case_id,label", "a.svs,mutant,c1,tumour", "b.svs,other,c2,benign")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def _make_annotation(ending: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import numpy as np
        import PIL.Image

        from tests.tiling.annotations.test_rasterize import SQUARE, asap, feature, polygon, written
        from tests.tiling.annotations.test_readers import LAYERS, imagescope

        folder.mkdir()
        path = folder / f"mutant.{ending}"
        match ending:
            case "geojson":
                multi = {"type": "MultiPolygon", "coordinates": [[SQUARE]]}
                written(folder, feature(polygon(SQUARE)), feature(multi, "Ignore*")).rename(path)
            case "xml":
                asap(folder, ("Polygon", "metastases", SQUARE), ("Spline", "normal", SQUARE)).rename(path)
            case "layers.xml":
                path.write_text(imagescope(LAYERS["described"][0]))
            case "annotations":
                path.write_text(imagescope(LAYERS["HALO"][0]))
            case _:
                PIL.Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) % 3).save(path)

    return make


def _refuse(faults: Sequence[str], path: Path) -> None:
    """Raise the first fault that `specslide verify` would tell."""
    from tiling.core.errors import StoreError

    if faults:
        assert all(fault.startswith(str(path)) for fault in faults)
        raise StoreError(path, faults[0], "")


def _read_annotation(folder: Path) -> None:
    from tests.tiling.squares import squares
    from tiling.annotations.rasterize import annotation_fractions, annotation_hash
    from tiling.grid import Frame

    path = next(folder.glob("mutant.*"))
    tiles = squares([0, 5], [0, 5], 10, (60, 40))
    fractions = annotation_fractions(path, tiles, Frame((60, 40)))
    annotation_hash(path)
    assert all(((values >= 0) & (values <= 1)).all() for values in fractions.values())


def _read_manifest(folder: Path) -> None:
    from tiling.manifest import slides_of_manifest

    listed = slides_of_manifest(next(folder.iterdir()))
    ids = [row.slide_id for row in listed.rows]
    assert len(set(ids)) == len(ids)


def _read_images(folder: Path) -> None:
    from training import load_train_config, samples_from_images

    samples = samples_from_images(folder / "mutant.csv", load_train_config(None, {"input_px": 32}))
    assert len(samples.classes) > 1


def _read_radiograph(folder: Path) -> None:
    from training.data.radiographs import dicom_size, is_dicom, read_dicom

    path = folder / "mutant.dcm"
    assert not is_dicom(path) or read_dicom(path).shape == dicom_size(path)[::-1]


def _read_packed(folder: Path) -> None:
    from training.data.import_pictures import packed_pictures, picture_ending

    assert all(picture_ending(one) and one.columns for one in packed_pictures(next(folder.glob("mutant.*"))))


def _read_results(folder: Path) -> None:
    import numpy as np

    from inference.foreign_results import foreign_results

    path = next(folder.glob("mutant.*"))
    for found in foreign_results(path, ("benign", "tumour") if path.suffix == ".tsv" else ()):
        assert np.isfinite(found.centres).all()
        assert all(len(values) == len(found.centres) for values in found.probabilities.values())


def _read_study(folder: Path) -> None:
    from pipeline.study.config import load_study

    load_study(folder / "study.yaml")


def _read_ledger(folder: Path) -> None:
    from pipeline.study.status import read_status

    read_status(folder)


def _read_store(folder: Path) -> None:
    import numpy as np

    from tiling.stores.store import TileStore, verify_store

    store = TileStore(folder / "mutant.zarr")
    store.attributes.doubts()
    tiles, count = store.tiles, len(store)
    assert all(len(tiles.columns[name]) == count for name in tiles.columns)
    assert store.mask.values.ndim == store.thumbnail.values.ndim - 1 == 2
    assert (store.cut, store.recipe, store.pixels_sha256, store.slide.frame()) is not None
    wanted = np.arange(count)[[*range(min(count, 50)), *([-1] if count else [])]]
    assert store.read(wanted).shape == (len(wanted), store.grid.tile_px, store.grid.tile_px, 3)
    _refuse(verify_store(store.path), store.path)


def _read_features(folder: Path) -> None:
    import numpy as np

    from tiling.stores.features import FeatureStore, verify_features

    store = FeatureStore(folder / "mutant.features.zarr")
    assert all(len(store.tiles.columns[name]) == len(store) for name in store.tiles.columns)
    assert (store.thumbnail, store.recipe, store.identity) is not None
    wanted = np.arange(min(len(store), 50))
    assert store.read(wanted).shape == (len(wanted), store.dim)
    _refuse(verify_features(store.path), store.path)


def _read_model(folder: Path) -> None:
    import numpy as np

    from inference import load_model
    from training.models.folder import verify_model

    model = load_model(folder / "mutant")
    if model.info.input_px <= 256:
        tiles = np.zeros((2, 32, 32, 3), np.uint8)
        assert model.predict(tiles).shape[0] == 2
    _refuse(verify_model(folder / "mutant"), folder / "mutant")


def _read_heatmap(folder: Path) -> None:
    from inference.config import EvaluateSlidesConfig
    from inference.evaluation.evaluate_slides import evaluate_slides
    from inference.report.cohort import write_cohort_index
    from inference.summary import read_summary
    from pipeline.provenance import lines_of, trace

    write_cohort_index(folder, {})
    assert "other/" in (folder / "index.html").read_text()
    config = EvaluateSlidesConfig(resamples=2)
    found = read_summary(folder / "mutant"), list(lines_of(trace(folder / "mutant")))
    tested = evaluate_slides(folder, folder / "manifest.csv", folder / "tested", config)
    assert (found, tested) is not None


def _published(make: Callable[[Path], None], read: Callable[[Path], None]) -> Kind:
    return Kind(make, change_signed, read)


KINDS: dict[str, Kind] = {
    **{
        ending: Kind(_make_annotation(ending), change_file, _read_annotation)
        for ending in ("geojson", "xml", "layers.xml", "annotations", "png", "tif")
    },
    "manifest.csv": Kind(_text("manifest.csv", MANIFEST), change_file, _read_manifest),
    "manifest.parquet": Kind(_make_parquet, change_file, _read_manifest),
    "images.csv": Kind(_make_images, change_file, _read_images),
    "radiograph.dcm": Kind(_make_radiograph, change_file, _read_radiograph),
    "pictures.tar": Kind(_make_packed("tar"), change_file, _read_packed),
    "pictures.parquet": Kind(_make_packed("parquet"), change_file, _read_packed),
    **{
        f"results, {write}": Kind(_make_results(write), change_file, _read_results)
        for write in ("wsinfer", "tiatoolbox, mpp", "qupath, px", "qupath, list")
    },
    "study.yaml": Kind(_text("study.yaml", STUDY), change_file, _read_study),
    "ledger.jsonl": Kind(_text("ledger.jsonl", LEDGER), change_file, _read_ledger),
    "model": _published(_make_model, _read_model),
    "store": _published(_make_store, _read_store),
    "features": _published(_make_features, _read_features),
    "heatmap": _published(_make_heatmap, _read_heatmap),
}


# ------------------------------------------------------------------------------------------------------ the process

FORBIDDEN = (
    "pickle.find_class", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.",
    "socket.connect", "socket.send", "socket.bind", "urllib.", "ftplib.", "smtplib.",
)  # fmt: skip
WRITING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")


def _main(kind: str, folder: Path, first: int, last: int) -> None:
    change, read = KINDS[kind].change, KINDS[kind].read
    mutant, seen = folder.resolve() / "mutant", list[str]()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        path = arguments[0] if writes or event in WRITING else None
        outside = isinstance(path, str | os.PathLike) and not Path(path).resolve().is_relative_to(mutant)
        if event.startswith(FORBIDDEN) or (outside and path != "/dev/null"):
            seen.append(f"{event} {arguments!r}"[:300])

    shutil.rmtree(mutant, ignore_errors=True)
    shutil.copytree(folder / "whole", mutant)
    read(mutant)  # imports what it needs, and shows that the original is read
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    sys.addaudithook(hook)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for number in range(first, last):
        shutil.rmtree(mutant)
        shutil.copytree(folder / "whole", mutant)
        change(mutant, Random(f"{kind} {number}"))
        seen.clear()
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        verdict = _verdict(read, mutant)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(f"reached {seen}" if seen else verdict) + "\n")
        sys.stdout.flush()


def _verdict(read: Callable[[Path], None], mutant: Path) -> str:
    from tiling.core.errors import SpecslideError

    try:
        read(mutant)
    except SpecslideError as error:
        said = str(error)
        names_it = str(error.where).startswith(str(mutant))
        return "refused" if names_it and len(said) < len(str(mutant)) + 2500 else f"says {said[:1500]}"
    except Exception:  # noqa: BLE001 - which is what is looked for
        return f"raised {traceback.format_exc()[-1500:]}"
    return "read"


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
