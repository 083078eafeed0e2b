# SPDX-License-Identifier: Apache-2.0
"""
Renders a model card, `README.md`, from the facts in `model_card.json` beside it. If name, licence or data set change,
the card is rendered again; sections edited by hand are kept.
"""

import difflib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .card_tasks import TASKS
from .errors import UsageError
from .files import atomic_write

FACTS_FILE = "model_card.json"
CURVES_FILE = "learning_curves.png"
CURVE_POINTS_FILE = "learning_curves.json"
FORECASTS_FILE = "forecasts.png"
CONFUSION_FILE = "confusion_matrix.png"

# https://huggingface.co/docs/hub/repositories-licenses; no library carries the list.
HUB_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
""".split()  # noqa: SIM905  (a line for each would be a page)

LICENSE_HELP = {
    "license": "Licence of the weights that the card states, by the Hub's identifier: mit, cc-by-4.0, other, ...",
    "license_name": "Name of the licence, with --license other.",
    "license_link": "Address of its text, or a file in the repository, with --license other.",
}


@dataclass
class CardArguments:
    """What only a model's owner can state in its card."""

    license: str | None = field(default=None, metadata={"help": f"{LICENSE_HELP['license']} Unset: none is stated."})
    license_name: str | None = field(default=None, metadata={"help": LICENSE_HELP["license_name"]})
    license_link: str | None = field(default=None, metadata={"help": LICENSE_HELP["license_link"]})

    def __post_init__(self):
        check_license(self.license, self.license_name, self.license_link)


def check_license(license: str | None, license_name: str | None, license_link: str | None):
    """
    Raises:
        UsageError: the Hub does not know the licence, or its name is missing or superfluous.
    """
    if license is not None and license not in HUB_LICENSES:
        nearest = difflib.get_close_matches(license.lower(), HUB_LICENSES, n=1)
        hint = f"did you mean {nearest[0]!r}? Else expected" if nearest else "expected"
        raise UsageError(
            f"--license: unknown to the Hub: {license!r} ({hint} an identifier of "
            "https://huggingface.co/docs/hub/repositories-licenses, or other with --license_name)"
        )
    if license == "other" and not license_name:
        raise UsageError("--license_name: missing (expected the licence's name, with --license other)")
    for name, value in (("license_name", license_name), ("license_link", license_link)):
        if value is not None and license != "other":
            raise UsageError(f"--{name}: {value!r} goes with --license other alone, got --license {license}")


@dataclass
class TrainingFacts:
    """
    Args:
        command: the command line, without private paths and tokens.
        hardware: what it ran on; None if unknown.
        seconds: duration from `resumed_at_step` on; None during training.
        positions_per_second: tokens, pixels or frames, without the time of evaluations; None where nobody measured.
        peak_memory_bytes: the most that a process had at a time, as of `cost.peak_memory`.
        finished: the day of its end, in ISO format.
        best: what chose the weights, where they are not the last ones: "step 40, by accuracy on validation".
        hyperparameters: their values in words, by name.
    """

    command: str
    hardware: str | None = None
    seconds: float | None = None
    resumed_at_step: int = 0
    finished: str | None = None
    best: str | None = None
    positions_per_second: float | None = None
    peak_memory_bytes: int | None = None
    hyperparameters: dict[str, str] = field(default_factory=dict)


