# SPDX-License-Identifier: MIT
"""Which of two equal paths computes: the plain one as published, or the fast one. `BPFN_PLAIN=1` chooses plain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_forced: ContextVar[bool | None] = ContextVar("bpfn_plain", default=None)


def is_plain() -> bool:
    """True when every operation is to be done as published: plain torch, no sharing, no algebra."""
    forced = _forced.get()
    return os.environ.get("BPFN_PLAIN", "") == "1" if forced is None else forced


@contextmanager
def plain_path(plain: bool = True) -> Iterator[None]:
    """Choose the plain (or, with False, the fast) path inside a `with` block, whatever the environment says."""
    token = _forced.set(plain)
    try:
        yield
    finally:
        _forced.reset(token)
