"""specslide's tiling against its peers: tiles a second while tiling, and of the whole job with its start-up.

    python -m tests.benchmarks.peers path/to/CMU-1-Small-Region.svs [--rounds 3] [--venvs DIR] [--python python3.11]
        [--cores 1] [--json FILE]

Every peer lives in a venv of its own, made once from the package index with pip; its settings are in the docstring of
its script in peer_jobs/: its own tissue mask, tiles at least half tissue, JPEG quality 90 at Pillow's 4:2:0 (specslide:
`jpeg:90:420`), one worker, and one thread in libvips, OpenCV and polars. specslide writes its quality columns besides.
With `--cores 2` those that can use two workers or threads on one slide do (specslide, hs2p, histoslice, HistoPrep, the
bare loop); the processor time is then of the process that began them alone.

The slide repeats the real one's own streams, with levels 4 and 16 times smaller as scanners write them, so that no peer
must decode all of it for its mask. It is a generic TIFF, which libvips reads with libtiff: what the peers on libvips
read fastest. Jobs, the same for all:

    half     256 px tiles at twice the slide's mpp, 512 level-0 px: say 20x tiles of a slide scanned at 40x
    native   512 px tiles at the slide's own mpp
    source   240 px tiles at its own mpp on its own tile grid, where specslide copies streams (`--codec source`)
    all      as `half`, but every tile, background too (which decodes and encodes faster), by those that can be told so

A round runs every program in a fresh process, one after the other, beginning with another one each time; the ratios are
medians over the rounds of the ratio within a round, since the speed of a shared machine drifts; for the same reason
tiles per second of processor time while tiling stand beside those of the wall clock. `--json` keeps the rates of every
run, with the machine's name and the versions of all that ran. Exit code 1 if a peer could not be
installed or run: the rest is reported all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from PIL import Image

from tests.benchmarks.formats import processor
from tests.benchmarks.read_regions import repeated

MPP = 0.5  # of the slide that is made
JOBS_FOLDER = Path(__file__).parent / "peer_jobs"
OURS = "specslide"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VIPS_CONCURRENCY", "POLARS_MAX_THREADS"), "1")


@dataclass(frozen=True)
class Job:
    """Tiles of `tile_px` made from squares of `tile_px0` level-0 pixels."""

    name: str
    tile_px0: int
    tile_px: int
    codec: str = "jpeg:90:420"
    """Of specslide; the peers know JPEG at quality 90."""
    masked: bool = True
    """Whether tiles must be half tissue, by the program's own mask; else every tile is made."""

    @property
    def mpp(self) -> float:
        return MPP * self.tile_px0 / self.tile_px


