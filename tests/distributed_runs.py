# SPDX-License-Identifier: Apache-2.0
"""
Runs scripts in turn, in the processes of one launch: `torchrun tests/distributed_runs.py RUNS.json`, with a list of
`[module, *flags]`. To start processes takes longer than to train tiny models in them.
"""

import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from accelerate import DistributedType, PartialState
from transformers import Trainer


def shard_on_cpu():
    """Accelerate keeps FSDP to accelerators, though PyTorch has it on a CPU as well: tell it that these are some."""
    create_accelerator = Trainer.create_accelerator_and_postprocess

    def create(self):
        if self.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        create_accelerator(self)

    Trainer.create_accelerator_and_postprocess = create


if __name__ == "__main__":
    shard_on_cpu()
    for module, *flags in json.loads(Path(sys.argv[1]).read_text()):
        importlib.import_module(module).main(flags)
