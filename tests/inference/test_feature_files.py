"""Features from and to the files of CLAM, TRIDENT, STAMP, slide2vec and anndata, by the layouts those document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from inference.export_features import FEATURE_EXPORTS, export_features
from inference.import_features import import_features
from pipeline.cli import app
from tests.tiling.stores.test_features import made, random_features
from tiling.core.errors import ConfigError, InputError, OutputError
from tiling.stores.features import FeatureStore, verify_features

FEATURES = random_features(1500, 6)
PLACES = np.stack([np.arange(1500) % 40 * 512, np.arange(1500) // 40 * 512], 1)
TRIDENT: dict[str, Any] = {
    "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20, "overlap": 64,
    "name": "slide", "savetodir": "somewhere", "level0_width": 30_000, "level0_height": 20_000,
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(made(tmp_path_factory.mktemp("stores") / "a.features.zarr", random_features(1500)))


def write_trident(path: Path, features: NDArray[Any] = FEATURES, **attributes: Any) -> Path:
    """As TRIDENT's `save_h5` does: one row a chunk, attributes on each dataset."""
    with h5py.File(path, "w") as file:
        for name, values in (("features", features), ("coords", PLACES[: len(features)])):
            shape = values.shape
            dataset = file.create_dataset(
                name, shape, values.dtype, maxshape=(None, *shape[1:]), chunks=(1, *shape[1:])
            )
            dataset[:] = values
        file["features"].attrs.update({"name": "slide", "savetodir": "somewhere", "encoder": "uni_v1"})
        file["coords"].attrs.update(TRIDENT | attributes)
    return path


def test_trident_s_files_become_stores(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "slide.h5")
    report = import_features(path, tmp_path / "out", slide_mpp=0.25)
    found = FeatureStore(report.store)
    assert (report.slide_id, report.tiles, report.dim, found.dtype) == ("slide", 1500, 6, "float32")
    np.testing.assert_array_equal(found.read(), FEATURES)
    np.testing.assert_array_equal(np.stack([found.tiles.x0, found.tiles.y0], 1), PLACES)
    grid = found.grid
    assert (grid.tile_px, grid.tile_px0, grid.stride_px0, grid.mpp) == (256, 512, 384, 0.5)
    assert grid.size0 == (30_000, 20_000)
    assert (found.encoder.name, found.encoder.kind, found.encoder.sha256) == ("uni_v1", "imported", "")
    assert verify_features(report.store) == []
    assert import_features(path, tmp_path / "out", slide_mpp=0.25).reused
    with pytest.raises(OutputError, match=r"slide_mpp was 0\.25, is 0\.5"):
        import_features(path, tmp_path / "out", slide_mpp=0.5)


def test_clam_s_files_take_their_size_from_the_patches_beside(tmp_path: Path) -> None:
    """`h5_files` hold no attributes; those of `patches` are of a level: 256 px there are 1,024 on level 0."""
    for folder in ("h5_files", "patches"):
        (tmp_path / folder).mkdir()
    with h5py.File(tmp_path / "h5_files" / "slide.h5", "w") as file:
        file["features"], file["coords"] = FEATURES, PLACES.astype(np.int32)
    with h5py.File(tmp_path / "patches" / "slide.h5", "w") as file:
        file["coords"] = PLACES
        file["coords"].attrs.update(
            {"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0), "level_dim": (7500, 5000), "name": "slide"}
        )
    path = tmp_path / "h5_files" / "slide.h5"
    found = FeatureStore(import_features(path, tmp_path / "out", slide_mpp=0.25, encoder="resnet50").store)
    np.testing.assert_array_equal(found.read(), FEATURES)
    assert (found.grid.tile_px, found.grid.tile_px0, found.grid.mpp, found.grid.size0) == (
        256,
        1024,
        1,
        (30_000, 20_000),
    )
    (tmp_path / "patches" / "slide.h5").unlink()
    with pytest.raises(InputError, match="--tile-px0"):
        import_features(path, tmp_path / "none", slide_mpp=0.25, encoder="resnet50")
    given = import_features(path, tmp_path / "given", slide_mpp=0.25, encoder="x", tile_px=256, tile_px0=512)
    assert FeatureStore(given.store).grid.mpp == 0.5


def test_slide2vec_s_files_say_everything(tmp_path: Path) -> None:
    (tmp_path / "tile_embeddings").mkdir()
    (tmp_path / "tiles").mkdir()
    half = FEATURES.astype(np.float16)
    torch.save(torch.from_numpy(half), tmp_path / "tile_embeddings" / "s.pt")
    np.savez(tmp_path / "tile_embeddings" / "n.npz", features=half)
    meta = {"encoder_name": "virchow2", "requested_tile_size_px": 224, "tile_size_lv0": 448, "feature_dim": 6}
    slide = {"slide": {"dimensions": [50_000, 40_000], "base_spacing_um": 0.25, "level_downsamples": [1.0, 2.0]}}
    tissue = np.linspace(0.5, 1, 1500).astype(np.float32)
    for name in ("s", "n"):
        (tmp_path / "tile_embeddings" / f"{name}.meta.json").write_text(json.dumps(meta))
        (tmp_path / "tiles" / f"{name}.coordinates.meta.json").write_text(json.dumps(slide))
        np.savez(
            tmp_path / "tiles" / f"{name}.coordinates.npz", x=PLACES[:, 0], y=PLACES[:, 1], tissue_fractions=tissue,
            tile_index=np.arange(1500, dtype=np.int32),
        )  # fmt: skip
    for file in ("s.pt", "n.npz"):
        found = FeatureStore(import_features(tmp_path / "tile_embeddings" / file, tmp_path / "out").store)
        np.testing.assert_array_equal(found.read(), half.astype(np.float32))
        np.testing.assert_array_equal(found.tiles.columns["tissue"], tissue)
        assert (found.dtype, found.grid.mpp, found.grid.size0) == ("float16", 0.5, (50_000, 40_000))
        assert (found.encoder.name, found.encoder.tile_px) == ("virchow2", 224)


@pytest.mark.parametrize("name", ["s.pt", "s.npz", "s.h5"])
@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk", b"\x80\x02}q\x00.", b"\x89HDF\r\n\x1a\n"])
def test_what_is_no_file_of_features_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*cannot be read"):
        import_features(tmp_path / name, tmp_path / "out")


