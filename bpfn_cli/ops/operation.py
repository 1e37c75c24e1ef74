# SPDX-License-Identifier: MIT
"""Operators of our own, which `torch.compile` and `torch.export` see as one step.

As `torch.library.custom_op`, which however imports torch's compiler at the first call: 1.5 s in every process, whether
or not anything is compiled.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

_libraries: dict[str, torch.library.Library] = {}


class Operation:
    """A function that torch knows as an operator. Its arguments are not changed, and no output is one of them."""

    def __init__(self, name: str, function: Callable[..., Any]):
        """Args: name: with its namespace, `bpfn::knn`. function: typed, for the operator's schema."""
        namespace, _, own = name.partition("::")
        if namespace not in _libraries:
            _libraries[namespace] = torch.library.Library(namespace, "FRAGMENT")
        self._name, self._library = name, _libraries[namespace]
        self._library.define(own + torch.library.infer_schema(function, mutates_args=()))
        self._library.impl(own, function, "CompositeExplicitAutograd")
        self.operator = getattr(getattr(torch.ops, namespace), own).default

    def __call__(self, *arguments: Any) -> Any:
        return self.operator(*arguments)

    def register_fake(self, function: Function) -> Function:
        """Give the shapes and types of the results."""
        torch.library.register_fake(self._name, function, lib=self._library)
        return function

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Give the backward pass, as to `torch.library.register_autograd`."""
        torch.library.register_autograd(self._name, backward, setup_context=setup_context, lib=self._library)


def operation(name: str) -> Callable[[Callable[..., Any]], Operation]:
    """Decorate a function to make it an operator."""
    return lambda function: Operation(name, function)
