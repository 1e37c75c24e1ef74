# SPDX-License-Identifier: MIT
"""Start the processes of one training, one per device, with torch's elastic launcher.

Under `torchrun` they have been started already.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bpfn_cli import LIMITED
from bpfn_cli.errors import UsageError, printable

SECONDS_TO_SAVE = 3600
LAUNCHED = "BPFN_LAUNCHED"
_PR_SET_PDEATHSIG = 1  # of prctl(2)
SIGNALS = "SIGTERM,SIGINT,SIGUSR1"  # passed on to the processes, which save


def is_started(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is already one of several processes."""
    return _number(environment, "WORLD_SIZE", 1) > 1


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of this process on its machine; None: it is alone."""
    return _number(environment, "LOCAL_RANK", 0) if is_started(environment) else None


def refuse_plain_srun(environment: Mapping[str, str] = os.environ) -> None:
    """Raises: UsageError: `srun` started several tasks that do not know of each other."""
    tasks = _number(environment, "SLURM_NTASKS", 1) if "SLURM_STEP_ID" in environment else 1
    if tasks > 1 and not is_started(environment):
        raise UsageError(
            f"srun started this command as {tasks} tasks, all running the same training; start one per machine: "
            "srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc-per-node=GPUS --rdzv-backend=c10d "
            "--rdzv-endpoint=FIRST_MACHINE:29500 -m bpfn_cli.cli ... (on one machine: bpfn ... --devices GPUS)"
        )


def launch(devices: int, nodes: int, threads: int) -> int:
    """Run this command again, once per device of this machine; return the exit code of the first that failed.

    Args: nodes: machines, each of which runs this. threads: of each process.
    Raises: UsageError: several machines without an address where they meet.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    config = _launch_config(devices, nodes)
    logging.disable(logging.CRITICAL)  # the processes report their own errors
    if LIMITED or "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ[LAUNCHED] = "1"
    try:
        elastic_launch(config, sys.executable)("-m", "bpfn_cli.cli", *sys.argv[1:])
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code  # killed by a signal: the code that a shell would give
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 143
    return 0


def end_with_launcher() -> None:
    """In a process that `launch` started: save and stop when the launcher is killed."""
    if LAUNCHED in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _launch_config(devices: int, nodes: int) -> Any:
    from torch.distributed.launcher.api import LaunchConfig

    # Where this torch has it: the time to save after a signal. A step, a scene and a checkpoint must fit.
    names = {one.name for one in fields(LaunchConfig)}
    patience: dict[str, Any] = {"shutdown_timeout": SECONDS_TO_SAVE} if "shutdown_timeout" in names else {}
    return LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=devices,
        run_id="bpfn",
        rdzv_backend="c10d",
        rdzv_endpoint=_endpoint(nodes, os.environ),
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=SIGNALS,
        **patience,
    )


def _endpoint(nodes: int, environment: Mapping[str, str]) -> str:
    """Where the machines find each other."""
    if nodes == 1:
        return "localhost:0"  # any free port
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if not address or not port:
        raise UsageError(
            f"--nodes {nodes}: set MASTER_ADDR and MASTER_PORT on every machine, to the first machine and a free port "
            "on it, or use torchrun"
        )
    return f"{address}:{port}"


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    """Raises: UsageError: not a number."""
    value = environment.get(name, str(default))
    if not value.isdecimal():
        raise UsageError(f"{name}={printable(value)}: this environment variable must be a number")
    return int(value)
