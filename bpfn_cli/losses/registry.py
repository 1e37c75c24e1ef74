# SPDX-License-Identifier: MIT
"""The registry of losses, and the import of a user's own loss."""

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from bpfn_cli.errors import UsageError, did_you_mean, printable
from bpfn_cli.losses.chamfer import ChamferLoss
from bpfn_cli.losses.feature.aht import AhtLoss
from bpfn_cli.losses.feature.bihint import BihintLoss
from bpfn_cli.losses.feature.bridge import BridgeLoss
from bpfn_cli.losses.feature.gan_compression import GanCompressionLoss
from bpfn_cli.losses.feature.hint import HintLoss
from bpfn_cli.losses.feature.mobilebert import MobilebertLoss
from bpfn_cli.losses.relation.pairwise import PairwiseLoss
from bpfn_cli.losses.relation.rkd import RkdLoss
from bpfn_cli.losses.response.adversarial import AdversarialLoss
from bpfn_cli.losses.response.ail import AilLoss
from bpfn_cli.losses.response.basic import BasicLoss
from bpfn_cli.losses.response.bounded import BoundedLoss
from bpfn_cli.losses.response.localization import LocalizationLoss
from bpfn_cli.losses.response.weighted import WeightedLoss
from bpfn_cli.losses.term import Card, DistillationLoss

NO_DISTILLATION = "none"

LOSSES: dict[str, type[DistillationLoss]] = {
    "basic": BasicLoss,
    "hint": HintLoss,
    "bihint": BihintLoss,
    "bridge": BridgeLoss,
    "ail": AilLoss,
    "aht": AhtLoss,
    "bounded": BoundedLoss,
    "weighted": WeightedLoss,
    "rkd": RkdLoss,
    "localization": LocalizationLoss,
    "pairwise": PairwiseLoss,
    "adversarial": AdversarialLoss,
    "gan-compression": GanCompressionLoss,
    "mobilebert": MobilebertLoss,
    "chamfer": ChamferLoss,
}


def loss_named(name: str) -> type[DistillationLoss]:
    """A built-in loss by its name, or a user's loss by `module:Class`.

    Raises: UsageError: unknown name; no such module or attribute, or not a loss.
    """
    check_loss_name(name)
    return LOSSES[name] if name in LOSSES else _own_loss(name)


def needs_teacher(name: str) -> bool:
    """Whether a loss learns from a teacher; imports nothing, so a user's own loss is taken to."""
    return name not in LOSSES or LOSSES[name].needs_teacher


def is_own_loss(name: str) -> bool:
    """Whether a name stands for a user's code."""
    return name not in LOSSES and ":" in name


def check_loss_name(name: str) -> None:
    """Imports nothing. Raises: UsageError: an unknown name, or not of the form module:Class."""
    if is_own_loss(name):
        _check_own_name(name)
    elif name not in LOSSES:
        repeat = next((sign for sign in "+," if sign in name), None)
        hint = f"; repeat --loss to sum losses: --loss {' --loss '.join(name.split(repeat))}." if repeat else ""
        known = ", ".join([NO_DISTILLATION, *LOSSES])
        hint = printable(hint) or did_you_mean(name, LOSSES) or "."
        raise UsageError(f"unknown loss {printable(name)!r}{hint} Known: {known}; or module:Class")


def _check_own_name(name: str) -> None:
    module_name, _, attribute = name.partition(":")
    shown = f"loss {printable(name)}"
    if module_name.endswith(".py"):
        raise UsageError(f"{shown}: write the module without .py: {module_name.removesuffix('.py')}:{attribute}")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UsageError(f"{shown}: write module:Class, such as my_losses:MyLoss for class MyLoss of my_losses.py")


def _own_loss(name: str) -> type[DistillationLoss]:
    module_name, _, attribute = name.partition(":")
    shown = f"loss {printable(name)}"
    found: Any = getattr(_import(module_name, shown), attribute, None)
    problem = f"{module_name} has no {attribute}" if found is None else _problem_with(found)
    if problem:
        raise UsageError(f"{shown}: {problem}")
    return cast(type[DistillationLoss], found)


def _import(module_name: str, shown: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # the installed command does not search the current folder
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(f"{shown}: {module_name} needs the module {error.name}, which is not installed") from error
        raise UsageError(f"{shown}: no module {module_name} here or among the installed packages") from error
    except Exception as error:  # a user's file may raise anything when it is imported
        raise UsageError(f"{shown}: importing {module_name} failed: {type(error).__name__}: {error}") from error


def _problem_with(found: Any) -> str:
    """Why an object is not a loss class; empty if it is one."""
    name, problem = getattr(found, "__name__", "it"), ""
    if not isinstance(found, type):
        kind = "a function" if inspect.isfunction(found) else f"of type {type(found).__name__}"
        problem = f"it is {kind}, not a class"
    elif not issubclass(found, DistillationLoss):
        problem = "it does not derive from bpfn_cli.losses.DistillationLoss"
    elif found.forward is DistillationLoss.forward:
        problem = "it has no forward(self, student, teacher, batch)"
    elif len(parameters := list(inspect.signature(found.forward).parameters)) != 4:
        problem = f"its forward takes ({', '.join(parameters)}), not (self, student, teacher, batch)"
    elif not isinstance(getattr(found, "card", None), Card):
        problem = "it has no card = Card(...)"
    elif found.kind not in ("output", "hint"):
        problem = f"its kind is {found.kind!r}, not 'output' or 'hint'"
    elif not hasattr(found.settings, "__pydantic_fields__"):
        problem = "its settings are not a @settings dataclass"
    return problem and f"{name} is not a valid loss: {problem}; docs/extending.md has an example"
