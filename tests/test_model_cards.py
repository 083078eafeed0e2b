# Copyright 2026 The rtransformer_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Every folder of model_cards is what its Hub repository would be: it opens, and its card says what it must."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from huggingface_hub import ModelCard
from training_run import EVALUATION_FILE

from rtransformer_hf.modeling_rtransformer import AUTO_CLASSES

CARDS = sorted(path.parent for path in (Path(__file__).parent.parent / "model_cards").glob("*/README.md"))
AUTO_CLASS_OF = {model_class.__name__: auto_class for auto_class, model_class in AUTO_CLASSES.items()}


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_the_checkpoint_opens(folder):
    architecture = AutoConfig.from_pretrained(folder).architectures[0]
    auto_class = getattr(transformers, AUTO_CLASS_OF[architecture])
    model, loading = auto_class.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == architecture and model.dtype == torch.float32
    assert not any(loading.values())
    assert (folder / "model.safetensors").stat().st_size <= 10e6
    assert json.loads((folder / EVALUATION_FILE).read_text())


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_the_card(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and card.data.license == "apache-2.0"
    assert "rtransformer" in card.data.tags and card.data.metrics
    assert "test" in {result.dataset_split for result in card.data.eval_results}
    for heading in ("## Use", "## Results", "## Training", "## Limits and biases", "## Citation"):
        assert heading in card.text
    assert (
        f'from_pretrained("model_cards/{folder.name}"' in card.text
        or f'model="model_cards/{folder.name}"' in card.text
    )
    assert "1907.05572" in card.text and "(learning_curves.png)" in card.text
    assert (folder / "learning_curves.png").exists()
    assert f"| {folder.name} |" in (folder.parent / "README.md").read_text()
