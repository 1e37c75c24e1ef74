# SPDX-License-Identifier: MIT
"""What owns the optimizer step, one strategy a file. `STRATEGIES` names them all."""

from bpfn_cli.strategies.meta import MetaStrategy
from bpfn_cli.strategies.netaug import NetaugStrategy
from bpfn_cli.strategies.online import OnlineStrategy
from bpfn_cli.strategies.plain import PlainStrategy, TermRecord
from bpfn_cli.strategies.self_distillation import SelfStrategy
from bpfn_cli.strategies.teacher import Teacher, TeacherCache

STRATEGIES: dict[str, type[PlainStrategy]] = {
    "plain": PlainStrategy,
    "self": SelfStrategy,
    "online": OnlineStrategy,
    "meta": MetaStrategy,
    "netaug": NetaugStrategy,
}

__all__ = ["STRATEGIES", "PlainStrategy", "Teacher", "TeacherCache", "TermRecord"]