def test_a_dictionary_of_tensors_is_no_file_of_features(tmp_path: Path) -> None:
    torch.save({"features": torch.ones(3, 4)}, tmp_path / "s.pt")
    with pytest.raises(InputError, match="holds no tensor"):
        import_features(tmp_path / "s.pt", tmp_path / "out")


def test_clam_s_layout_there_and_back(store: FeatureStore, tmp_path: Path) -> None:
    path = export_features(store.path, "clam", tmp_path)
    with h5py.File(path) as file:
        assert set(file) == {"features", "coords"}
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(file["features"][...], store.read())
        np.testing.assert_array_equal(file["coords"][...], np.stack([store.tiles.x0, store.tiles.y0], 1))
        assert file["coords"].attrs["patch_size_level0"] == 64
    back = FeatureStore(import_features(path, tmp_path / "out", slide_mpp=0.5).store)
    np.testing.assert_array_equal(back.read(), store.read())
    assert (back.grid, back.tiles.places(), back.encoder.name) == (store.grid, store.tiles.places(), store.encoder.name)


def test_stamp_s_layout_there_and_back(store: FeatureStore, tmp_path: Path) -> None:
    path = export_features(store.path, "stamp", tmp_path)
    with h5py.File(path) as file:
        assert (file["feats"].dtype, file.attrs["unit"], file.attrs["feat_type"]) == (np.float16, "um", "tile")
        assert (file.attrs["tile_size_um"], file.attrs["tile_size_px"]) == (32.0, 64)
        np.testing.assert_allclose(file["coords"][:, 0], store.tiles.x0 * 0.5)
    back = FeatureStore(import_features(path, tmp_path / "out", slide_mpp=0.5).store)
    np.testing.assert_array_equal(back.read(), store.read().astype(np.float16).astype(np.float32))
    assert (back.tiles.places(), back.grid.mpp, back.grid.tile_px0) == (store.tiles.places(), 0.5, 64)


def test_anndata_reads_it(store: FeatureStore, tmp_path: Path) -> None:
    path = export_features(store.path, "anndata", tmp_path)
    data = anndata.read_h5ad(path)
    np.testing.assert_array_equal(data.X, store.read())
    np.testing.assert_array_equal(data.obs["annotation_tumour"], store.tiles.columns["annotation/tumour"])
    np.testing.assert_array_equal(data.obsm["spatial"][:, 0], store.tiles.x0 + 32)
    assert data.uns["encoder"]["name"] == "made-up"


@pytest.mark.parametrize("to", FEATURE_EXPORTS)
def test_a_file_that_is_there_stays_unless_asked(store: FeatureStore, tmp_path: Path, to: str) -> None:
    path = export_features(store.path, to, tmp_path)
    with pytest.raises(OutputError, match=path.name):
        export_features(store.path, to, tmp_path)
    assert export_features(store.path, to, tmp_path, overwrite=True) == path
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ConfigError, match="nobody"):
        export_features(store.path, "nobody", tmp_path)


def test_what_cannot_be_features_is_refused_by_name(tmp_path: Path) -> None:
    whole = write_trident(tmp_path / "whole.h5")
    with pytest.raises(InputError, match=r"whole\.h5.*--slide-mpp"):
        import_features(whole, tmp_path / "out")
    (tmp_path / "cut.h5").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["other"] = [1]
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["features"], file["coords"] = FEATURES, PLACES[:10]
    nan = FEATURES.copy()
    nan[1030, 2] = np.nan
    write_trident(tmp_path / "nan.h5", nan)
    for name, said in {
        "cut": "cannot be read", "text": "cannot be read", "empty": "no known layout", "few": "do not belong together",
        "nan": "row 1030", "absent": "cannot be read",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=rf"{name}\.h5.*{said}"):
            import_features(tmp_path / f"{name}.h5", tmp_path / "out", slide_mpp=0.25)
    assert not list(tmp_path.rglob("*.zarr"))


def test_the_commands(store: FeatureStore, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(app, ["export", "features", str(store.path), "--to", "clam", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (tmp_path / "bad.h5").write_text("no HDF5")
    files = [str(tmp_path / "a.h5"), str(tmp_path / "bad.h5")]
    done = run(app, ["import", "features", *files, "--slide-mpp", "0.5", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "1 of 2" in done.output
    assert len(FeatureStore(tmp_path / "out" / "a.features.zarr")) == 1500