@dataclass
class CardFacts:
    """
    Args:
        task: a key of `card_tasks.TASKS`.
        checkpoint: where the card's code finds the model: a folder or an id on the Hub.
        has_code: whether the model's code lies beside the weights, for `trust_remote_code`.
        revision: branch of the Hub's repository, where it is not the main one.
        architecture: name of the model class.
        model_type: Transformers' name for the architecture.
        num_parameters: of the whole model.
        sizes: fields of the configuration that the description names.
        data_name: what the card calls the data.
        dataset_id: its id on the Hub.
        base_model: name of the model that was trained further.
        base_model_id: its id on the Hub.
        example: input of the card's code: a text; mode, width and height of an image; or of time series the number of
            channels and, to forecast, of covariates, of steps that are read and of steps ahead.
        results: split, metric and value of each figure.
        baselines: split, name, metric and value of figures of simple answers, to compare with.
        baseline_rows: digest of a split's rows, where its baselines can't be computed from them alone.
        training_loss_has_dropout: whether dropout was on for the training curve.
        has_curves: whether there is a picture of the learning curves.
        has_forecasts: whether there is a picture of forecasts.
        sample_outputs: those of the model for a fixed input, as of `report.sample_outputs`; None where it is not
            finished, or was before they were kept.
        has_confusion_matrix: whether there is a picture of which labels are taken for which.
        permutation_seed: that of the random order in which pixels are read, where they are not read row by row.
    """

    task: str
    checkpoint: str
    has_code: bool
    architecture: str
    num_parameters: int
    sizes: dict[str, int | str]
    data_name: str
    training: TrainingFacts
    model_type: str = "rtransformer"
    revision: str | None = None
    dataset_id: str | None = None
    base_model: str | None = None
    base_model_id: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    example: str | list[str | int] | None = None
    results: list[tuple[str, str, float]] = field(default_factory=list)
    training_loss_has_dropout: bool = False
    has_curves: bool = False
    has_forecasts: bool = False
    has_confusion_matrix: bool = False
    baselines: list[tuple[str, str, str, float]] = field(default_factory=list)
    baseline_rows: dict[str, str] = field(default_factory=dict)
    sample_outputs: list[float] | None = None
    permutation_seed: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def read_facts(folder: str | Path) -> CardFacts | None:
    """
    The facts beside a card; None if there are none.

    Raises:
        UsageError: the file holds something else.
    """
    path = Path(folder, FACTS_FILE)
    if not path.exists():
        return None
    try:
        facts = CardFacts(**json.loads(path.read_text(encoding="utf-8")))
        facts.training = TrainingFacts(**facts.training)
        TASKS[facts.task]
    except (KeyError, TypeError, ValueError) as error:
        expected = ", ".join(fact.name for fact in fields(CardFacts))
        raise UsageError(f"{path}: no facts of a card (expected JSON with {expected}): {error}") from error
    return facts


# From facts to a card


def render_card(facts: CardFacts) -> str:
    return f"---\n{metadata(facts).to_yaml()}\n---\n\n" + "\n".join(sections(facts).values())


def metadata(facts: CardFacts) -> ModelCardData:
    task = TASKS[facts.task]
    results = [
        EvalResult(
            task_type=task.pipeline_tag,
            dataset_type=facts.dataset_id or "local",
            dataset_name=facts.data_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=value,
        )
        for split, metric, value in facts.results
    ]
    found = {metric for _, metric, _ in facts.results}
    return ModelCardData(
        model_name=model_name(facts),
        base_model=facts.base_model_id,
        library_name="transformers",
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        pipeline_tag=task.pipeline_tag,
        tags=[facts.model_type, "generated_from_trainer"],
        datasets=facts.dataset_id and [facts.dataset_id],
        metrics=[metric for metric in task.metrics if metric in found] or list(task.metrics),
        eval_results=results or None,
    )


def model_name(facts: CardFacts) -> str:
    return Path(facts.checkpoint).name or Path(facts.checkpoint).resolve().name


def sections(facts: CardFacts) -> dict[str, str]:
    """The parts of a card below its metadata, by name, in their order."""
    task = TASKS[facts.task]
    how = training(facts.training, task.unit)
    citation = {"Citation": f"## Citation\n\n```bibtex\n{CITATION}\n```\n"}
    notes = [note for name, note in task.more_notes.items() if name in {metric for _, metric, _ in facts.results}]
    notes = [in_context(task.metrics_note, facts), *notes]
    table = [f"| {split} | {metric.replace('_', ' ')} | {value:.4f} |" for split, metric, value in facts.results]
    results = ["| split | metric | value |", "| --- | --- | --- |", *table, "", " ".join(notes)]
    if facts.baselines:
        results += ["", *baseline_table(facts)]
    if not table:
        results = ["None so far."]
    if facts.has_curves:
        results += ["", f"![Learning curves]({CURVES_FILE})"]
        results += ["", "The training loss is taken with dropout."] if facts.training_loss_has_dropout else []
    if facts.has_confusion_matrix:
        results += ["", f"![Confusion matrix]({CONFUSION_FILE})"]
    if facts.has_forecasts:
        results += ["", f"![Forecasts with their bands]({FORECASTS_FILE})"]
    return {
        "title": f"# {model_name(facts)}\n",
        "description": f"{description(facts)}\n",
        "Use": f"## Use\n\n{needs(facts)}\n\n```python\n{usage(facts)}\n```\n",
        "Results": "\n".join(["## Results", "", *results, ""]),
        "Training": f"## Training\n\n```bash\n{facts.training.command}\n```\n\n{how}\n",
        "Limits and biases": f"## Limits and biases\n\n{in_context(task.limits, facts)}\n",
        **(citation if facts.model_type == "rtransformer" else {}),
    }


