# SPDX-License-Identifier: MIT
"""What owns the optimizer step."""

from bpfn_cli.strategies.plain import PlainStrategy

__all__ = ["PlainStrategy"]
