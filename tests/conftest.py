# SPDX-License-Identifier: MIT
"""Before any test imports torch: threads that wait do not spin (see bpfn_cli/__init__.py)."""

import bpfn_cli  # noqa: F401
