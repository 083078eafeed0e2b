# SPDX-License-Identifier: Apache-2.0
"""
Compiles the kernels of the LocalRNN for a GPU that need not be there, and prints what they take of it, as JSON:
`python tests/compiled_kernels.py CELL`. Triton's interpreter, in which the other tests run them, accepts much that its
compiler does not, and has memory without end.
"""

import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from rtransformer_hf.local_rnn import num_gates
from rtransformer_hf.local_rnn_triton import triton_local_rnn

HOPPER = GPUTarget("cuda", 90, 32)  # H100 and H200
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_in_place_of_launches() -> list[dict]:
    """From now on, a launch compiles its kernel. Returns a list to which every kernel adds its needs."""
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: HOPPER, get_current_device=lambda: 0, get_current_stream=lambda device: 0
        )
    )
    kernels = []

    def compile_kernel(self, *args, grid, **kwargs):
        kernel = self.warmup(*args, grid=grid, **kwargs)
        kernels.append({"name": self.__name__, "shared": kernel.metadata.shared, **resources(kernel.asm["cubin"])})

    JITFunction.__getitem__ = lambda self, grid: partial(compile_kernel, self, grid=grid)
    return kernels


def resources(binary: bytes) -> dict:
    """Registers of a thread, and bytes of memory for what did not fit into them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.check_output([CUOBJDUMP, "--dump-resource-usage", file.name], text=True)
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups()
    return {"registers": int(registers), "spilled": int(stack) + int(local)}


def run_step(cell_type: str, hidden_size: int, dtype: torch.dtype, is_packed: bool, window_size: int = 3):
    """
    Forward and backward of 1,000 positions, as evaluation and as training launch their kernels. On a CPU they get the
    largest blocks that there are, which need most.
    """
    make = partial(torch.ones, dtype=dtype, requires_grad=True)
    gates = num_gates(cell_type) * hidden_size
    operands = (make(1, 1000 + window_size - 1, gates), make(gates, hidden_size), make(gates), make(gates))
    positions = torch.arange(1000)[None] if is_packed else None
    run = partial(
        triton_local_rnn, *operands, cell_type=cell_type, window_size=window_size, sequence_positions=positions
    )
    with torch.no_grad():
        run()
    run().sum().backward()


if __name__ == "__main__":
    kernels = compile_in_place_of_launches()
    for hidden_size in (64, 128):  # the widest that compute the gates again, and that run on chip at all
        run_step(sys.argv[1], hidden_size, torch.bfloat16, is_packed=hidden_size == 64)
    run_step(sys.argv[1], 160, torch.bfloat16, is_packed=False)
    run_step(sys.argv[1], 160, torch.float32, is_packed=True)
    print(json.dumps(kernels))
