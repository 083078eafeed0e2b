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
"""The tokenizers that the training scripts train: characters, words, byte pairs."""

from collections import Counter
from collections.abc import Iterable

from script_arguments import InputError
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

# English contractions in two, as in the Penn Treebank (do n't, it 's); numbers and other words; any other character.
NATURAL_WORD = r"\w+(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|\d+(?:[.,]\d+)*|\w+|[^\w\s]"


def load_tokenizer(name: str, texts: Iterable[str], vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """A new "char", "word" or "bpe" tokenizer trained on the texts, or that of a folder or an id on the Hub."""
    if name not in NEW_TOKENIZERS:
        try:
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--tokenizer {name!r} can't be loaded; accepted: {', '.join(NEW_TOKENIZERS)}, a folder or an id on "
                f"the Hub: {error}"
            ) from error
    return NEW_TOKENIZERS[name](texts, vocab_size)


def train_char_tokenizer(texts: Iterable[str], vocab_size: int | None) -> PreTrainedTokenizerFast:
    """One token a character; decoding gives the text back. Unknown ones become U+FFFD, the replacement character."""
    if vocab_size is not None:
        raise InputError(f"--vocab_size {vocab_size} goes with --tokenizer word or bpe; char takes all characters.")
    unknown = "\N{REPLACEMENT CHARACTER}"
    alphabet = sorted(set().union(*texts) - {unknown})
    vocab = {character: index for index, character in enumerate([unknown, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[], unk_token=unknown))  # without merges, BPE splits to characters
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, clean_up_tokenization_spaces=False)


def train_word_tokenizer(texts: Iterable[str], vocab_size: int | None) -> PreTrainedTokenizerFast:
    """Words between white space, and <eos> for each line's end, as is the custom with Penn Treebank and WikiText."""
    special_tokens = ["<unk>", "<eos>"]
    counts = Counter(word for text in texts for word in text.split() if word not in special_tokens)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    if vocab_size is not None:
        words = words[: vocab_size - len(special_tokens)]
    vocab = {word: index for index, word in enumerate([*special_tokens, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace("\n", " <eos> ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )


def train_natural_word_tokenizer(texts: Iterable[str], vocab_size: int | None) -> PreTrainedTokenizerFast:
    """
    Words and punctuation marks, in lower case: "river?" and "River ?" give the same tokens. For models that read text
    but write none.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    apostrophe = normalizers.Replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), apostrophe])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(NATURAL_WORD), behavior="removed", invert=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31 if vocab_size is None else vocab_size, special_tokens=["<unk>", "<pad>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int | None) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding, as of GPT-2: no text is unknown to it, and decoding gives the text back."""
    end_of_text = "<|endoftext|>"
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + 1
    if vocab_size is not None and vocab_size < smallest:
        raise InputError(f"--vocab_size {vocab_size} must be at least {smallest} with --tokenizer bpe.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size or 8192,
        special_tokens=[end_of_text],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end_of_text, clean_up_tokenization_spaces=False
    )


NEW_TOKENIZERS = {"char": train_char_tokenizer, "word": train_word_tokenizer, "bpe": train_bpe_tokenizer}
