# SPDX-License-Identifier: MIT
"""Commands about recipes and the installation."""