def is_causal(facts: CardFacts) -> bool:
    return facts.sizes.get("is_causal", True)  # cards of before the choice have none


def in_context(text: str, facts: CardFacts) -> str:
    """A note or limits of a task, with what a position of this model sees. Of other architectures nobody knows."""
    causal, both = TASKS[facts.task].contexts
    context = "" if facts.model_type != "rtransformer" else causal if is_causal(facts) else both
    return text.replace("{context}", context)


def baseline_table(facts: CardFacts) -> list[str]:
    """A table of simple baselines beside the model, by the same metrics on the same rows."""
    metrics = list(dict.fromkeys(metric for _, _, metric, _ in facts.baselines))
    figures = {(split, name, metric): value for split, name, metric, value in facts.baselines}
    splits = {split for split, *_ in facts.baselines}
    figures |= {(split, "this model", metric): value for split, metric, value in facts.results if split in splits}
    rows = dict.fromkeys((split, name) for split, name, _ in figures)
    lines = [f"| split | answer | {' | '.join(metric.replace('_', ' ') for metric in metrics)} |"]
    lines += [f"| --- | --- |{' --- |' * len(metrics)}"]
    for split, name in sorted(rows, key=lambda row: (row[0] != "validation", row[1] != "this model")):
        values = (figures.get((split, name, metric)) for metric in metrics)
        cells = ("" if value is None else f"{value:.4f}" for value in values)
        lines.append(f"| {split} | {name} | {' | '.join(cells)} |")
    return lines


CITATION = """\
@article{wang2019rtransformer,
  title={R-Transformer: Recurrent Neural Network Enhanced Transformer},
  author={Wang, Zhiwei and Ma, Yao and Liu, Zitao and Tang, Jiliang},
  journal={arXiv preprint arXiv:1907.05572},
  year={2019}
}"""


def description(facts: CardFacts) -> str:
    sizes, task = facts.sizes, TASKS[facts.task]
    count = facts.num_parameters
    count = f"{count / 1e6:.2f} million" if count >= 1e5 else f"{count:,}"
    base = ""
    if facts.base_model_id:
        base = f", starting from the weights of [{facts.base_model}](https://huggingface.co/{facts.base_model_id})"
    elif facts.base_model:
        base = f", starting from the weights of an earlier training, `{facts.base_model}`"
    model = f"{task.description}: {facts.architecture} with {count} parameters, trained on {facts.data_name}{base}.\n"
    if facts.model_type != "rtransformer":
        return model + other_architecture(facts)
    blocks = blocks_of(sizes)
    positions = sizes["position_embedding_type"]
    positions = f"{'no' if positions == 'none' else positions} position embeddings"
    both = "" if is_causal(facts) else ", and reads in both directions"
    if sizes["num_local_rnn_layers"] == 0:
        kind = (
            "It is a Transformer, to compare with: the blocks of an R-Transformer (arXiv 1907.05572) without their "
            f"small RNNs. It has {blocks} and {positions}{both}."
        )
    else:
        rnns = counted(sizes["num_local_rnn_layers"], f"{sizes['local_rnn_type'].upper()} layer")
        kind = (
            "An R-Transformer puts a small RNN over a sliding window ahead of "
            f"{'causal self-attention' if is_causal(facts) else 'self-attention'} in every block. "
            f"This one has {blocks}, each with {rnns} over windows of {sizes['local_window_size']} {task.unit}, and "
            f"{positions}{both}."
        )
    return model + kind + structure_of(sizes) + pixel_order(facts)


