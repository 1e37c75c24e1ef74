# SPDX-License-Identifier: MIT
"""Training strategies, one a file; a strategy owns the optimizer step. `STRATEGIES` is the registry."""

from bpfn_cli.strategies.base import PlainStrategy, Strategy
from bpfn_cli.strategies.meta import MetaStrategy
from bpfn_cli.strategies.netaug import NetaugStrategy
from bpfn_cli.strategies.online import OnlineStrategy
from bpfn_cli.strategies.self_distillation import SelfStrategy
from bpfn_cli.strategies.teacher import Teacher
from bpfn_cli.strategies.teacher_cache import TeacherCache
from bpfn_cli.strategies.terms import TermRecord, WeightedTerm

STRATEGIES: dict[str, type[Strategy]] = {
    "plain": PlainStrategy,
    "self": SelfStrategy,
    "online": OnlineStrategy,
    "meta": MetaStrategy,
    "netaug": NetaugStrategy,
}

__all__ = ["STRATEGIES", "PlainStrategy", "Strategy", "Teacher", "TeacherCache", "TermRecord", "WeightedTerm"]
