# SPDX-License-Identifier: MIT
"""Starting the processes of one training, one for each device, by torch's elastic launcher.

Under `torchrun`, or `srun` with a task for each device, they have been started already.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from typing import Any

from bpfn_cli.errors import UsageError, printable

SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
SECONDS_TO_SAVE = 3600
LOWEST_PORT, PORTS = 20000, 12000  # below those that Linux gives away by itself
LAUNCHED = "BPFN_LAUNCHED"
_PR_SET_PDEATHSIG = 1  # of prctl(2)
SIGNALS = "SIGTERM,SIGINT,SIGUSR1"  # handed on to the processes, which save


def is_started(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is already one of several processes."""
    return _number(environment, "WORLD_SIZE", 1) > 1


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of this process on its machine; None: it is alone."""
    return _number(environment, "LOCAL_RANK", 0) if is_started(environment) else None


def adopt_slurm(environment: MutableMapping[str, str], wanted: int | None = None) -> None:
    """Let `srun` with a task for each device stand for `torchrun`: fill in what torch asks for.

    Args: wanted: processes that the user asks for; with another number of tasks (one for each machine) each of them
        starts its own.
    """
    tasks = _number(environment, "SLURM_NTASKS", 1)
    if is_started(environment) or "SLURM_STEP_ID" not in environment or tasks < 2 or wanted not in (None, tasks):
        return
    for name, source in SLURM.items():
        environment[name] = environment[source]
    for name, value in zip(("MASTER_ADDR", "MASTER_PORT"), _slurm_endpoint(environment), strict=True):
        environment.setdefault(name, value)


def launch(devices: int, nodes: int, threads: int) -> int:
    """Run this command again, once for each device of this machine; the exit code of the first that failed.

    Args: nodes: machines, each of which runs this. threads: of each process.
    Raises: UsageError: several machines that do not know of each other.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # the processes speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ[LAUNCHED] = "1"
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=devices,
        run_id=os.environ.get("SLURM_JOB_ID", "bpfn"),
        rdzv_backend="c10d",
        rdzv_endpoint=_endpoint(nodes, os.environ),
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=SIGNALS,
        **_patience(LaunchConfig),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "bpfn_cli.cli", *sys.argv[1:])
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code  # ended by a signal, as a shell says it
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 143
    return 0


def end_with_launcher() -> None:
    """In a process that `launch` has started: save and end when the launcher is killed."""
    if LAUNCHED in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _patience(config: type) -> dict[str, Any]:
    """Time to save after a signal, where this torch can be told: a step, a scene and a checkpoint must fit."""
    return {"shutdown_timeout": SECONDS_TO_SAVE} if "shutdown_timeout" in {f.name for f in fields(config)} else {}


def _endpoint(nodes: int, environment: Mapping[str, str]) -> str:
    """Where the machines find each other."""
    if nodes == 1:
        return "localhost:0"  # any free port
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if "SLURM_STEP_NODELIST" in environment:
        first, free = _slurm_endpoint(environment)
        address, port = address or first, port or free
    if not address or not port:
        raise UsageError(
            f"--nodes {nodes}: set MASTER_ADDR and MASTER_PORT to the first machine and a free port of it on all of "
            "them, or start this by srun or torchrun"
        )
    return f"{address}:{port}"


def _slurm_endpoint(environment: Mapping[str, str]) -> tuple[str, str]:
    """The first machine, and a port that is the same on all and another for each job."""
    port = LOWEST_PORT + _number(environment, "SLURM_JOB_ID", 0) % PORTS
    return first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1")), str(port)


def _number(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    """Raises: UsageError: not a number."""
    value = environment.get(name, str(otherwise))
    if not value.isdecimal():
        raise UsageError(f"{name}={printable(value)}: a number was expected in this variable of the environment")
    return int(value)


def first_host(hosts: str) -> str:
    """The first of SLURM's list: `node[03-05,9],other` begins with node03."""
    head, bracket, rest = hosts.partition("[")
    if not bracket or "," in head:
        return hosts.split(",", maxsplit=1)[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]
