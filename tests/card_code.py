# SPDX-License-Identifier: Apache-2.0
"""Runs the code of model cards as printed, in a process that has imported nothing of the package."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard

# Libraries take seconds to import, so one process imports them and forks one for each card.
RUNNER = """
import contextlib, io, json, os, sys, tempfile, traceback

import torch  # and what the code of cards takes from libraries
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers import AutoModelForAudioFrameClassification, AutoTokenizer, Trainer, pipeline

assert "rtransformer_hf" not in sys.modules
results = {}
for name, (code, folder) in json.load(sys.stdin).items():
    with tempfile.TemporaryFile("w+") as result:
        pid = os.fork()
        if pid == 0:
            printed, error = io.StringIO(), None
            try:
                os.chdir(folder)
                with contextlib.redirect_stdout(printed):
                    exec(compile(code, name, "exec"), {"__name__": "__main__"})
            except BaseException:
                error = traceback.format_exc()
            json.dump([printed.getvalue(), error], result)
            result.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        result.seek(0)
        results[name] = json.load(result)
print(json.dumps(results))
"""


def code_of(card: str) -> str:
    """The Python code of a card."""
    [code] = [block.partition("\n```")[0] for block in ModelCard(card).text.split("```python\n")[1:]]
    return code


def run_code(code: dict[str, tuple[str, Path]], environment: dict[str, str], python: Sequence[str] = ()) -> dict:
    """
    What each piece of code prints.

    Args:
        code: by any names, each with the folder to run in.
        environment: variables of the process.
        python: its options.
    """
    process = subprocess.run(
        [sys.executable, *python, "-c", RUNNER],
        input=json.dumps({name: (lines, str(folder)) for name, (lines, folder) in code.items()}),
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout.splitlines()[-1])
    failed = {name: error for name, (_, error) in results.items() if error is not None}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
    return {name: printed for name, (printed, _) in results.items()}
