"""The viewer as a folder of static files, which any web server shows, under any prefix, and no Python is needed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inference.viewer.cohort import Shown
from inference.viewer.site import Site
from tiling.core.artefact import Recipe, atomic_folder, content_hash, locked_folder, require_own, state
from tiling.core.errors import OutputError
from tiling.core.threads import usable_cores
from tiling.core.versions import software_versions
from tiling.slides.files import slide_sha256

_MARK, _AT_ONCE = "slide.html", 256


def export_site(site: Site, folder: Path, progress: Callable[[int, int], None]) -> int:
    """Write every address of a site as a file; nothing, if they are there already.

    Args:
        site: The site.
        folder: Appears whole or not at all. An earlier export in it is replaced, and nothing else.
        progress: Called with (files done, files in all).

    Returns:
        The number of files.

    Raises:
        OutputError: If they cannot be written, or the folder holds something else.
        SpecslideError: If a slide, store or heatmap cannot be read.
    """
    colours: dict[str, object] = {} if site.pictures.icc == "none" else {"icc": site.pictures.icc}
    if site.recoloured is not None:
        colours["both_colours"] = True
    recipe = Recipe("view", {"slides": [_identity(shown) for shown in site.cohort.slides]}, colours)
    addresses = list(site.addresses())
    with locked_folder(folder):
        if folder.exists() and state(folder, recipe).state == "done":
            return len(addresses)
        require_own(folder, _MARK, "an export of the viewer")

        def write(address: str) -> None:
            answer = site.get(address)
            if answer is None:
                raise OutputError(folder, f"lacks {address}", "run the same command again")
            (partial / address).write_bytes(answer.data)

        with atomic_folder(folder, recipe, made_with=software_versions()) as partial, _pool() as pool:
            for parent in {(partial / address).parent for address in addresses}:
                parent.mkdir(parents=True, exist_ok=True)
            for start in range(0, len(addresses), _AT_ONCE):
                list(pool.map(write, addresses[start : start + _AT_ONCE]))
                progress(min(start + _AT_ONCE, len(addresses)), len(addresses))
    return len(addresses)


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(usable_cores())


def _identity(shown: Shown) -> dict[str, object]:
    """What decides the files of a slide."""
    if shown.slide is not None:
        sha256 = slide_sha256(shown.slide)
    else:
        sha256 = shown.store.pixels_sha256 if shown.store is not None else ""
    label = None if shown.row is None else shown.row.label
    heatmaps = [content_hash(result.folder) for result in shown.results]
    found: dict[str, object] = {"slide": sha256, "id": shown.slide_id, "label": label, "heatmaps": heatmaps}
    return found if shown.features is None else found | {"features": shown.features.sha256}
