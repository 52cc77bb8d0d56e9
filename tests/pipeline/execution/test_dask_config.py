"""Which clusters there are, and which settings each takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.options import cluster_of
from pipeline.execution.dask_config import ClusterConfig
from tiling.core.errors import ConfigError
from tiling.core.settings import checked


@pytest.mark.parametrize(
    ("at", "kind", "workers"),
    [
        ("local", "local", None),
        ("local:3", "local", 3),
        ("tcp://head-1:8786", "scheduler", None),
        ("tls://10.0.0.1:8786", "scheduler", None),
    ],
)
def test_places(at: str, kind: str, workers: int | None) -> None:
    config = ClusterConfig(at=at)
    assert (config.kind, config.max_workers, config.patience_s) == (kind, workers, 600.0)


@pytest.mark.parametrize("at", ["slurm", "pbs", "lsf"])
def test_queues_may_take_a_day_to_begin(at: str) -> None:
    config = ClusterConfig(at=at, workers=4)
    assert (config.kind, config.max_workers, config.patience_s) == (at, 4, 86_400.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"at": "cloud"}, "cluster: at: 'cloud' is refused, a cluster is local, local:N, slurm"),
        ({"at": "local:0"}, "cluster: at: 'local:0' is refused"),
        ({"at": "local:2\n"}, "is refused"),
        ({"at": "tcp://host"}, "cluster: at: 'tcp://host' is refused"),
        ({"at": "http://host:8786"}, "is refused"),
        ({"at": "slurm"}, "cluster: at: 'slurm' is refused, it needs the max number of workers at once: set workers"),
        ({"nodes": 2}, "cluster: nodes: is not a setting; the settings are at, workers"),
        ({"workers": 0}, "cluster: workers: 0 is refused"),
        ({"at": "local:2", "workers": 3}, "cluster: workers: 3 is refused, local:2 does not take it"),
        ({"at": "tcp://h:1", "workers": 3}, "cluster: workers: 3 is refused, tcp://h:1 does not take it"),
        ({"at": "slurm", "workers": 3, "memory": "8GB"}, "cluster: memory: '8GB' is refused, slurm does not take it"),
        ({"memory": "8"}, "cluster: memory: '8' is refused, memory is a number and a unit, such as 8GB"),
        ({"queue": {"cores": 1}}, "cluster: queue: {'cores': 1} is refused, local does not take it"),
        ({"gpu_queue": {"cores": 1}}, "cluster: gpu_queue: {'cores': 1} is refused, local does not take it"),
        ({"min_workers": 1}, "cluster: min_workers: 1 is refused, local does not take it"),
        ({"at": "pbs", "workers": 2, "min_workers": 3}, "cluster: min_workers: 3 is refused, it is more than workers"),
        ({"retries": -1}, "cluster: retries: -1 is refused"),
        ({"wait_s": 0}, "cluster: wait_s: 0 is refused"),
    ],
)
def test_refusals(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(ClusterConfig, values, "cluster")
    assert said in str(caught.value)


def test_options_come_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("at: pbs\nworkers: 4\nqueue: {cores: 2, memory: 8GB}\n")
    assert cluster_of(None, None, workers=3) is None, "workers alone are processes here"
    found = cluster_of("slurm", file, workers=9)
    assert found == ClusterConfig(at="slurm", workers=9, queue={"cores": 2, "memory": "8GB"})
    with pytest.raises(ConfigError, match=f"{file}: memory: '1GB'.*pbs"):
        cluster_of(None, file, memory="1GB")


def test_options_change_the_cluster_of_a_study() -> None:
    study = ClusterConfig(at="slurm", workers=4, queue={"cores": 8})
    assert cluster_of(None, None, study=study) == study
    assert cluster_of(None, None, workers=9, study=study) == ClusterConfig(at="slurm", workers=9, queue={"cores": 8})
    assert cluster_of("local:2", None, study=study) == ClusterConfig(at="local:2")
    with pytest.raises(ConfigError, match=r"memory: '8GB'.*slurm"):
        cluster_of(None, None, memory="8GB", study=study)
    assert cluster_of(None, None, memory="8GB", study=ClusterConfig(at="local:2")).memory == "8GB"  # type: ignore[union-attr]
