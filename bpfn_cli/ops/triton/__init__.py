# SPDX-License-Identifier: MIT
"""Triton kernels behind the signatures of `bpfn_cli.ops`."""
