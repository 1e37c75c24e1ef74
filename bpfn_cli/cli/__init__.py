# SPDX-License-Identifier: MIT
"""The command line: one file a subcommand, which parses, calls and prints. Imports of weight stay inside functions."""
