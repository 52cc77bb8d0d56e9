"""Tiling several slides with one worker and with two, and the memory that one worker takes by the size of its slide.

    python -m tests.benchmarks.tile_cohort path/to/CMU-1-Small-Region.svs [--slides 4] [--sides 10000 60000]

The slides are made by repeating the real one's own streams. The job is the command line's, start-up and all: 256 px
tiles at twice the slide's mpp, as jpeg:90.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process, Queue
from pathlib import Path

from tests.benchmarks.read_regions import repeated


def tile(slides: list[Path], out: Path, workers: int) -> float:
    """Seconds that `specslide tile` takes for the slides."""
    options = ["--mpp", "1", "--slide-mpp", "0.5", "--workers", str(workers), "--threads", "1", "--out", str(out)]
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "tile", *map(str, slides), *options], check=True, capture_output=True
    )
    return time.perf_counter() - start


def peak_mb(slide: Path, out: Path, answer: Queue[float]) -> None:
    """Put the memory of the largest process of a job with one worker, in MB; to be run in a process of its own."""
    tile([slide], out, 1)
    answer.put(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


def main() -> None:
    """Make the slides, run the jobs, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs=2, default=(10_000, 60_000))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small, large, out = (Path(folder) / name for name in ("small.tif", "large.tif", "out"))
        repeated(options.slide, small, options.sides[0])
        repeated(options.slide, large, options.sides[1])
        slides = [Path(folder) / f"slide-{number}.tif" for number in range(options.slides)]
        for slide in slides:
            slide.symlink_to(small)
        rounds = [(tile(slides, out, 1), tile(slides, out, 2)) for _ in range(options.rounds)]
        ratios = [one / two for one, two in rounds]
        print(f"{options.slides} slides of {options.sides[0]} px: one worker {rounds[0][0]:.1f} s; two are")
        print(f"  {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")
        for slide, side in zip((small, large), options.sides, strict=True):
            answer: Queue[float] = Queue()
            measured = Process(target=peak_mb, args=(slide, out, answer))
            measured.start()
            print(f"slide of {side} px, {slide.stat().st_size >> 20} MB: largest process {answer.get():.0f} MB")
            measured.join()


if __name__ == "__main__":
    main()
