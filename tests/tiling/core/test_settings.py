"""Settings files of somebody else: refused in one short sentence, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiling.config import TilingConfig
from tiling.core.errors import ConfigError
from tiling.core.settings import load_settings

BOMB = "mpp:\n" + "".join(
    f"  - &a{level} [{','.join([f'*a{level - 1}' if level else 'x'] * 9)}]\n" for level in range(9)
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("tile_px: 64\nmpp: 1\ntile_px: 128\n", "'tile_px' is given twice"),
        ("tissue: {mask_mpp: 4, mask_mpp: 8}\n", "'mask_mpp' is given twice"),
        ("tile_px: 0x" + "f" * 5000 + "\n", "tile_px"),
        (BOMB, "mpp"),
        ("bomb: &b [x, x]\n" + BOMB, "bomb|mpp"),
        ('codec: "a\\0b"\n', "NUL"),
        ("tile_px: .inf\n", "tile_px"),
        ("mpp: .nan\n", "mpp"),
        ("mpp: -1\n", "mpp"),
        ("mpp: " + "x" * 100_000 + "\n", "mpp"),
    ],
)
def test_hostile_yaml_is_one_short_sentence(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as caught:
        load_settings(TilingConfig, path, None, "options")
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_a_mapping_may_take_over_another_and_change_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("tissue: &t {mask_mpp: 4}\n")
    assert load_settings(TilingConfig, path, None, "options").tissue.mask_mpp == 4
