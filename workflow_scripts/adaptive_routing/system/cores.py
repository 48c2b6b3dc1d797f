"""The cores that this process may use: what the machine, the system's limits and the user leave it."""

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

# Snakemake gives every job an OMP_NUM_THREADS of its own; the workflow keeps the user's under this name.
LIMIT_VARIABLE = "ADAPTIVE_ROUTING_MAX_CORES"
_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """How many cores this process may keep busy, at least 1.

    The smallest of: the cores that it is allowed to run on (affinity), the processor time that its control
    group is allowed (containers, batch systems), and the limit that the user has set with OMP_NUM_THREADS.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = (allowed, _cgroup_limit(), _user_limit(os.environ.get(LIMIT_VARIABLE)))
    return max(1, min(limit for limit in limits if limit is not None))


def keep_user_limit(environment: MutableMapping[str, str] = os.environ) -> None:
    """In the workflow's own process: keep the user's OMP_NUM_THREADS for the jobs that it starts."""
    own = environment.get("OMP_NUM_THREADS")
    if own and LIMIT_VARIABLE not in environment:
        environment[LIMIT_VARIABLE] = own


def _user_limit(value):
    first = (value or "").split(",")[0].strip()  # a list has one number for each level of nesting
    return int(first) if first.isdecimal() and int(first) else None


def _cgroup_limit(root=_CGROUPS, membership=Path("/proc/self/cgroup")):
    """The fewest whole cores that a control group of this process, or one above it, allows; None for all."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None  # no Linux
    quotas = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has one tree; in version 1 each controller has its own.
        tree = root if not controllers else root / "cpu"
        folder = tree / group.lstrip("/")
        for parent in (folder, *folder.parents):
            quotas += _quota(parent)
            if parent == tree:
                break
    return max(1, math.floor(min(quotas))) if quotas else None


def _quota(folder):
    """[cores] that a control group's own quota allows; nothing where it has none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return []
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]
