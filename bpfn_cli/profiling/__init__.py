# SPDX-License-Identifier: MIT
"""What a network costs: parameters, multiply-accumulates, file size."""

from bpfn_cli.profiling.profile import LevelProfile, ModuleCounts, Profile, count_modules, profile_model

__all__ = ["LevelProfile", "ModuleCounts", "Profile", "count_modules", "profile_model"]