def structure_of(sizes: dict[str, int | str]) -> str:
    """Sentences on weights that are not dense; cards of before the choice have none."""
    gates = sizes.get("local_rnn_projection_type", "dense") if sizes["num_local_rnn_layers"] else "dense"
    layers = {"attention and feed-forward layers": sizes.get("projection_type", "dense"), "the LocalRNN": gates}
    sentences = ""
    for structure, name in (("butterfly", "butterfly"), ("monarch", "Monarch")):
        if names := [layer for layer, its_structure in layers.items() if its_structure == structure]:
            sentences += f" The weights of {' and of '.join(names)} are {name} matrices."
    if sizes["num_local_rnn_layers"] and (num_heads := sizes.get("local_rnn_num_heads", 1)) > 1:
        sentences += f" The LocalRNN's recurrent weights are block-diagonal, in {num_heads} heads."
    return sentences


def pixel_order(facts: CardFacts) -> str:
    if facts.permutation_seed is None:
        return ""
    return f" It reads the pixels of every image in the same random order (seed {facts.permutation_seed})."


def other_architecture(facts: CardFacts) -> str:
    has = f" It has {blocks_of(facts.sizes)}." if {"num_hidden_layers", "hidden_size"} <= facts.sizes.keys() else ""
    return f"It is a model of Transformers' architecture `{facts.model_type}`, to compare with R-Transformer.{has}"


def blocks_of(sizes: dict[str, int | str]) -> str:
    return f"{counted(sizes['num_hidden_layers'], 'block')} of width {sizes['hidden_size']}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def needs(facts: CardFacts) -> str:
    if facts.model_type != "rtransformer":
        return "With PyTorch and Transformers:"
    if facts.has_code:
        return "With PyTorch and Transformers 5.16 or newer; `trust_remote_code` runs the code beside the weights:"
    return "With the package `rtransformer_hf`, which has the model's code:"


def usage(facts: CardFacts) -> str:
    """Example code that prints an output of the model, wherever the model's code comes from."""
    sizes = {}
    if facts.task.startswith("time-series"):
        sizes = dict(zip(("channels", "covariates", "context_length", "horizon"), facts.example, strict=False))
        sizes["model_kind"] = facts.architecture.removeprefix("RTransformer")
        example = None
    elif isinstance(facts.example, list):
        mode, width, height = facts.example
        example = f"{quoted(mode)}, ({width}, {height})"
    else:
        example = quoted(facts.example)
    options = f", revision={quoted(facts.revision)}" if facts.revision else ""
    options += ", trust_remote_code=True" if facts.has_code else ""
    is_known = facts.has_code or facts.model_type != "rtransformer"
    return TASKS[facts.task].usage.format(
        import_code="" if is_known else "import rtransformer_hf  # makes the model known to Transformers\n",
        options=options,
        checkpoint=quoted(facts.checkpoint),
        example=example,
        **sizes,
    )


def quoted(text: str | None) -> str:
    """A literal of Python."""
    return json.dumps(text, ensure_ascii=False)


def training(facts: TrainingFacts, unit: str) -> str:
    lines = []
    if facts.hardware is not None:
        time = "not finished yet" if facts.seconds is None else duration(facts.seconds)
        start = f" from step {facts.resumed_at_step:,} on" if facts.resumed_at_step else ""
        end = f", finished on {facts.finished}" if facts.finished else ""
        lines += [f"On {facts.hardware}, {time}{start}{end}."]
    if facts.best is not None:
        lines += [f"The weights are those of {facts.best}."]
    lines += [""] if lines else []
    items = dict(facts.hyperparameters)
    if facts.positions_per_second is not None:
        items["speed"] = f"{facts.positions_per_second:,.0f} {unit} a second in training"
    if facts.peak_memory_bytes is not None:
        items["memory"] = f"{facts.peak_memory_bytes / 1e9:.2f} GB at the peak of a process"
    return "\n".join([*lines, *(f"- {name}: {value}" for name, value in items.items())])


