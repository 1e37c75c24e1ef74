# SPDX-License-Identifier: MIT
"""What a network costs: parameters, multiply-accumulates, file size, time and memory."""

from bpfn_cli.profiling.latency import Latency, describe_machine, measure_latency
from bpfn_cli.profiling.profile import ModuleCounts, Profile, count_modules, profile_model
from bpfn_cli.profiling.workload import Case

__all__ = [
    "Case",
    "Latency",
    "ModuleCounts",
    "Profile",
    "count_modules",
    "describe_machine",
    "measure_latency",
    "profile_model",
]
