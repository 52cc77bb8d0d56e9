"""How well slides are shared out: tiling with one worker and with two, and what the scheduler takes for each slide.

    python -m tests.benchmarks.schedule_slides tiling path/to/CMU-1-Small-Region.svs [--slides 8] [--cluster]
    python -m tests.benchmarks.schedule_slides sleeping [--slides 1000] [--workers 64] [--seconds 1]

`tiling` tiles slides made of the real one's own streams, each start-up included, with processes or (`--cluster`) on a
local Dask cluster; efficiency is the time of one worker over twice that of two. `sleeping` puts tasks that only sleep
through the real scheduler and client, with workers that are threads of one other process, each with a connection of its
own: efficiency is the sleep by worker over the time taken (0.977 at most: 1000 slides are 15.6 for each of 64 workers,
and some sleep 16 times), and the overhead of a slide is what one takes that does not sleep, all of them at once.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.execution.dask_config import ClusterConfig
from pipeline.execution.pool import TileProgress, run_slides
from pipeline.execution.tile_jobs import tile_all
from tests.benchmarks.read_regions import repeated
from tiling import TilingConfig
from tiling.manifest import slide_row


def sleep(seconds: float, progress: TileProgress) -> float:
    """A slide that takes so long."""
    time.sleep(seconds)
    return seconds


def serve(workers: int, pipe: Connection) -> None:
    """A scheduler and so many workers of one thread each, until the pipe is closed; to be run in its own process."""
    import dask
    from distributed import LocalCluster

    from pipeline.execution.dask_clusters import NO_DASHBOARD, SETTINGS

    with (
        dask.config.set(SETTINGS),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp://", scheduler_kwargs=NO_DASHBOARD,
            memory_limit=None, silence_logs=50,
        ) as cluster,
    ):  # fmt: skip
        pipe.send(cluster.scheduler_address)
        pipe.recv()


@contextmanager
def cluster_of(workers: int) -> Iterator[ClusterConfig]:
    """The address of a scheduler with so many workers."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(workers, there))
    process.start()
    try:
        yield ClusterConfig(at=here.recv())
        here.send("done")
        process.join()
    finally:
        process.kill()


def sleeping(slides: int, workers: int, seconds: float) -> None:
    """Print efficiency and overhead of sleeping tasks."""
    with cluster_of(workers) as config:

        def taken(each: float, count: int) -> float:
            start = time.perf_counter()
            outcomes = run_slides(sleep, [each] * count, workers=0, title=f"{each:g} s", cluster=config)
            assert all(outcome.error is None for outcome in outcomes)
            return time.perf_counter() - start

        taken(0.0, workers)  # modules are loaded by now
        empty, full = taken(0.0, slides), taken(seconds, slides)
    print(f"{slides} slides of {seconds:g} s on {workers} workers: {full:.2f} s")
    print(f"  efficiency {slides * seconds / workers / full:.3f}")
    print(f"  overhead {1000 * empty / slides:.1f} ms a slide, of as many with nothing to do")


def tiling(slide: Path, slides: int, side: int, rounds: int, on_cluster: bool) -> None:
    """Print the efficiency of two workers over real tiling."""
    config = TilingConfig(mpp=1, tile_px=256)
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.tif"
        repeated(slide, large, side)
        paths = [Path(folder) / f"slide-{number}.tif" for number in range(slides)]
        for path in paths:
            path.symlink_to(large)
        rows = [slide_row(path).model_copy(update={"mpp": 0.5}) for path in paths]

        def taken(workers: int, name: str) -> float:
            cluster = ClusterConfig(at=f"local:{workers}") if on_cluster else None
            start = time.perf_counter()
            outcomes = tile_all(rows, Path(folder) / name, config, workers=workers, cluster=cluster, threads=1)
            assert all(outcome.error is None for outcome in outcomes)
            return time.perf_counter() - start

        pairs = [(taken(1, f"one-{i}"), taken(2, f"two-{i}")) for i in range(rounds)]
    shares = [one / two / 2 for one, two in pairs]
    how = "a local cluster" if on_cluster else "processes"
    print(f"{slides} slides of {side} px with {how}: one worker {pairs[0][0]:.1f} s, two {pairs[0][1]:.1f} s")
    print(f"  efficiency {statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    real = commands.add_parser("tiling")
    real.add_argument("slide", type=Path)
    real.add_argument("--slides", type=int, default=8)
    real.add_argument("--side", type=int, default=20_000)
    real.add_argument("--rounds", type=int, default=3)
    real.add_argument("--cluster", action="store_true")
    simulated = commands.add_parser("sleeping")
    simulated.add_argument("--slides", type=int, default=1000)
    simulated.add_argument("--workers", type=int, default=64)
    simulated.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    if options.what == "sleeping":
        sleeping(options.slides, options.workers, options.seconds)
    else:
        tiling(options.slide, options.slides, options.side, options.rounds, options.cluster)


if __name__ == "__main__":
    main()
