# SPDX-License-Identifier: MIT
"""All losses by name, and how one of the user's own is found."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

from bpfn_cli.errors import UsageError, did_you_mean, printable
from bpfn_cli.losses.feature.aht import AhtLoss
from bpfn_cli.losses.feature.bihint import BihintLoss
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
}


def loss_named(name: str) -> type[DistillationLoss]:
    """A loss of ours by its name, or one of the user's own as `module:attribute`.

    Raises: UsageError: unknown name; no such module or attribute, or it is not a loss.
    """
    if name in LOSSES:
        return LOSSES[name]
    if ":" in name:
        return _own_loss(name)
    hint = "; repeat --loss to sum losses." if "+" in name else did_you_mean(name, LOSSES) or ":"
    known = ", ".join([NO_DISTILLATION, *LOSSES])
    raise UsageError(f"unknown loss {printable(name)!r}{hint} Known: {known}; or module:attribute")


def _own_loss(name: str) -> type[DistillationLoss]:
    module_name, _, attribute = name.partition(":")
    shown = f"loss {printable(name)}"
    if module_name.endswith(".py"):
        raise UsageError(f"{shown}: write the module without .py: {module_name.removesuffix('.py')}:{attribute}")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UsageError(f"{shown}: write module:attribute, such as my_losses:MyLoss for class MyLoss of my_losses.py")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # the installed command does not look into the folder it is called in
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(f"{shown}: {module_name} needs the module {error.name}, which is not installed") from error
        raise UsageError(f"{shown}: no module {module_name} here or among the installed packages") from error
    except Exception as error:  # whatever a user's file does when it is read
        raise UsageError(f"{shown}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise UsageError(f"{shown}: {module_name} has no {attribute}")
    problem = _why_no_loss(found)
    if problem:
        raise UsageError(f"{shown}: {attribute} is no loss: {problem}; docs/losses.md has an example")
    return found


def _why_no_loss(found: object) -> str:
    """What keeps an object from being a loss class; empty where it is one."""
    if not isinstance(found, type):
        return f"it is {'a function' if inspect.isfunction(found) else f'of type {type(found).__name__}'}, not a class"
    if not issubclass(found, DistillationLoss):
        return "it does not derive from bpfn_cli.losses.DistillationLoss"
    if found.forward is DistillationLoss.forward:
        return "it has no forward(self, student, teacher, batch)"
    parameters = list(inspect.signature(found.forward).parameters)
    if len(parameters) != 4:
        return f"its forward takes ({', '.join(parameters)}), not (self, student, teacher, batch)"
    if not isinstance(getattr(found, "card", None), Card):
        return "it has no card = Card(...)"
    if found.kind not in ("output", "hint"):
        return f"its kind is {found.kind!r}, not 'output' or 'hint'"
    if not hasattr(found.settings, "__pydantic_fields__"):
        return "its settings are no @settings dataclass"
    return ""
