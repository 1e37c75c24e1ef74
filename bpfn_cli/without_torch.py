# SPDX-License-Identifier: MIT
"""Where torch is broken: a stand-in that computes nothing, for definitions such as the options of losses.

A recipe's keys are declared in the files of losses and strategies, which import torch. To show or check a recipe, the
declarations are enough.
"""

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def torch_problem() -> str | None:
    """Why torch does not work; None: it does."""
    if isinstance(sys.modules.get("torch"), _StandIn):
        return "it does not import"
    try:
        import torch

        torch.zeros(1)
    except Exception as error:  # a broken installation may raise anything
        return f"{type(error).__name__}: {error}"
    return None


def tolerate_broken_torch() -> None:
    """If torch does not work, let later imports get a stand-in that can be imported and subclassed, and no more."""
    if torch_problem() is None:
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder())


class _AnyName(type):
    """Its classes have every attribute, and each is the class itself."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Anything(metaclass=_AnyName):
    """In place of every class, function and constant of torch. An instance is also a decorator without effect."""

    def __init__(self, *arguments: Any, **named: Any):
        pass

    def __call__(self, decorated: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return decorated

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __radd__(self, other: Any) -> Any:
        return other


class _StandIn(ModuleType):
    __path__: list[str] = []  # noqa: RUF012  (a package, whose modules the finder makes)
    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torch" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
