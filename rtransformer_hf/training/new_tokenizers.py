# SPDX-License-Identifier: Apache-2.0
"""
The tokenizers that the training scripts train: characters, words, byte pairs.

Tokenizers for language models have one token for the end and the start of a text (eos and bos) and one for padding.
The unknown token is not among Transformers' special tokens, because those are dropped from decoded text.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .errors import UsageError
from .flags import number

VOCAB_SIZE = {  # of the flag --vocab_size, in every command that trains a tokenizer
    "help": "Largest vocabulary of a new word (unset: all words) or bpe (8192) tokenizer.",
    "type": number(int, at_least=2),
}
UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"
END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"  # of characters and byte pairs
UNKNOWN_WORD, END_OF_LINE, WORD_PADDING = "<unk>", "<eos>", "<pad>"
# English contractions in two, as in the Penn Treebank (do n't, it 's); numbers and other words; any other character.
NATURAL_WORD = r"\w+(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|\d+(?:[.,]\d+)*|\w+|[^\w\s]"
CHARACTERS_AT_ONCE = 1 << 20  # bounds the memory, however long a row or the text is
NUM_CODE_POINTS = 0x110000


def load_tokenizer(name: str, texts: Iterable[str], vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """
    A new "char", "word" or "bpe" tokenizer trained on the texts, or that of a folder or an id on the Hub.

    Raises:
        UsageError: there is no such tokenizer, or it can't have `vocab_size` tokens.
    """
    if name not in NEW_TOKENIZERS:
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, StrictDataclassError) as error:  # the last: of the model's configuration
            raise UsageError(
                f"--tokenizer {name!r} can't be loaded (expected {', '.join(NEW_TOKENIZERS)}, a folder or an id on "
                f"the Hub): {error}"
            ) from error
        if vocab_size is not None:
            raise UsageError(
                f"--vocab_size {vocab_size} goes with --tokenizer word or bpe; the trained tokenizer of {name!r} "
                f"keeps its {len(tokenizer)} tokens."
            )
        return tokenizer
    return NEW_TOKENIZERS[name](texts, vocab_size)


def unknown_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of a tokenizer's unknown token, special or not; None if it has none."""
    if tokenizer.unk_token_id is not None or not tokenizer.is_fast:
        return tokenizer.unk_token_id
    token = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    return None if token is None else tokenizer.convert_tokens_to_ids(token)


def in_parts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Groups texts into lists of about `CHARACTERS_AT_ONCE` characters; a longer text is a list of its own."""
    part, size = [], 0
    for text in texts:
        if part and size + len(text) > CHARACTERS_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


def code_points(text: str) -> Iterator[np.ndarray]:
    """The characters of a text as numbers, so many at a time."""
    for start in range(0, len(text), CHARACTERS_AT_ONCE):
        yield np.frombuffer(text[start : start + CHARACTERS_AT_ONCE].encode("utf-32-le", "surrogatepass"), dtype="<u4")


def sha256_of_vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def train_char_tokenizer(texts: Iterable[str], vocab_size: int | None) -> PreTrainedTokenizerFast:
    """One token per character; decoding restores the text. Unknown characters become U+FFFD."""
    if vocab_size is not None:
        raise UsageError(f"--vocab_size {vocab_size} goes with --tokenizer word or bpe; char takes all characters.")
    occurs = np.zeros(NUM_CODE_POINTS, dtype=bool)
    for part in in_parts(texts):
        for numbers in code_points("".join(part)):
            occurs[numbers] = True
    alphabet = sorted({chr(number) for number in occurs.nonzero()[0]} - {UNKNOWN_CHARACTER})
    vocab = make_vocab([UNKNOWN_CHARACTER, END_OF_TEXT, PADDING, *alphabet])
    # Without merges, BPE splits to characters.
    tokenizer = Tokenizer(models.BPE(vocab, merges=[], unk_token=UNKNOWN_CHARACTER))
    tokenizer.decoder = decoders.Fuse()
    return for_language_models(tokenizer, END_OF_TEXT, PADDING)


def train_word_tokenizer(texts: Iterable[str], vocab_size: int | None) -> PreTrainedTokenizerFast:
    """
    Words between white space, and <eos> for each line's end, as is the custom with Penn Treebank and WikiText: a line
    is a text. Decoding puts a space before every word, the first one too, so that it continues a text.
    """
    special_tokens = [UNKNOWN_WORD, END_OF_LINE, WORD_PADDING]
    check_vocab_size("word", vocab_size, len(special_tokens))
    counts = Counter(word for text in texts for word in text.split() if word not in special_tokens)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    if vocab_size is not None:
        words = words[: vocab_size - len(special_tokens)]
    tokenizer = Tokenizer(models.WordLevel(make_vocab([*special_tokens, *words]), unk_token=UNKNOWN_WORD))
    tokenizer.normalizer = normalizers.Replace("\n", f" {END_OF_LINE} ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("^"), " "), decoders.Fuse()])
    return for_language_models(tokenizer, END_OF_LINE, WORD_PADDING)


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int | None) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding, as in GPT-2: no text is unknown, and decoding restores it."""
    special_tokens = [END_OF_TEXT, PADDING]
    check_vocab_size("bpe", vocab_size, len(pre_tokenizers.ByteLevel.alphabet()) + len(special_tokens))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size or 8192,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return for_language_models(tokenizer, END_OF_TEXT, PADDING)


def make_vocab(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def check_vocab_size(name: str, vocab_size: int | None, smallest: int):
    """
    Raises:
        UsageError: the vocabulary is too small for the tokens that it must hold.
    """
    if vocab_size is not None and vocab_size < smallest:
        raise UsageError(f"--vocab_size {vocab_size} must be at least {smallest} with --tokenizer {name}.")


def for_language_models(tokenizer: Tokenizer, end_of_text: str, padding: str) -> PreTrainedTokenizerFast:
    """Adds the special tokens that generation, batching and evaluation use. Padding is on the left."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end_of_text,
        eos_token=end_of_text,
        pad_token=padding,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def train_natural_word_tokenizer(
    texts: Iterable[str], vocab_size: int | None, lowercase: bool = True
) -> PreTrainedTokenizerFast:
    """
    Words and punctuation marks, in lower case: "river?" and "River ?" give the same tokens. For models that read text
    but write none. Without `lowercase`, names keep the capitals by which they are told from other words.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    apostrophe = normalizers.Replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    case = [normalizers.Lowercase()] if lowercase else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *case, apostrophe])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(NATURAL_WORD), behavior="removed", invert=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31 if vocab_size is None else vocab_size, special_tokens=["<unk>", "<pad>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


NEW_TOKENIZERS = {"char": train_char_tokenizer, "word": train_word_tokenizer, "bpe": train_bpe_tokenizer}
