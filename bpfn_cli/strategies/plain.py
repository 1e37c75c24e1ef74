# SPDX-License-Identifier: MIT
"""The plain strategy: one student, a fixed teacher or none."""

from __future__ import annotations

from typing import ClassVar

from bpfn_cli.strategies.base import Strategy, StrategyCard


class PlainStrategy(Strategy):
    """The base strategy as it is."""

    card: ClassVar[StrategyCard] = StrategyCard("one student, a fixed teacher or none", "the reports")
