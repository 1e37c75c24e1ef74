# SPDX-License-Identifier: MIT
"""Facts shipped as files: read with importlib.resources."""
