"""`specslide embed`: slides and stores, a bad one among them, again, in shares, on a cluster, and its refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from inference import EmbedConfig, EncoderConfig, embed_slide, load_encoder
from pipeline import cli
from pipeline.demo.synthetic import write_pyramid
from pipeline.execution.dask_config import ClusterConfig
from tests.inference.conftest import picture, write_model
from tests.pipeline.conftest import listing
from tiling.stores.features import FeatureStore

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the slides `a.tif` and `b.tif`, `bad.svs`, and the model `model`."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("a", "b"):
        write_pyramid(folder / f"{name}.tif", picture(256), mpp=0.5)
    (folder / "bad.svs").write_text("no slide")
    write_model(folder / "model")
    return folder


def embed(place: Path, *arguments: object) -> Result:
    """The command, run in `place`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return CliRunner().invoke(cli.app, ["embed", *map(str, arguments)], env={"COLUMNS": "300"})


def test_every_slide_becomes_what_the_verb_makes(place: Path, tmp_path: Path) -> None:
    arguments = ["a.tif", "bad.svs", "b.tif", "--encoder", "model", "--out", tmp_path, "--dtype", "float32"]
    done = embed(place, *arguments, "--overlap", 0.5, "--batch-size", 5)
    assert done.exit_code == 1
    assert "1 of 3 slides failed" in done.output
    encoder = load_encoder(EncoderConfig(encoder=str(place / "model")))
    config = EmbedConfig(dtype="float32", overlap=0.5, batch_size=5)
    expected = FeatureStore(embed_slide(place / "a.tif", encoder, tmp_path / "verb", config).store)
    found = FeatureStore(tmp_path / "a.features.zarr")
    assert len(found) > 20
    np.testing.assert_array_equal(found.read(), expected.read())
    assert found.sha256 == expected.sha256
    again = embed(place, *arguments, "--overlap", 0.5)
    assert again.output.count("kept") == 2
    other = embed(place, *arguments)
    assert "overlap was 0.5, is 0.0" in other.output


def test_what_specslide_verify_and_heatmap_say_of_features(place: Path, tmp_path: Path) -> None:
    assert embed(place, "a.tif", "--encoder", "model", "--out", tmp_path).exit_code == 0
    run = CliRunner().invoke
    assert "1 intact, 0 damaged" in run(cli.app, ["verify", str(tmp_path)]).output
    arguments = [
        "heatmap",
        str(tmp_path / "a.features.zarr"),
        "--model",
        str(place / "model"),
        "--out",
        str(tmp_path / "h"),
    ]
    assert "holds features" in run(cli.app, arguments, env={"COLUMNS": "300"}).output
    chunk = tmp_path / "a.features.zarr" / "features" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    damaged = run(cli.app, ["verify", str(tmp_path)], env={"COLUMNS": "300"})
    assert damaged.exit_code == 1
    assert "features/c/0/0" in damaged.output


def test_jobs_share_the_slides(place: Path, tmp_path: Path) -> None:
    for share in ("1/2", "2/2"):
        assert embed(place, "a.tif", "b.tif", "--encoder", "model", "--out", tmp_path, "--part", share).exit_code == 0
        names = sorted(path.name for path in tmp_path.glob("*.zarr"))
    assert names == ["a.features.zarr", "b.features.zarr"]


def test_a_cluster_makes_the_same_bytes(scheduler: ClusterConfig, place: Path, tmp_path: Path) -> None:
    for out, cluster in (("here", []), ("there", ["--cluster", scheduler.at])):
        arguments = ["a.tif", "b.tif", "--encoder", "model", "--out", tmp_path / out, "--device", "cpu", *cluster]
        done = embed(place, *arguments)
        assert done.exit_code == 0, done.output
    assert listing(tmp_path / "here") == listing(tmp_path / "there")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--encoder", "uni"], "weights"),
        (["--encoder", "model", "--mpp", "1"], "mpp"),
        (["--encoder", "model", "--dtype", "int8"], "dtype"),
        (["--mean", "0.5,0.5"], "mean"),
        (["--where", "tumour > 0.5"], "tumour"),
    ],
)
def test_refused_before_any_slide(place: Path, tmp_path: Path, options: list[str], named: str) -> None:
    done = embed(place, "a.tif", "--out", tmp_path / "out", *options)
    assert done.exit_code == 1
    assert named in f"{done.output} {done.exception}"
    assert not list(tmp_path.rglob("*.zarr"))


def test_slurm_takes_it(place: Path) -> None:
    arguments = ["slurm", "--array", "2", "embed", "a.tif", "--encoder", "uni", "--weights", "uni.pth", "--out", "f"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "embed a.tif" in done.output
