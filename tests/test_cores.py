"""How many cores: affinity, and the quotas of control groups, read from a made-up system."""

import os

import pytest

from refimpl import cores


@pytest.fixture
def system(tmp_path, monkeypatch):
    """system({path: content}): the folder of a system with eight cores to run on and these files."""

    def make(files):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


V2, V1 = "0::/a/b\n", "9:name=systemd:/\n4:cpuset:/q\n3:cpu,cpuacct:/a/b\n0::/\n"
GROUPS, QUOTA, PERIOD = "sys/fs/cgroup", "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(("files", "count"), [
    ({}, 8),
    ({"proc/self/cgroup": V2}, 8),
    ({"proc/self/cgroup": V2, f"{GROUPS}/a/b/cpu.max": "max 100000\n"}, 8),
    ({"proc/self/cgroup": V2, f"{GROUPS}/a/b/cpu.max": "300000 100000\n"}, 3),
    ({"proc/self/cgroup": V2, f"{GROUPS}/a/b/cpu.max": "250000 100000\n"}, 3),
    ({"proc/self/cgroup": V2, f"{GROUPS}/a/b/cpu.max": "1000 100000\n"}, 1),
    ({"proc/self/cgroup": V2, f"{GROUPS}/a/b/cpu.max": "9900000 100000\n"}, 8),
    ({"proc/self/cgroup": V2, f"{GROUPS}/a/b/cpu.max": "max 100000\n", f"{GROUPS}/a/cpu.max": "200000 100000\n"}, 2),
    ({"proc/self/cgroup": V2, f"{GROUPS}/cpu.max": "100000 50000\n"}, 2),
    ({"proc/self/cgroup": V2, f"{GROUPS}/a/c/cpu.max": "100000 100000\n"}, 8),
    ({"proc/self/cgroup": V2, f"{GROUPS}/a/b/cpu.max": "nonsense\n"}, 8),
    ({"proc/self/cgroup": V2, f"{GROUPS}/a/b/cpu.max": "0 0\n"}, 8),
    ({"proc/self/cgroup": "0::/../..\n", f"{GROUPS}/cpu.max": "200000 100000\n"}, 2),
    ({"proc/self/cgroup": V1, f"{GROUPS}/unified/cpu.max": "500000 100000\n"}, 5),
    ({"proc/self/cgroup": V1, f"{GROUPS}/cpu/a/b/{QUOTA}": "-1\n", f"{GROUPS}/cpu/a/b/{PERIOD}": "100000\n"}, 8),
    ({"proc/self/cgroup": V1, f"{GROUPS}/cpu/a/b/{QUOTA}": "150000\n", f"{GROUPS}/cpu/a/b/{PERIOD}": "100000\n"}, 2),
    ({"proc/self/cgroup": V1, f"{GROUPS}/cpu,cpuacct/a/{QUOTA}": "4000\n", f"{GROUPS}/cpu,cpuacct/a/{PERIOD}": "1000\n"}, 4),
    ({"proc/self/cgroup": V1, f"{GROUPS}/cpu/{QUOTA}": "400000\n", f"{GROUPS}/cpu/{PERIOD}": "100000\n"}, 4),
    ({"proc/self/cgroup": V1, f"{GROUPS}/cpuset/q/{QUOTA}": "100\n", f"{GROUPS}/cpuset/q/{PERIOD}": "100\n"}, 8),
    ({"proc/self/cgroup": V1, f"{GROUPS}/cpu/{QUOTA}": "400000\n"}, 8),
], ids=str)
def test_the_least_of_affinity_and_every_quota_on_the_way_rounded_up(system, files, count):
    assert cores.available(system(files)) == count


def test_fewer_cores_to_run_on_than_the_quota_allows(system, monkeypatch):
    root = system({"proc/self/cgroup": V2, f"{GROUPS}/a/b/cpu.max": "300000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 6})
    assert cores.available(root) == 2


def test_a_system_without_affinity_or_groups(system, monkeypatch):
    root = system({})
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert cores.available(root) == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.available(root) == 1
