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

import datetime
import json
import logging
import platform
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from output_folder import write_figure
from transformers import Trainer, TrainingArguments
from transformers.modelcard import extract_hyperparameters_from_trainer

logger = logging.getLogger(__name__)

CURVES_FILE = "learning_curves.png"


@dataclass
class TaskReport:
    """What a card says of a task and its data, beside what every card says."""

    pipeline_tag: str
    description: str  # "A causal language model"
    data_name: str  # a Hub id, or the name of a local file or folder
    dataset_id: str | None  # the Hub id, if it is one
    usage: str  # a few lines of Python with {checkpoint}
    metrics: tuple[str, ...]
    metrics_note: str
    limits: str
    loss_unit: str


CARD = """\
---
{metadata}
---

# {model_name}

{description}: {architecture} with {millions:.2f} million parameters, trained on {data_name}.
{architecture_note}

## Use

```python
{usage}
```

## Results

| split | metric | value |
| --- | --- | --- |
{results}

{metrics_note}

![Learning curves](learning_curves.png)

## Training

```bash
{command}
```

On {hardware}, {duration}, finished on {date}.{dropout_note}

{hyperparameters}

## Limits and biases

{limits}

## Citation

```bibtex
{citation}
```
"""

R_TRANSFORMER_NOTE = """\
An R-Transformer puts a small RNN over a sliding window ahead of causal self-attention in every block, and needs no
position embeddings."""

TRANSFORMER_NOTE = """\
It is a Transformer, to compare with: the blocks of an R-Transformer (arXiv 1907.05572) without their small RNNs."""

CITATION = """\
@article{wang2019rtransformer,
  title={R-Transformer: Recurrent Neural Network Enhanced Transformer},
  author={Wang, Zhiwei and Ma, Yao and Liu, Zitao and Tang, Jiliang},
  journal={arXiv preprint arXiv:1907.05572},
  year={2019}
}"""


def plot_learning_curves(trainer: Trainer, loss_unit: str):
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
    axes.set(xlabel="step", ylabel=f"loss ({loss_unit})")
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(Path(trainer.args.output_dir, CURVES_FILE), figure, dpi=150)


def model_card(trainer: Trainer, report: TaskReport) -> ModelCard:
    """The card of the model in the output folder, with the metrics that are there so far."""
    output_dir = Path(trainer.args.output_dir)
    results_file = output_dir / "all_results.json"
    results = json.loads(results_file.read_text(encoding="utf-8")) if results_file.exists() else {}
    metrics = [
        EvalResult(
            task_type=report.pipeline_tag,
            dataset_type=report.dataset_id or "local",
            dataset_name=report.data_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=results[f"{prefix}_{metric}"],
        )
        for prefix, split in (("eval", "validation"), ("test", "test"))
        for metric in report.metrics
        if f"{prefix}_{metric}" in results
    ]
    config = trainer.model.config
    metadata = ModelCardData(
        model_name=Path(trainer.hub_model_id or output_dir.resolve()).name,
        library_name="transformers",
        license="apache-2.0",
        pipeline_tag=report.pipeline_tag,
        tags=[config.model_type, "generated_from_trainer"],
        datasets=report.dataset_id and [report.dataset_id],
        metrics=list(report.metrics),
        eval_results=metrics,
    )
    table = [f"| {metric.dataset_split} | {metric.metric_name} | {metric.metric_value:.4f} |" for metric in metrics]
    dropout = [value for name, value in config.to_dict().items() if name.endswith("_dropout")]
    hyperparameters = extract_hyperparameters_from_trainer(trainer)
    return ModelCard(
        CARD.format(
            metadata=metadata.to_yaml(),
            model_name=metadata.model_name,
            description=report.description,
            architecture=type(trainer.model).__name__.removeprefix("FSDP"),
            millions=trainer.model.num_parameters() / 1e6,
            data_name=report.data_name,
            architecture_note=R_TRANSFORMER_NOTE if config.num_local_rnn_layers > 0 else TRANSFORMER_NOTE,
            usage=report.usage.format(checkpoint=trainer.hub_model_id or trainer.args.output_dir),
            results="\n".join(table),
            metrics_note=report.metrics_note,
            command=command_line(trainer.args),
            hardware=hardware(trainer.args),
            duration=duration(results),
            date=datetime.date.today().isoformat(),
            dropout_note=" Loss on the training set is with dropout." if any(dropout) else "",
            hyperparameters="\n".join(f"- {name}: {value}" for name, value in hyperparameters.items()),
            limits=report.limits,
            citation=CITATION,
        )
    )


def name_model(card: str, name: str) -> str:
    """
    The card of a model under another name, a folder or an id on the Hub, in the lines that load it, in its heading and
    its metadata. The first name that the card's code gives is the model's.
    """
    if usage := re.search(r'(?:from_pretrained\(|model=)("[^"]+")', card):
        card = card.replace(usage[1], f'"{name}"')
    named = ModelCard(card)
    if named.data.model_name is not None:
        short_name = Path(name).name
        named.text = named.text.replace(f"\n# {named.data.model_name}\n", f"\n# {short_name}\n", 1)
        named.data.model_name = short_name
    return str(named)


def name_dataset(card: str, name: str, dataset_id: str | None) -> str:
    """The card with the name of the data, and its id if it is on the Hub, in place of the local files' name."""
    named = ModelCard(card)
    local_name = re.search(r"parameters, trained on (.+)\.\n", named.text)
    if local_name is not None:
        named.text = named.text.replace(local_name[0], f"parameters, trained on {name}.\n", 1)
    if dataset_id is not None:
        named.data.datasets = [dataset_id]
    for result in named.data.eval_results or []:
        result.dataset_name, result.dataset_type = name, dataset_id or result.dataset_type
    return str(named)


def command_line(args: TrainingArguments) -> str:
    """The command that runs, with the names alone of files that it gives by their whole path, and no token."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    launcher = ["python"] if args.world_size == 1 else ["torchrun", "--nproc_per_node", str(args.world_size)]
    command = shlex.join([*launcher, f"scripts/{Path(sys.argv[0]).name}", *words])
    return command.replace(args.hub_token, "$HF_TOKEN") if args.hub_token else command


def duration(results: dict) -> str:
    """Of the training, or of its last part where it was resumed: nobody has timed what was lost in between."""
    if "train_runtime" not in results:
        return "unfinished"
    minutes = f"{results['train_runtime'] / 60:.0f} minutes"
    return f"{minutes} from step {results['resumed_at_step']:,} on" if results.get("resumed_at_step") else minutes


def hardware(args: TrainingArguments) -> str:
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    num_cores = args.world_size * torch.get_num_threads()
    return f"{num_cores} CPU cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
