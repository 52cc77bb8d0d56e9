"""The JPEG codec: registered by entry point, deterministic, and picky about what it takes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
import zarr
import zarr.codecs
from numpy.typing import NDArray
from PIL import Image

from tiling.core.errors import ConfigError
from tiling.stores.codec import JpegCodec, TileCodec, decode_jpeg, encode_jpeg


def tile(side: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(60, 250, (9, 9, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("lossless", TileCodec("lossless")),
        ("source", TileCodec("source")),
        ("jpeg:1", TileCodec("jpeg", 1, "4:4:4")),
        ("jpeg:90", TileCodec("jpeg", 90, "4:4:4")),
        ("jpeg:100:420", TileCodec("jpeg", 100, "4:2:0")),
        ("jpeg:050", TileCodec("jpeg", 50, "4:4:4")),
    ],
)
def test_parse(name: str, codec: TileCodec) -> None:
    assert TileCodec.parse(name) == codec


@pytest.mark.parametrize(
    "name",
    ["", "jpeg", "jpeg:", "jpeg:0", "jpeg:101", "jpeg:-1", "jpeg:9.5", "JPEG:90", " lossless", "png", "jpeg:9\n",
     "jpeg:90:444", "jpeg:90:422", "jpeg:90:", "jpeg:420", "source:90", "jpeg:٩"],
)  # fmt: skip
def test_parse_refuses(name: str) -> None:
    with pytest.raises(ValueError, match=r"jpeg:1 .*jpeg:100, jpeg:90:420, lossless .*source"):
        TileCodec.parse(name)


@pytest.mark.parametrize("name", ["lossless", "jpeg:90", "jpeg:90:420"])
def test_chunks_are_decoded_in_place(name: str) -> None:
    codec, pixels = TileCodec.parse(name), np.zeros((3, 64, 64, 3), np.uint8)
    chunk = codec.encode(tile())
    assert codec.encode(np.asfortranarray(tile())) == chunk
    codec.decode(np.frombuffer(chunk, np.uint8), pixels[1])
    np.testing.assert_array_equal(pixels[1], tile() if name == "lossless" else decode_jpeg(chunk))
    assert not pixels[::2].any()


@pytest.mark.parametrize("name", ["lossless", "jpeg:90"])
@pytest.mark.parametrize("side", [32, 63, 65, 128])
def test_a_chunk_of_another_size_is_a_value_error(name: str, side: int) -> None:
    codec, pixels = TileCodec.parse(name), np.zeros((3, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=r".+"):
        codec.decode(codec.encode(tile(side)), pixels[1])
    assert not pixels[2].any(), "nothing is written beyond the tile"


@pytest.mark.parametrize("name", ["lossless", "jpeg:90"])
@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"GIF89a", b"\x28\xb5\x2f\xfd"])
def test_damaged_chunks_are_value_errors(name: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        TileCodec.parse(name).decode(data, np.zeros((64, 64, 3), np.uint8))


def test_source_encodes_nothing() -> None:
    with pytest.raises(ConfigError, match="cannot encode"):
        TileCodec.parse("source").encode(tile())


def scanned(colour: str, picture: NDArray[np.uint8]) -> bytes:
    """A tile as scanners write it: YCbCr of some subsampling, or RGB with an Adobe marker."""
    if colour == "rgb":
        return bytes(imagecodecs.jpeg8_encode(picture, 85, colorspace="rgb", outcolorspace="rgb", subsampling="444"))
    return bytes(simplejpeg.encode_jpeg(picture, 85, "RGB", colour))


@pytest.mark.parametrize(
    ("colour", "subsampling"), [("444", (1, 1)), ("422", (2, 1)), ("420", (2, 2)), ("rgb", (1, 1))]
)
def test_streams_of_a_slide_give_openslides_pixels(tmp_path: Path, colour: str, subsampling: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    streams = [scanned(colour, picture) for picture in (tile(), noise, tile(seed=3), tile(seed=4))]
    assert (b"Adobe" in streams[0]) == (colour == "rgb")
    path, space = tmp_path / "slide.tif", "rgb" if colour == "rgb" else "ycbcr"
    tifffile.imwrite(
        path, iter(streams), shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), photometric=space,
        compression="jpeg", compressionargs={"outcolorspace": space}, subsampling=subsampling, metadata=None,
    )  # fmt: skip
    with openslide.OpenSlide(str(path)) as oracle:
        for stream, corner in zip(streams, [(0, 0), (64, 0), (0, 64), (64, 64)], strict=True):
            expected = np.asarray(oracle.read_region(corner, 0, (64, 64)).convert("RGB"))
            np.testing.assert_array_equal(decode_jpeg(stream), expected)
            np.testing.assert_array_equal(TileCodec.parse("source").decode(stream, np.empty_like(expected)), expected)


def test_encoding_is_deterministic_and_ignores_the_layout() -> None:
    picture = tile()
    data = encode_jpeg(picture, 90)
    assert encode_jpeg(np.asfortranarray(picture), 90) == data
    assert encode_jpeg(tile(128)[:64, :64], 90) == encode_jpeg(tile(128)[:64, :64].copy(), 90)


def test_a_tile_is_a_jpeg_that_pillow_reads_alike() -> None:
    data = encode_jpeg(tile(), 90)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (64, 64), "RGB")
        assert picture.layer[0][1:3] == (1, 1)  # type: ignore[attr-defined] # 4:4:4
        difference = np.asarray(picture).astype(int) - decode_jpeg(data)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(("quality", "least_db"), [(60, 33), (90, 38), (100, 45)])
def test_quality(quality: int, least_db: float) -> None:
    error = np.square(decode_jpeg(encode_jpeg(tile(), quality)).astype(float) - tile()).mean()
    assert 10 * np.log10(255**2 / error) > least_db


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"GIF89a", encode_jpeg(tile(), 90)[:300]])
def test_what_is_no_jpeg_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_jpeg(data)


# -------------------------------------------------------------------------------------------------------- in zarr


def jpeg_array(path: Path, shape: tuple[int, ...] = (3, 64, 64, 3), **options: Any) -> zarr.Array[Any]:
    settings: dict[str, Any] = {"dtype": "uint8", "chunks": (1, *shape[1:]), "compressors": None, "filters": None}
    return zarr.create_array(path, shape=shape, serializer=JpegCodec(80), **(settings | options))


def test_round_trip_through_zarr(tmp_path: Path) -> None:
    tiles = np.stack([tile(seed=i) for i in range(3)])
    jpeg_array(tmp_path / "a")[...] = tiles
    array = zarr.open_array(tmp_path / "a", mode="r")
    assert array.metadata.to_dict()["codecs"][0] == {  # type: ignore[index]
        "name": "specslide.jpeg",
        "configuration": {"quality": 80, "subsampling": "4:4:4"},
    }
    np.testing.assert_array_equal(array[...], np.stack([decode_jpeg(encode_jpeg(t, 80)) for t in tiles]))


_READ = "import sys, zarr; print(zarr.open_array(sys.argv[1], mode='r')[...].sum())"


def test_the_entry_point_suffices_to_read(tmp_path: Path) -> None:
    """Another process imports nothing but zarr."""
    jpeg_array(tmp_path / "a")[...] = np.stack([tile()] * 3)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _READ, tmp_path / "a"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == int(decode_jpeg(encode_jpeg(tile(), 80)).sum()) * 3


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 64, 64, 4), {}),
        ((2, 64, 64, 3), {"dtype": "uint16"}),
        ((2, 64, 64, 3), {"chunks": (2, 64, 64, 3)}),
        ((64, 64, 3), {"chunks": (64, 64, 3)}),
    ],
)
def test_other_chunks_are_refused(tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="JPEG chunks are uint8"):
        jpeg_array(tmp_path / "a", shape, **options)[...] = 1


def test_a_jpeg_of_another_size_is_refused(tmp_path: Path) -> None:
    jpeg_array(tmp_path / "a")[...] = 9
    (tmp_path / "a" / "c" / "0" / "0" / "0" / "0").write_bytes(encode_jpeg(tile(32), 80))
    with pytest.raises(ValueError, match="the JPEG is"):
        _ = zarr.open_array(tmp_path / "a", mode="r")[0]


def test_an_array_of_copied_files_is_read_only(tmp_path: Path) -> None:
    jpeg_array(tmp_path / "a")[...] = 9
    metadata = tmp_path / "a" / "zarr.json"
    entry = json.loads(metadata.read_text())
    entry["codecs"][0]["configuration"] = JpegCodec(None, None).to_dict()["configuration"]
    metadata.write_text(json.dumps(entry))
    array = zarr.open_array(tmp_path / "a")
    np.testing.assert_array_equal(array[...], np.full((3, 64, 64, 3), 9))
    with pytest.raises(ValueError, match="it can be read, not written"):
        array[...] = 1
