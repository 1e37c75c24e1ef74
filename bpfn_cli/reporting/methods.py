# SPDX-License-Identifier: MIT
"""What the names of training methods mean, in the order of the rows."""

FIRST = {
    "teacher": "the network the others learn from",
    "scratch": "ground truth only",
    "fine-tuned": "ground truth only, starting from given weights",
}
LAST = {
    "early-stop-hard": "no teacher after a share of the epochs",
    "early-stop-linear": "the teacher's weight decreases linearly",
    "early-stop-auto": "no teacher once the student is better",
    "random-teacher": "control: an untrained teacher",
    "shuffled-teacher": "control: the teacher's outputs are assigned to other points",
    "random-adapter": "control: the teacher's features pass through a random linear map",
}


def method_meanings() -> dict[str, str]:
    """The meaning of each method; losses and strategies bring their own, in the order of their registries."""
    from bpfn_cli.losses import LOSSES  # here, because torch takes a second to import
    from bpfn_cli.strategies import STRATEGIES

    losses = {name: kind.card.meaning or kind.card.compares for name, kind in LOSSES.items()}
    strategies = {name: kind.card.meaning for name, kind in STRATEGIES.items() if kind.card.meaning}
    return {**FIRST, **losses, **strategies, **LAST}


def method_rank(method: str) -> int:
    """The place of a method among the rows; combined and unknown methods come last."""
    methods = list(method_meanings())
    return methods.index(method) if method in methods else len(methods)
