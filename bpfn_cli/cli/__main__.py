# SPDX-License-Identifier: MIT
"""`python -m bpfn_cli.cli`, the same as `bpfn`."""

from bpfn_cli.cli.main import main

main()
