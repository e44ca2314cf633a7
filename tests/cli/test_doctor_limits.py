"""What the limits of a host mean, in machines."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from ovms_supervisor.cli.doctor import limits
from ovms_supervisor.cli.doctor.finding import Level
from ovms_supervisor.config import Settings

_GENEROUS = {
    "/proc/sys/kernel/pid_max": 4194304,
    "/proc/sys/kernel/threads-max": 4000000,
    "/proc/sys/fs/nr_open": 1048576,
    "/proc/sys/fs/inotify/max_user_watches": 100000,
    "/proc/sys/fs/inotify/max_user_instances": 128,
}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def be(**changes: int) -> None:
        figures = {path: changes.get(path.rpartition("/")[2].replace("-", "_"), n) for path, n in _GENEROUS.items()}
        monkeypatch.setattr(limits, "read_number", figures.get)
        monkeypatch.setattr(limits, "_pids_max", lambda: changes.get("pids"))
        monkeypatch.setattr(os, "geteuid", lambda: changes.get("uid", 0))
        monkeypatch.setattr(limits, "_may_raise_limits", lambda: changes.get("uid", 0) == 0)
        soft = changes.get("soft", resource.RLIM_INFINITY)
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, changes.get("hard", soft)))

    return be


def test_a_host_for_thousands(host: Callable[..., None], settings: Settings) -> None:
    host(soft=1024, hard=20000)
    for check in (limits.open_files, limits.processes, limits.inotify):
        assert check(settings).level is Level.OK
    assert "209664 machines" in limits.open_files(settings).figure, "root has what fs.nr_open allows"


def test_the_least_of_all_limits_is_named(host: Callable[..., None], settings: Settings) -> None:
    host(pid_max=32768)
    assert limits.processes(settings).figure.startswith("32768 at most (kernel.pid_max): about 4638 machines")
    host(pids=512)
    found = limits.processes(settings)
    assert (found.level, found.remedy) == (Level.WARN, "TasksMax=infinity in the unit.")
    host(uid=1000, soft=4096)
    assert limits.processes(settings).remedy.startswith("LimitNPROC=infinity")


def test_few_descriptors(host: Callable[..., None], settings: Settings) -> None:
    host(uid=1000, soft=1024, hard=1024)
    found = limits.open_files(settings)
    assert (found.level, "153 machines" in found.figure) == (Level.WARN, True)


def test_few_inotify_instances(host: Callable[..., None], settings: Settings) -> None:
    host(max_user_instances=4)
    assert limits.inotify(settings).level is Level.WARN


@pytest.fixture
def settings() -> Settings:
    nowhere = Path("/nowhere")
    return Settings(root=nowhere, run_dir=nowhere, socket=nowhere, image_dir=nowhere)
