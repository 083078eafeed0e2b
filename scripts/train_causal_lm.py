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
"""
Trains a causal language model on text, evaluates it, and saves it with tokenizer, metrics, card and learning curves.

    python scripts/train_causal_lm.py [RECIPE.yaml] --train_file book.txt --output_dir outputs/book

A recipe holds flags, one a line (`hidden_size: 256`); flags on the command line win over it. The same command again
goes on from the last checkpoint. Several processes: `accelerate launch scripts/train_causal_lm.py ...`.
"""

import hashlib
import json
import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from language_modeling import (
    DataArguments,
    TokenWindows,
    exact_metrics,
    lines,
    load_texts,
    load_tokenizer,
    make_windows,
    window_losses,
)
from output_folder import (
    TRAINER_STATE_FILE,
    ResumableTrainingArguments,
    check_output_dir,
    claim_output_dir,
    planned_steps,
    steps_of,
    write_whole,
)
from script_arguments import InputError, parse_arguments
from training_report import model_card, plot_learning_curves
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
    default_data_collator,
    set_seed,
)

from rtransformer_hf import RTransformerConfig, RTransformerForCausalLM


@dataclass
class ModelArguments:
    """What is unset keeps the default of RTransformerConfig, or the value that --model_name_or_path has."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model to train further: a folder or a Hub id. Unset: a new R-Transformer."},
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width of the model."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width inside the feed-forward layers."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Number of blocks."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Number of attention heads."})
    hidden_act: str | None = field(default=None, metadata={"help": "Activation of the feed-forward layers."})
    local_rnn_type: str | None = field(default=None, metadata={"help": "Cell of the LocalRNN: rnn, gru or lstm."})
    local_window_size: int | None = field(default=None, metadata={"help": "Inputs that a LocalRNN state sees."})
    num_local_rnn_layers: int | None = field(default=None, metadata={"help": "LocalRNN layers a block."})
    final_layer_norm: bool | None = field(default=None, metadata={"help": "Whether a norm follows the last block."})
    hidden_dropout: float | None = field(default=None, metadata={"help": "Dropout of the sub-layers."})
    attention_dropout: float | None = field(default=None, metadata={"help": "Dropout on the attention weights."})
    embedding_dropout: float | None = field(default=None, metadata={"help": "Dropout on the embedded inputs."})
    initializer_range: float | None = field(
        default=None, metadata={"help": "Standard deviation of new linear weights. Unset: PyTorch's initialisation."}
    )
    embedding_initializer_range: float | None = field(
        default=None, metadata={"help": "Standard deviation of new token embeddings."}
    )
    tie_word_embeddings: bool | None = field(
        default=None, metadata={"help": "Whether the output layer shares the embedding's weight."}
    )


class CausalLMTrainer(Trainer):
    """Trainer whose model card says what the model is and how to use it, in pushes to the Hub too."""

    def __init__(self, *args, text_name: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.text_name = text_name

    def create_model_card(self, **kwargs):
        if self.is_world_process_zero():
            write_whole(Path(self.args.output_dir, "README.md"), str(model_card(self, self.text_name)).encode())


def main(argv: list[str] | None = None):
    logging.basicConfig(format="%(message)s")
    logging.getLogger("output_folder").setLevel(logging.INFO)
    model_args, data_args, training_args = parse_arguments(
        (ModelArguments, DataArguments, ResumableTrainingArguments), sys.argv[1:] if argv is None else argv, __doc__
    )
    check_output_dir(training_args)
    set_seed(training_args.seed)

    with training_args.main_process_first(desc="data"):
        texts = load_texts(data_args)
        tokenizer_name = data_args.tokenizer or model_args.model_name_or_path or "char"
        tokenizer = load_tokenizer(tokenizer_name, lines(texts["train"], data_args.line_ending), data_args.vocab_size)
        model = make_model(model_args, tokenizer)
        windows = make_windows(texts, tokenizer, model.config.vocab_size, data_args)
    checkpoint = claim_output_dir(training_args, run_identity(model_args, data_args, tokenizer, windows["train"]))

    trainer = CausalLMTrainer(
        model=model,
        args=training_args,
        train_dataset=windows["train"],
        eval_dataset=windows["validation"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_metrics=exact_metrics(windows["validation"]),
        preprocess_logits_for_metrics=window_losses,
        text_name=text_name(data_args),
    )
    if steps_of(checkpoint) < planned_steps(trainer):
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    else:  # Trainer would take one step more
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_FILE)))
        best = trainer.state.best_model_checkpoint if training_args.load_best_model_at_end else None
        model.load_state_dict(type(model).from_pretrained(best or checkpoint).state_dict())
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in windows:
            trainer.compute_metrics = exact_metrics(windows[split])
            metrics = trainer.evaluate(windows[split], metric_key_prefix=prefix)
            trainer.log_metrics(prefix, metrics)
            trainer.save_metrics(prefix, metrics)
    if trainer.is_world_process_zero():
        plot_learning_curves(trainer)
    model.config.use_cache = True  # Trainer turns it off while it trains
    if training_args.push_to_hub:
        trainer.push_to_hub()  # saves the model and the card first
    else:
        trainer.save_model()
        trainer.create_model_card()


def text_name(args: DataArguments) -> str:
    """What the card calls the text: a Hub id, or the name of a local folder or file."""
    path = args.train_file[0] if args.train_file else args.dataset_name
    return Path(path).resolve().name if Path(path).exists() else path


def make_model(args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    settings = {name: value for name, value in asdict(args).items() if value is not None}
    path = settings.pop("model_name_or_path", None)
    try:
        if path is not None:
            return AutoModelForCausalLM.from_pretrained(path, **settings)
        special_tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return RTransformerForCausalLM(RTransformerConfig(vocab_size=len(tokenizer), **special_tokens, **settings))
    except (OSError, ValueError) as error:
        raise InputError(f"the model can't be made of {settings | {'model_name_or_path': path}}: {error}") from error


def run_identity(
    model_args: ModelArguments, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase, windows: TokenWindows
) -> dict:
    """
    What a run can't change on its way: the model and its training text. The rest may change, the number of epochs for
    one.
    """
    text = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    text.update(windows.tokens.numpy().tobytes())
    return {
        **asdict(model_args),
        "block_size": data_args.block_size,
        "stride": data_args.stride,
        "tokenized training text (sha256)": text.hexdigest(),
    }


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
