# SPDX-License-Identifier: MIT
"""Pictures of scenes and their flows: a page for the browser, and stills."""