def duration(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    if seconds < 120:
        return counted(round(seconds), "second")
    if seconds < 3 * 3600:
        return counted(round(seconds / 60), "minute")
    return f"{seconds / 3600:.1f} hours"


# From one card to another


def update_card(card: str, old: CardFacts, new: CardFacts) -> tuple[str, list[str]]:
    """
    The card with new facts in place of old ones, and the names of the sections that would change but have been edited
    since they were rendered: these stay as they are, but for the checkpoint's name in their code.

    Raises:
        ValueError: the metadata of the card can't be read.
    """
    if card == render_card(old):
        return render_card(new), []
    found = ModelCard(card)
    text, edited = found.text, []
    new_sections = sections(new)
    for name, before in sections(old).items():
        if f"\n{before}" in f"\n{text}":
            text = f"\n{text}".replace(f"\n{before}", f"\n{new_sections[name]}", 1)[1:]
        elif before != new_sections[name]:
            edited.append(name)
    found.text = text.replace(quoted(old.checkpoint), quoted(new.checkpoint))
    update_metadata(found, metadata(old).to_dict(), metadata(new).to_dict())
    return str(found), edited


def update_metadata(card: ModelCard, old: dict, new: dict):
    data = card.data.to_dict()
    for key in old.keys() | new.keys():
        if old.get(key) == new.get(key):
            continue
        if key == "model-index" and data.get(key) != old.get(key):  # it has figures that someone has added
            for model in data.get(key) or []:
                model["name"] = new[key][0]["name"]
        elif new.get(key) is None:
            data.pop(key, None)
        else:
            data[key] = new[key]
    card.data = ModelCardData(**data)


def update_card_without_facts(card: str, old_checkpoint: str, facts: dict) -> str:
    """
    A card that was written by hand, or before facts were kept, with another `checkpoint` in its code, title and
    metadata, and with the `license`, `data_name` and `dataset_id` among the facts in its metadata.
    """
    found = ModelCard(card)
    data = found.data
    checkpoint = facts["checkpoint"]
    found.text = found.text.replace(quoted(old_checkpoint), quoted(checkpoint))
    if data.model_name is not None:
        name = Path(checkpoint).name
        found.text = f"\n{found.text}".replace(f"\n# {data.model_name}\n", f"\n# {name}\n", 1)[1:]
        data.model_name = name
    for key in ("license", "license_name", "license_link"):
        if facts.get("license") is not None:
            setattr(data, key, facts.get(key))
    for result in data.eval_results or []:
        if facts.get("data_name") is not None:
            before, after = (f"trained on {name}.\n" for name in (result.dataset_name, facts["data_name"]))
            found.text = found.text.replace(before, after)
            result.dataset_name = facts["data_name"]
        result.dataset_type = facts.get("dataset_id") or result.dataset_type
    if facts.get("dataset_id") is not None:
        data.datasets = [facts["dataset_id"]]
    return str(found)


def rewrite_card(folder: Path, old_checkpoint: str, **facts) -> list[str]:
    """
    Puts other facts, as fields of `CardFacts`, into the card of a folder and what is kept beside it. Returns what the
    owner should know of, in sentences.

    Args:
        folder: with the files of the model, its card among them.
        old_checkpoint: what the card's code may call the model, where nothing is kept beside the card.

    Raises:
        ValueError: the metadata of the card, or what is kept beside it, can't be read.
        UsageError: the model reads no text, and `example` is one.
    """
    readme = folder / "README.md"
    card = readme.read_text(encoding="utf-8")
    old = read_facts(folder)
    if old is None:
        card = update_card_without_facts(card, old_checkpoint, facts)
        notes = [
            f"README.md was not rendered again, as there is no {FACTS_FILE} beside it: names and metadata alone were "
            "changed. Check that its code runs."
        ]
    else:
        if facts.get("example") is not None and not isinstance(old.example, str):
            raise UsageError(f"--example: {facts['example']!r} is no input of this model (task {old.task})")
        new = CardFacts(**{**vars(old), **facts})
        card, edited = update_card(card, old, new)
        atomic_write(folder / FACTS_FILE, new.to_json().encode())
        notes = [f"README.md: {name} was edited by hand and stays as it is; check that it holds." for name in edited]
    atomic_write(readme, card.encode())
    if ModelCard(card).data.license is None:
        notes.append("The card states no licence; --license states one.")
    return notes


def add_card_arguments(parser):
    """The flags of `CardArguments` for a parser of argparse."""
    for name, text in LICENSE_HELP.items():
        parser.add_argument(f"--{name}", help=f"{text} (default: as the card has it)")
