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
"""What a training script leaves beside the model: the picture of its learning curves and its card."""

import json
import logging
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from output_folder import write_figure
from transformers import Trainer
from transformers.modelcard import extract_hyperparameters_from_trainer

logger = logging.getLogger(__name__)

CURVES_FILE = "learning_curves.png"

CARD = """\
---
{metadata}
---

# {model_name}

A causal language model, {architecture} with {millions:.1f} million parameters, trained on {text_name}.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{checkpoint}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{checkpoint}", trust_remote_code=True)
prompt = tokenizer("The ", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, do_sample=True, temperature=0.8, max_new_tokens=200)[0]))
```

It has been trained to continue text like what it was trained on, and knows nothing else.

## Results

| split | metric | value |
| --- | --- | --- |
{results}

Every token of a split but the first is predicted exactly once. Perplexity is a token's, in nats; bits are log2.

![Learning curves](learning_curves.png)

## Training

{hyperparameters}
"""


def plot_learning_curves(trainer: Trainer):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("No picture of the learning curves: matplotlib is not installed.")
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        entries = [entry for entry in trainer.state.log_history if key in entry]
        axes.plot([entry["step"] for entry in entries], [entry[key] for entry in entries], marker=".", label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(Path(trainer.args.output_dir, CURVES_FILE), figure, dpi=150)


def model_card(trainer: Trainer, text_name: str) -> ModelCard:
    """The card of the model in the output folder, with the metrics that are there so far."""
    output_dir = Path(trainer.args.output_dir)
    results_file = output_dir / "all_results.json"
    results = json.loads(results_file.read_text(encoding="utf-8")) if results_file.exists() else {}
    metrics = [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=text_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=results[f"{prefix}_{metric}"],
        )
        for prefix, split in (("eval", "validation"), ("test", "test"))
        for metric in ("perplexity", "bits_per_character")
        if f"{prefix}_{metric}" in results
    ]
    config = trainer.model.config
    metadata = ModelCardData(
        model_name=output_dir.resolve().name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[config.model_type, "generated_from_trainer"],
        eval_results=metrics,
    )
    table = [f"| {metric.dataset_split} | {metric.metric_name} | {metric.metric_value:.3f} |" for metric in metrics]
    hyperparameters = extract_hyperparameters_from_trainer(trainer)
    return ModelCard(
        CARD.format(
            metadata=metadata.to_yaml(),
            model_name=metadata.model_name,
            checkpoint=trainer.hub_model_id or trainer.args.output_dir,
            architecture=type(trainer.model).__name__,
            millions=trainer.model.num_parameters() / 1e6,
            text_name=text_name,
            results="\n".join(table),
            hyperparameters="\n".join(f"- {name}: {value}" for name, value in hyperparameters.items()),
        )
    )
