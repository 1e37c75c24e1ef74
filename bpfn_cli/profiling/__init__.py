# SPDX-License-Identifier: MIT
"""What a network costs: parameters, multiply-accumulates, file size, time and memory."""

from bpfn_cli.profiling.latency import Latency, describe_machine, measure_latency
from bpfn_cli.profiling.profile import (
    ModuleCounts,
    Profile,
    TensorSize,
    count_modules,
    list_tensors,
    profile_model,
    tensor_totals,
)
from bpfn_cli.profiling.workload import Case

__all__ = [
    "Case",
    "Latency",
    "ModuleCounts",
    "Profile",
    "TensorSize",
    "count_modules",
    "describe_machine",
    "list_tensors",
    "measure_latency",
    "profile_model",
    "tensor_totals",
]
