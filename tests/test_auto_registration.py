# SPDX-License-Identifier: Apache-2.0
"""Importing the package is quick, and enough for the Auto classes to know the model, whatever is imported first."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

# Each runs in a fresh process, with every Auto class at its end.
STARTS = {
    "the package": "import rtransformer_hf; assert 'torch' not in sys.modules and 'transformers' not in sys.modules",
    "an Auto class": "from transformers import AutoModelForCausalLM; import rtransformer_hf",
    "the config": "from rtransformer_hf.configuration_rtransformer import RTransformerConfig",
    # This module imports an Auto class on its way, and our modeling file imports it.
    "half a module": "import rtransformer_hf; from transformers.modeling_layers import GradientCheckpointingLayer",
    "a model": "from rtransformer_hf import RTransformerForCausalLM",
    "the image processor": "import rtransformer_hf.image_processing_rtransformer",
}
USE = """
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, IMAGE_PROCESSOR_MAPPING
import rtransformer_hf
config = AutoConfig.for_model("rtransformer", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
assert type(config) is rtransformer_hf.RTransformerConfig
assert type(AutoModelForCausalLM.from_config(config)) is rtransformer_hf.RTransformerForCausalLM
assert IMAGE_PROCESSOR_MAPPING[type(config)] == {"pil": rtransformer_hf.RTransformerImageProcessor}
"""


def test_whatever_is_imported_first():
    def run(start: str) -> str:
        return subprocess.run([sys.executable, "-c", f"import sys\n{start}\n{USE}"], capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(STARTS, pool.map(run, STARTS.values()), strict=True))
    assert {name: result.stderr for name, result in results.items() if result.returncode != 0} == {}


def test_public_names():
    import rtransformer_hf

    assert all(getattr(rtransformer_hf, name).__name__ == name for name in rtransformer_hf.__all__)
    assert set(rtransformer_hf.__all__) <= set(dir(rtransformer_hf))
    assert not hasattr(rtransformer_hf, "RTransformerForEverything")
