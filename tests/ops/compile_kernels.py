# SPDX-License-Identifier: MIT
"""Compile every Triton kernel for an H100, on a machine that need not have one, and say what each program takes.

python tests/ops/compile_kernels.py [--quick] [--json]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bpfn_cli.ops.triton import neighborhood as triton_neighborhood
from bpfn_cli.ops.triton import neighbors as triton_neighbors
from bpfn_cli.ops.triton import sampling as triton_sampling

H100 = GPUTarget("cuda", 90, 32)
INDICES = ("chosen", "query_order", "point_order", "order", "found", "neighbors")
SIZES = ("number", "count", "k", "tiles", "rows", "channels", "outputs")


def kernels(quick: bool) -> Iterator[tuple[str, Any, dict[str, Any], dict[str, Any]]]:
    """Name, kernel, constants and options: at 8192 points and the widths of the baseline; not quick: and all others."""
    exact = {"enable_fp_fusion": False}
    one_warp = exact | {"num_warps": 1}
    for block in (triton_sampling.MOST_IN_REGISTERS,) if quick else (32, 2048, triton_sampling.MOST_IN_REGISTERS):
        options = exact | {"num_warps": max(1, block // 256)}
        yield f"_sample_{block}", triton_sampling._sample_kernel, {"BLOCK": block}, options
    constants: dict[str, Any] = {"BLOCK": triton_sampling.TILE}
    yield "_sample_large", triton_sampling._sample_large_kernel, constants, exact | {"num_warps": 16}

    yield "_code", triton_neighbors._code_kernel, {"BLOCK": 512}, exact
    yield "_tile", triton_neighbors._tile_kernel, {"WIDTH": 32}, one_warp
    search = triton_neighbors._nearest_kernel
    for stages, tiles in ((5, 256),) if quick else ((5, 32), (5, 256), (5, 2048), (6, 128)):
        constants = {"ROWS": triton_neighbors.ROWS, "STAGES": stages, "TILES": tiles}
        yield f"_nearest_{2**stages}_{tiles}", search, constants, one_warp
    if not quick:  # Triton makes a constant of a size of 1
        constants = {"ROWS": triton_neighbors.ROWS, "STAGES": 5, "TILES": 32, "tiles": 1}
        yield "_nearest_one_tile", search, constants, one_warp

    slope = {"SLOPE": triton_neighborhood.LEAKY_SLOPE}
    for outputs in (32, 64) if quick else (16, 32, 64):
        sizes = {"ROWS": triton_neighborhood.BLOCK // outputs, "CHANNELS": min(32, outputs), "OUTPUTS": outputs}
        constants = slope | sizes | {"WITH_ARGMAX": True}
        forward = triton_neighborhood._propagate_max_kernel
        yield f"_propagate_max_{outputs}", forward, constants, {"enable_fp_fusion": True}
    constants = slope | {"ROWS": triton_neighborhood.BACKWARD_ROWS, "CHANNELS": 32}
    backward = triton_neighborhood._propagate_max_backward_kernel
    yield "_propagate_max_backward", backward, constants, {"enable_fp_fusion": True, "num_warps": 1}


def compile_kernel(kernel: Any, constants: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Compile for sizes that 16 divides, as those of the network do."""
    names = kernel.arg_names
    signature, attributes = {}, {}
    for place, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in SIZES:
            signature[name] = "i32"
        else:
            signature[name] = "*i64" if name in INDICES else {"argmax": "*u8", "codes": "*i32"}.get(name, "*fp32")
        if name not in SIZES or not kernel.params[place].do_not_specialize:
            attributes[(place,)] = [["tt.divisibility", 16]]
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    compiled = triton.compile(source, target=H100, options=options)
    ptx, used = compiled.asm["ptx"], resources(compiled.asm["cubin"])
    return {
        "threads": 32 * options.get("num_warps", 4),
        "registers": used["REG"],
        "shared_bytes": compiled.metadata.shared,
        "stack_bytes": used["STACK"],  # a kernel has a stack when its registers spill
        "fuses_or_flushes": bool(re.search(r"\bfma\.|\.ftz", ptx)),
        "tensor_cores": bool(re.search(r"\b(wg)?mma\b", ptx)),
    }


def resources(cubin: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", said)}


def main() -> None:
    try:
        triton.knobs.nvidia.ptxas.path, triton.knobs.nvidia.cuobjdump.path  # noqa: B018
    except RuntimeError:
        table = {}
    else:
        table = {name: compile_kernel(*rest) for name, *rest in kernels("--quick" in sys.argv)}
    if "--json" in sys.argv:
        print(json.dumps(table))
        return
    for name, row in table.items():
        print(f"{name:26}", "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