JOBS = {
    job.name: job
    for job in (
        Job("half", 512, 256), Job("native", 512, 512), Job("source", 240, 240, "source"),
        Job("all", 512, 256, masked=False),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Peer:
    name: str
    packages: tuple[str, ...]
    script: tuple[str, ...]
    """The file in peer_jobs/, and what it takes before the slide."""
    takes_mpp: bool = False
    takes_masked: bool = False
    """Whether it can be told to do without its mask."""

    def command(self, python: Path, slide: Path, out: Path, job: Job, cores: int) -> list[str]:
        script, *first = self.script
        last = [str(cores), str(MPP)] if self.takes_mpp else [str(cores)]
        last += [str(int(job.masked))] if self.takes_masked else []
        sizes = [str(job.tile_px0), str(job.tile_px)]
        return [str(python), "-I", str(JOBS_FOLDER / script), *first, str(slide), str(out), *sizes, *last]


PEERS = (
    Peer("histoprep", ("HistoPrep==2.0.5", "numpy<2.4", "openslide-bin"), ("with_histoprep.py", "histoprep")),
    Peer("histoslice", ("histoslice==0.6.0",), ("with_histoprep.py", "histoslice")),
    Peer("lazyslide", ("lazyslide==0.13.0", "openslide-bin"), ("with_lazyslide.py",), takes_mpp=True),
    Peer(
        "tiatoolbox", ("tiatoolbox==2.1.3", "openslide-bin"), ("with_tiatoolbox.py",), takes_mpp=True, takes_masked=True
    ),
    Peer("hs2p", ("hs2p==6.1.0", "pyvips[binary]"), ("with_hs2p.py",), takes_mpp=True),
    Peer(
        "openslide",
        ("openslide-python", "openslide-bin", "numpy", "opencv-python-headless", "pillow"),
        ("with_openslide.py",),
        takes_masked=True,
    ),
)


@dataclass(frozen=True)
class Rates:
    """Of one run of one program."""

    tiles: int
    tiling: float
    """Tiles a second while tiling."""
    tiling_cpu: float
    """Tiles a second of processor time while tiling, all threads: what a machine with other work does not blur."""
    whole: float
    """Tiles a second of the whole process."""


class FailedError(Exception):
    """A program that could not be installed or run; the message says why."""


def run(command: Sequence[str]) -> tuple[str, float]:
    """What a command printed, and its wall time in seconds. Raises FailedError with the end of its error output."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD, check=False)
    except OSError as error:
        raise FailedError(str(error)) from error
    seconds = time.perf_counter() - start
    if done.returncode:
        raise FailedError(" | ".join((done.stderr or done.stdout).strip().splitlines()[-3:]))
    return done.stdout, seconds


def installed(peer: Peer, venvs: Path, python: str) -> Path:
    """The Python of the peer's venv, which is made unless it is there. Raises FailedError."""
    folder = venvs / peer.name
    in_it, ready, wanted = folder / "bin" / "python", folder / "ready", "\n".join((python, *peer.packages))
    if not ready.exists() or ready.read_text() != wanted:
        run([python, "-m", "venv", "--clear", str(folder)])
        run([str(in_it), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages])
        ready.write_text(wanted)
    return in_it


def make_slide(source: Path, target: Path, side_px: int) -> None:
    """A tiled TIFF of about `side_px` squared: first the source's streams repeated, then 1/4 and 1/16."""
    repeated(source, target, side_px)
    with tifffile.TiffFile(source) as tiff, tifffile.TiffFile(target) as made:
        page: Any = tiff.pages[0]
        height, width = made.pages[0].shape[:2]
    period = page.imagewidth // page.tilewidth * page.tilewidth, page.imagelength // page.tilelength * page.tilelength
    with openslide.OpenSlide(str(source)) as slide:
        whole = slide.read_region((0, 0), 0, period).convert("RGB")
    with tifffile.TiffWriter(target, append=True) as writer:
        for down in (4, 16):
            small = np.asarray(whole.resize((period[0] // down, period[1] // down), Image.Resampling.BOX))
            rows, columns = height // down, width // down
            times = (-(-rows // small.shape[0]), -(-columns // small.shape[1]), 1)
            writer.write(
                np.ascontiguousarray(np.tile(small, times)[:rows, :columns]),
                tile=(256, 256),
                compression="jpeg",
                photometric="rgb",
                subfiletype=1,
                metadata=None,
            )


def peer_rates(peer: Peer, python: Path, slide: Path, out: Path, job: Job, cores: int) -> Rates:
    printed, seconds = run(peer.command(python, slide, out, job, cores))
    return as_rates(printed, seconds)


def our_rates(slide: Path, out: Path, job: Job, cores: int) -> Rates:
    """Tiling is timed inside `tile_slide`, the whole job as `specslide tile` on the command line: two runs."""
    mpp = str(job.mpp)
    module = f"{__package__}.peer_jobs.with_specslide"
    given = [str(value) for value in (slide, out, job.tile_px, mpp, MPP, job.codec, cores, int(job.masked))]
    printed, _ = run([sys.executable, "-m", module, *given])
    shutil.rmtree(out)
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "tile", str(slide), "--out", str(out)]
    settings = {
        "tile-px": job.tile_px,
        "mpp": mpp,
        "slide-mpp": MPP,
        "codec": job.codec,
        "tissue": "local" if job.masked else "all",
        "workers": 1,
        "threads": cores,
    }
    _, seconds = run([*command, *(part for name, value in settings.items() for part in (f"--{name}", str(value)))])
    return as_rates(printed, seconds)


def as_rates(printed: str, seconds: float) -> Rates:
    told = json.loads(printed.splitlines()[-1])
    tiles = told["tiles"]
    return Rates(tiles, tiles / told["seconds"], tiles / told["cpu_seconds"], tiles / seconds)


def one_round(
    slide: Path, job: Job, pythons: Mapping[str, Path], first: int, failed: dict[str, str], cores: int
) -> dict[str, Rates]:
    """Every program once, the `first` of them first. A peer that fails is noted in `failed` and left out."""
    able = [peer for peer in PEERS if peer.takes_masked or job.masked]
    rates, peers = {}, {peer.name: peer for peer in able if peer.name in pythons}
    names = [OURS, *peers]
    start = first % len(names)
    for name in names[start:] + names[:start]:
        with tempfile.TemporaryDirectory(dir=slide.parent) as folder:
            out = Path(folder) / "out"
            try:
                rates[name] = (
                    our_rates(slide, out, job, cores)
                    if name == OURS
                    else peer_rates(peers[name], pythons[name], slide, out, job, cores)
                )
            except FailedError as error:
                failed[f"{name}, {job.name}"] = str(error)
    return rates


def versions_in(python: Path) -> dict[str, str]:
    """The version of every package that a venv has, by its name."""
    listed = json.loads(run([str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"])[0])
    return {package["name"]: package["version"] for package in listed}


def record(
    pythons: Mapping[str, Path], rounds: Mapping[str, Sequence[Mapping[str, Rates]]], cores: int
) -> dict[str, Any]:
    """All that was measured, and where."""
    rates = {
        job: [{name: asdict(its) for name, its in one.items()} for one in of_job] for job, of_job in rounds.items()
    }
    programs = {name: versions_in(python) for name, python in {OURS: Path(sys.executable), **pythons}.items()}
    return {
        "date": date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "programs": programs,
        "cores_used": cores,
        "rounds": rates,
    }


HEAD = (
    f"{'':27s}{'tiles a second':>27s}   {'specslide over it':>24s}\n"
    f"{'job':8s}{'program':12s}{'tiles':>7s}"
    f"{'tiling':>9s}{'its CPU':>9s}{'whole':>9s}   {'tiling':>8s}{'its CPU':>8s}{'whole':>8s}"
)
KINDS = ("tiling", "tiling_cpu", "whole")


def table(job: Job, rounds: Sequence[Mapping[str, Rates]]) -> list[str]:
    """The lines of one job: a program each, the best while tiling first; ratios are specslide's rate over its."""
    runs = {name: [rates[name] for rates in rounds if name in rates] for name in {n for rates in rounds for n in rates}}
    middle = {name: [statistics.median(getattr(its, kind) for its in runs[name]) for kind in KINDS] for name in runs}
    lines = []
    for name in sorted(middle, key=lambda name: -middle[name][0]):
        both = [(rates[OURS], rates[name]) for rates in rounds if OURS in rates and name in rates]
        gains = [statistics.median(getattr(a, kind) / getattr(b, kind) for a, b in both) for kind in KINDS if both]
        figures = "".join(f"{rate:9.0f}" for rate in middle[name]) + "   " + "".join(f"{gain:8.2f}" for gain in gains)
        lines.append(f"{job.name:8s}{name:12s}{runs[name][-1].tiles:7d}{figures}")
    return lines + [best_line(job, kind, rounds) for kind in KINDS]


def best_line(job: Job, kind: str, rounds: Sequence[Mapping[str, Rates]]) -> str:
    """specslide's rate over that of the round's best peer."""
    gains = [
        getattr(rates[OURS], kind) / max(getattr(its, kind) for name, its in rates.items() if name != OURS)
        for rates in rounds
        if OURS in rates and len(rates) > 1
    ]
    if not gains:
        return f"{job.name}, {kind}: nothing to compare"
    return (
        f"{job.name}, {kind}: {statistics.median(gains):.2f} times the best peer of each round "
        f"({min(gains):.2f} to {max(gains):.2f})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, help="a JPEG SVS or TIFF to take the tiles from")
    parser.add_argument("--side", type=int, default=20_000, help="of the slide that is made, px")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="*", choices=names, default=names)
    parser.add_argument("--cores", type=int, default=1, help="that each program may use for the one slide")
    parser.add_argument("--venvs", type=Path, help="folder of the venvs, kept and reused; default: a temporary one")
    parser.add_argument("--python", default=sys.executable, help="for the venvs; HistoPrep needs Python 3.11")
    parser.add_argument("--json", type=Path, help="file for the rates of every run")
    options = parser.parse_args()
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        venvs = options.venvs.resolve() if options.venvs else Path(folder) / "venvs"
        venvs.mkdir(parents=True, exist_ok=True)
        pythons: dict[str, Path] = {}
        for peer in (peer for peer in PEERS if peer.name in options.peers):
            try:
                pythons[peer.name] = installed(peer, venvs, options.python)
            except FailedError as error:
                failed[f"{peer.name}, installation"] = str(error)
        slide = Path(folder) / "slide.tif"
        make_slide(options.slide, slide, options.side)
        jobs = [JOBS[name] for name in options.jobs]
        rounds: dict[str, list[dict[str, Rates]]] = {job.name: [] for job in jobs}
        for number in range(options.rounds):
            for job in jobs:
                rounds[job.name].append(one_round(slide, job, pythons, number, failed, options.cores))
                print(f"round {number + 1} of {options.rounds}, {job.name}: done", file=sys.stderr)
    print(HEAD)
    for job in jobs:
        print("\n".join(table(job, rounds[job.name])))
    if options.json:
        options.json.write_text(json.dumps(record(pythons, rounds, options.cores), indent=1) + "\n")
    for name, reason in failed.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
