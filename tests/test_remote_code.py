"""A checkpoint opens where this package is missing, by the code that it carries."""

import os
import subprocess
import sys

import torch

from rtransformer_hf import RTransformerForCausalLM

LOAD = """
import importlib.util, sys
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

assert importlib.util.find_spec("rtransformer_hf") is None, "the package must be missing here"
folder, copy = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
input_ids = torch.arange(12).view(2, 6)
torch.save(model(input_ids).logits, folder + "/logits.pt")
torch.save(model.generate(input_ids, max_new_tokens=4, do_sample=False), folder + "/generated.pt")
AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
AutoModel.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(copy)  # and it carries its code on
AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True)
"""


def test_loads_without_the_package(tiny_config, tmp_path):
    model = RTransformerForCausalLM(tiny_config()).eval()
    folder, copy = tmp_path / "checkpoint", tmp_path / "copy"
    model.save_pretrained(folder)
    # -P keeps the working folder off the path, -S and an explicit path the editable install of the package
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(libraries)}
    subprocess.run(
        [sys.executable, "-S", "-c", LOAD, str(folder), str(copy)], check=True, env=environment, cwd=tmp_path
    )
    input_ids = torch.arange(12).view(2, 6)
    torch.testing.assert_close(torch.load(folder / "logits.pt"), model(input_ids).logits)
    expected = model.generate(input_ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(torch.load(folder / "generated.pt"), expected)
    code = {"configuration_rtransformer.py", "modeling_rtransformer.py", "local_rnn.py"}
    assert code <= {file.name for file in copy.iterdir()}
