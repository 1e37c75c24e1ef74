# SPDX-License-Identifier: MIT
"""What the environment says about other processes."""

from __future__ import annotations

import pytest

from bpfn_cli.errors import UsageError
from bpfn_cli.launch import _endpoint, is_started, local_rank, refuse_plain_srun

SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "16"}


def test_refuse_plain_srun_names_the_torchrun_command() -> None:
    with pytest.raises(UsageError, match=r"as 16 tasks.* srun --ntasks-per-node=1 torchrun .* -m bpfn_cli\.cli"):
        refuse_plain_srun(SRUN)


@pytest.mark.parametrize("changes", [{"SLURM_NTASKS": "1"}, {"WORLD_SIZE": "2"}])
def test_refuse_plain_srun_accepts_one_task_and_torchrun(changes: dict[str, str]) -> None:
    refuse_plain_srun({**SRUN, **changes})
    refuse_plain_srun({"SLURM_NTASKS": "4"})  # inside a batch script, not in a step of srun


def test_local_rank_is_none_for_a_single_process() -> None:
    assert not is_started({}) and local_rank({"LOCAL_RANK": "3"}) is None
    assert local_rank({"LOCAL_RANK": "3", "WORLD_SIZE": "8"}) == 3


def test_endpoint_of_several_machines_must_be_given() -> None:
    assert _endpoint(1, {}) == "localhost:0"
    assert _endpoint(2, {"MASTER_ADDR": "gpu08", "MASTER_PORT": "29500"}) == "gpu08:29500"
    with pytest.raises(UsageError, match="--nodes 2: set MASTER_ADDR and MASTER_PORT"):
        _endpoint(2, {"MASTER_ADDR": "gpu08"})
