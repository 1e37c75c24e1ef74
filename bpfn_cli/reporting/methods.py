# SPDX-License-Identifier: MIT
"""What the names of training methods mean, in the order of the rows."""

from __future__ import annotations

METHODS = {
    "teacher": "the network the others learn from",
    "scratch": "ground truth only",
    "fine-tuned": "ground truth only, starting from given weights",
    "basic": "ground truth and the teacher's flow",
    "hint": "ground truth and the teacher's features of the first cloud",
    "bihint": "ground truth and the teacher's features of both clouds",
    "ail": "basic, weighted towards points where the teacher is accurate",
    "aht": "hint, weighted towards points where the teacher is accurate",
    "bounded": "ground truth, weighted towards points where the student is worse than the teacher",
    "weighted": "basic, with moving and static points balanced",
    "rkd": "ground truth and the relations among the teacher's flows",
    "localization": "ground truth and the teacher's flow distributions",
    "pairwise": "ground truth and the similarities among the teacher's features",
    "adversarial": "ground truth and a critic that tells student from teacher",
    "gan-compression": "squared hints and a critic",
    "mobilebert": "ground truth and the teacher's features and attention",
    "self": "the finest level teaches the coarser ones",
    "online": "two students learn from each other",
    "meta": "the teacher learns to teach",
    "netaug": "the student is also trained as part of wider networks",
    "early-stop-hard": "no teacher after a share of the epochs",
    "early-stop-linear": "the teacher's weight decreases linearly",
    "early-stop-auto": "no teacher once the student is better",
    "random-teacher": "control: an untrained teacher",
    "shuffled-teacher": "control: the teacher's outputs are assigned to other points",
}


def method_rank(method: str) -> int:
    """The place of a method among the rows; combined and unknown methods come last."""
    methods = list(METHODS)
    return methods.index(method) if method in methods else len(methods)
