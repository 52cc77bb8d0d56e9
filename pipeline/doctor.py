"""What decides whether and how fast specslide runs here: versions, cores, GPU, disk, and a slide's readers.

Findings hold nothing private: no path, no name of a person, a machine or a slide. Knows nothing of the command line.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

from pipeline.execution.pool import TileProgress, run_slides
from tiling.core.errors import SpecslideError
from tiling.core.threads import usable_cores
from tiling.core.versions import software_versions
from tiling.slides.files import entry_file
from tiling.slides.reader import SlideReader
from tiling.slides.readers import READERS, open_reader

_SHOWN = ("torch", "timm", "lightning", "zarr", "numpy", "openslide-python", "openslide-bin", "simplejpeg", "pillow")
_EXTRA = re.compile(r"""extra\s*==\s*['"](?P<name>[\w-]+)['"]""")
_SIDE, _REGIONS, _PROBE_MB = 256, 8, 64


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    value: str
    advice: str = ""
    """What to do about it; "" if it is as it should be."""
    broken: bool = False
    """Whether specslide cannot work so."""


def examine(out: Path, slides: Sequence[Path] = ()) -> Iterator[Finding]:
    """What is found of the installation, the machine, the disk that `out` is on, and slides; each as it is known."""
    known = dict(software_versions(*_SHOWN))  # they are remembered
    own = [known.pop(name) for name in ("specslide", "specslide_commit") if name in known]
    yield Finding("specslide", ", ".join(own))
    yield Finding("system", f"{platform.system()} {platform.machine()}, Python {known.pop('python')}", _system_advice())
    yield Finding("packages", ", ".join(f"{name} {of}" for name, of in known.items()))
    yield from _unmet(requires("specslide") or [])
    yield from _compute(os.environ)
    yield _disk(out)
    jobs = [(f"slide {number}", path) for number, path in enumerate(slides, start=1)]
    for outcome in run_slides(_slide_job, jobs, workers=1, title="slides") if jobs else ():
        yield from outcome.result or [_unreadable(outcome.job[0], "it ends the process that reads it, or is damaged")]


def _system_advice() -> str:
    return "" if platform.system() == "Linux" else "specslide is tested on Linux"


def _unmet(requirements: Sequence[str]) -> Iterator[Finding]:
    """The packages that are missing or of a version that is not allowed, and the extras that are whole."""
    wrong, extras = [], dict[str, bool]()
    for requirement in map(Requirement, requirements):
        found = _EXTRA.search(str(requirement.marker or ""))
        try:
            met = requirement.specifier.contains(version(requirement.name), prereleases=True)
            held = version(requirement.name)
        except PackageNotFoundError:
            met, held = False, "missing"
        if found is not None:
            extras[found["name"]] = extras.get(found["name"], True) and met
        elif not met:
            wrong.append(f"{requirement.name} {held}, needed {requirement.specifier or 'in any version'}")
    fix = "pip install -c constraints.txt specslide" if wrong else ""
    yield Finding("requirements", "; ".join(wrong) or "all met", fix, broken=bool(wrong))
    yield Finding("extras", ", ".join(name for name, whole in sorted(extras.items()) if whole) or "none")


def _compute(environment: Mapping[str, str]) -> Iterator[Finding]:
    import torch

    cores, threads = usable_cores(), environment.get("OMP_NUM_THREADS", "not set")
    busy = os.getloadavg()[0] > cores + 1 if hasattr(os, "getloadavg") else False
    yield Finding(
        "cores", f"{cores} of {os.cpu_count()} may be used; OMP_NUM_THREADS {threads}; workers are spawned",
        "other programs keep them busy" if busy else "",
    )  # fmt: skip
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            of = torch.cuda.get_device_properties(number)
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32 bits"
            yield Finding(f"GPU {number}", f"{of.name}, {of.total_memory / 2**30:.0f} GiB, computes in {precision}")
    else:
        built = "has no CUDA" if torch.version.cuda is None else f"is for CUDA {torch.version.cuda}"
        seen = shutil.which("nvidia-smi") is not None
        advice = "torch does not see the GPU that nvidia-smi is here for: install its CUDA build" if seen else ""
        yield Finding("GPU", f"none that torch can use; torch {built}", advice)


def _disk(out: Path) -> Finding:
    """Free space, and the speed of one large file, where results would lie."""
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free / 2**30
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            start = time.perf_counter()
            for _ in range(_PROBE_MB):
                file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
            speed = _PROBE_MB / (time.perf_counter() - start)
    except OSError as error:
        return Finding(
            "disk", f"{free:.0f} GiB free, cannot be written ({error.strerror})", "choose another folder", True
        )
    advice = "little space is left" if free < 10 else "slow: use a local disk" if speed < 50 else ""
    return Finding("disk", f"{free:.0f} GiB free, writes {speed:.0f} MB/s", advice)


def _slide_job(job: tuple[str, Path], progress: TileProgress) -> list[Finding]:
    """What is found of a slide, in a process that may be lost."""
    return list(_slide(*job))


def _unreadable(name: str, why: str) -> Finding:
    return Finding(name, f"cannot be read ({why})", "see what `specslide info` says of it", True)


def _slide(name: str, path: Path) -> Iterator[Finding]:
    """What reads a slide, and how its other readers compare: pixels and time of the same regions."""
    try:
        chosen, reader = open_reader(path)
    except SpecslideError as error:
        yield _unreadable(name, type(error).__name__)
        return
    first = reader.levels[0]
    scale = "scale unknown" if reader.mpp_xy is None else f"{reader.mpp_xy[0]:.4g} µm/px"
    yield Finding(
        name, f"{reader.vendor}, {first.width} x {first.height} px, {len(reader.levels)} levels, {scale}",
        "pass --slide-mpp" if reader.mpp_xy is None else "",
    )  # fmt: skip
    expected, seconds = _read(reader)
    reader.close()
    yield Finding(f"{name}, {chosen}", f"chosen; {1000 * seconds / _REGIONS:.1f} ms a region of {_SIDE} px")
    for other, opened in READERS.items():
        if other == chosen:
            continue
        try:
            second = opened(path, entry_file(path))
            if second is None:
                continue
            pixels, took = _read(second)
            second.close()
        except (SpecslideError, OSError) as error:
            yield Finding(f"{name}, {other}", f"does not read it ({type(error).__name__})")
            continue
        apart = int(np.abs(pixels.astype(int) - expected).max())
        text = f"{1000 * took / _REGIONS:.1f} ms a region; {'the same pixels' if not apart else f'differs by {apart}'}"
        yield Finding(f"{name}, {other}", text, "report the slide's format and these lines" if apart > 2 else "")


def _read(reader: SlideReader) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], float]:
    """Regions along the diagonal, uint8 (n, side, side, 3), and the seconds they took."""
    first = reader.levels[0]
    places = [
        (int(t * max(0, first.width - _SIDE)), int(t * max(0, first.height - _SIDE)))
        for t in np.linspace(0.1, 0.9, _REGIONS)
    ]
    start = time.perf_counter()
    pixels = np.stack([reader.read(x0, y0, 0, _SIDE, _SIDE) for x0, y0 in places])
    return pixels, time.perf_counter() - start
