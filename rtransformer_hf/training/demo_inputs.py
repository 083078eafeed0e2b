# SPDX-License-Identifier: Apache-2.0
"""
What the demo's models read: a visitor's text, tune, drawing or table; and what they say of it. Nothing here knows of a
page.
"""

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pretty_midi
import torch
from PIL import Image, ImageDraw
from seqeval.metrics.sequence_labeling import get_entities
from transformers import BaseImageProcessor, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from .errors import UsageError, listed
from .forecasting import known_parts
from .new_tokenizers import unknown_token_id
from .piano_rolls import LOWEST_PITCH, NUM_KEYS, read_midi_and_rest
from .span_tags import are_spans, in_iobes
from .time_series import Series, TimeSeriesArguments, load_series, match_channels

MAX_PROMPT = 2000  # characters, as of every text
MAX_TOKENS = 1 << 20  # more than MAX_PROMPT characters have: tokenizers without a limit state a larger one
MAX_SERIES = 8
FRAMES_PER_BEAT = 2  # of the example tune
IMAGE_SIZE = 28  # of MNIST; a digit fills 20 x 20 of it
CANVAS, PEN = 280, 22  # side of the drawing area and width of the pen, in its own units
EXAMPLE_DRAWING = ["80,95 95,65 140,50 185,68 192,105 165,145 85,225 200,225"]  # a two

# A jig, made up for this demo: a frame is half a beat, a chord lasts six.
EXAMPLE_MELODY = (
    "E5 G5 E5 C5 E5 G5 A5 F5 A5 C6 A5 F5 G5 D5 G5 B5 G5 F5 E5 G5 E5 C5 C5 C5 "
    "E5 G5 E5 C5 E5 G5 A5 F5 A5 C6 A5 F5 G5 F5 E5 D5 C5 B4 C5 E5 D5 C5 C5 C5"
)
EXAMPLE_CHORDS = "C F G C C F G C"
CHORDS = {"C": "C3 E3 G3", "F": "F3 A3 C4", "G": "G3 B3 D4"}


def read_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[torch.Tensor, list[str]]:
    """
    The (1, tokens) ids of a prompt, and notes for the visitor on how it was read.

    Raises:
        UsageError: the model knows no character of it.
    """
    notes = []
    if len(prompt) > MAX_PROMPT:
        prompt = prompt[-MAX_PROMPT:]
        notes.append(f"The beginning was cut to its last {MAX_PROMPT:,} characters.")
    encoding = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    unknown_id, ids, unknown = unknown_token_id(tokenizer), [], []
    for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        if token != unknown_id:
            ids.append(token)
            continue
        unknown.append(prompt[start:end])
        lower = tokenizer(prompt[start:end].lower(), add_special_tokens=False)["input_ids"]
        ids += [token for token in lower if token != unknown_id]
    if unknown:
        named = list(dict.fromkeys(unknown))
        more = f" and {len(named) - 10} more" if len(named) > 10 else ""
        notes.append(f"The model does not know {' '.join(named[:10])}{more}: read in lower case, or left out.")
    if not ids:
        raise UsageError(f"Write a beginning, in characters that the model knows. {' '.join(notes)}")
    return torch.tensor([ids]), notes


def read_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[BatchEncoding, list[str]]:
    """
    What a model reads of a text, or of a pair, with the tokens' `offset_mapping`, (1, tokens, 2); and notes for the
    visitor on how it was read.

    Raises:
        UsageError: a text is empty, or the tokenizer makes no token of it.
    """
    if not all(map(str.strip, texts)):
        raise UsageError("Write a text." if len(texts) == 1 else "Write both texts.")
    notes = []
    if max(map(len, texts)) > MAX_PROMPT:
        texts = [text[:MAX_PROMPT] for text in texts]
        notes.append(f"The text was cut to its first {MAX_PROMPT:,} characters.")
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS)
    options = {"return_offsets_mapping": True, "return_tensors": "pt", "verbose": False}
    encoded = tokenizer(*texts, **options)
    if (num_tokens := encoded["input_ids"].shape[1]) > limit:
        encoded = tokenizer(*texts, truncation=True, max_length=limit, **options)
        notes.append(f"The model reads {limit:,} of the {num_tokens:,} tokens; the rest was cut off.")
    if num_tokens == 0:
        raise UsageError("The model makes no token of this text. Write another one.")
    unknown_id, unknown = unknown_token_id(tokenizer), []
    for token, (start, end) in enumerate(encoded["offset_mapping"][0].tolist()):
        if encoded["input_ids"][0, token] == unknown_id:
            unknown.append(texts[encoded.token_to_sequence(token)][start:end])
    if unknown:
        notes.append(f"The model does not know {listed(dict.fromkeys(unknown))}.")
    return encoded, notes


@dataclass
class Span:
    """Characters of a text from `start` to `end`, with a tag and its probability, a mean over words."""

    start: int
    end: int
    tag: str
    probability: float


@torch.no_grad()
def tag_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, word_separator: str = " "
) -> tuple[str, list[Span], list[str]]:
    """
    The text as far as it was read, its spans, as the metrics have them, or of tags that mark none its words; and notes
    for the visitor. The first token of a word says its tag, as in training.

    Args:
        word_separator: what stood between the training sentences' words. Without one, each token is a word.

    Raises:
        UsageError: as of [`read_text`].
    """
    encoded, notes = read_text(model, tokenizer, [text])
    text = text[:MAX_PROMPT]
    offsets = encoded.pop("offset_mapping")[0].tolist()
    probabilities = model(**encoded.to(model.device)).logits[0].float().softmax(dim=-1).cpu()
    words = []
    for (start, end), (probability, index) in zip(offsets, zip(*probabilities.max(dim=-1), strict=True), strict=True):
        start += len(text[start:end]) - len(text[start:end].lstrip())
        if start == end:  # white space, or a special token
            continue
        if words and (start < words[-1].end or (word_separator and not starts_word(text, start))):
            words[-1].end = max(end, words[-1].end)
        else:
            words.append(Span(start, end, model.config.id2label[index.item()], probability.item()))
    if not are_spans(model.config.id2label.values()):
        return text, words, notes
    spans = []
    for kind, first, last in get_entities(in_iobes(word.tag for word in words)):
        probability = float(np.mean([word.probability for word in words[first : last + 1]]))
        spans.append(Span(words[first].start, words[last].end, kind, probability))
    return text, spans, notes


def starts_word(text: str, start: int) -> bool:
    """Whether a word starts at a character that is not white space: not between two letters, marks or digits."""
    return start == 0 or not all(
        unicodedata.category(character)[0] in "LMN" for character in text[start - 1 : start + 1]
    )


@torch.no_grad()
def label_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[dict[str, float], list[str]]:
    """
    The score of each label for a text or a pair, the highest first: a probability, or of a regression a number; and
    notes for the visitor.

    Raises:
        UsageError: as of [`read_text`].
    """
    encoded, notes = read_text(model, tokenizer, texts)
    encoded.pop("offset_mapping")
    logits = model(**encoded.to(model.device)).logits[0].float().cpu()
    scores = {None: logits.softmax(dim=-1), "multi_label_classification": logits.sigmoid(), "regression": logits}
    scores = scores[label_kind(model)].tolist()
    named = {model.config.id2label[index]: score for index, score in enumerate(scores)}
    return dict(sorted(named.items(), key=lambda pair: -pair[1])), notes


def label_kind(model: PreTrainedModel) -> str | None:
    """ "regression", "multi_label_classification", or None where a text has one label."""
    kind = model.config.problem_type or ("regression" if model.config.num_labels == 1 else None)
    return None if kind == "single_label_classification" else kind


def example_tune(frames_per_beat: int = FRAMES_PER_BEAT) -> np.ndarray:
    """A jig of 48 half beats, (frames, 88)."""
    melody, chords = EXAMPLE_MELODY.split(), EXAMPLE_CHORDS.split()
    roll = np.zeros((len(melody), NUM_KEYS), dtype=np.uint8)
    for frame, note in enumerate(melody):
        for name in (note, *CHORDS[chords[frame // 6]].split()):
            roll[frame, pretty_midi.note_name_to_number(name) - LOWEST_PITCH] = 1
    num_frames = len(roll) * frames_per_beat // FRAMES_PER_BEAT
    return roll[np.arange(num_frames) * FRAMES_PER_BEAT // frames_per_beat]


def read_tune(
    start: str, midi_file: str | None, num_frames: int, frames_per_beat: int = FRAMES_PER_BEAT
) -> tuple[np.ndarray, list[str]]:
    """
    The (frames, 88) to continue, at most `num_frames`, and notes for the visitor on how they were read.

    Raises:
        UsageError: there is no MIDI file, it can't be read, or it holds no notes.
    """
    if start == "Silence":
        return np.zeros((0, NUM_KEYS), dtype=np.uint8), []
    if start == "Example tune":
        return example_tune(frames_per_beat)[:num_frames], []
    if midi_file is None:
        raise UsageError("Choose a MIDI file, or another start.")
    try:
        tune, left_out = read_midi_and_rest(midi_file, frames_per_beat)
    except UsageError as error:
        raise UsageError(str(error).replace(midi_file, Path(midi_file).name)) from error
    notes = [f"Left out: {left_out}."] if left_out else []
    if len(tune) == 0:
        raise UsageError(" ".join(["The MIDI file holds no notes.", *notes]))
    if len(tune) > num_frames:
        notes.append(f"The tune was cut to the first {num_frames} of its {len(tune):,} frames.")
    return tune[:num_frames], notes


def prepare_drawing(strokes: list[str]) -> np.ndarray:
    """
    A drawing in MNIST's form: white on black, 20 x 20 pixels at most, its centre of mass in the middle of the image.

    Args:
        strokes: the points of each as in SVG, "x,y x,y ...", from 0 to `CANVAS`.

    Returns:
        (28, 28) uint8.

    Raises:
        UsageError: nothing is drawn.
    """
    if not strokes:
        raise UsageError("Nothing is drawn yet: draw a digit.")
    canvas = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(canvas)
    for stroke in strokes:
        points = [tuple(float(value) for value in point.split(",")) for point in stroke.split()]
        pen.line(points, fill=255, width=PEN, joint="curve")
        for x, y in (points[0], points[-1]):
            pen.circle((x, y), PEN / 2, fill=255)
    digit = canvas.crop(canvas.getbbox())
    scale = 20 / max(digit.size)
    digit = np.asarray(digit.resize([max(1, round(scale * side)) for side in digit.size], Image.Resampling.BILINEAR))
    image = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    corner = []
    for axis, side in enumerate(digit.shape):
        centre = np.average(np.arange(side), weights=digit.sum(axis=1 - axis))
        corner.append(int(np.clip(round(IMAGE_SIZE / 2 - centre), 0, IMAGE_SIZE - side)))
    top, left = corner
    image[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return image


@torch.no_grad()
def read_digit(model: PreTrainedModel, processor: BaseImageProcessor, image: np.ndarray) -> torch.Tensor:
    """
    The probability of each digit after each pixel of a (28, 28) image, (pixels, digits). The model is causal, so one
    pass gives them all.
    """
    input_values = processor(Image.fromarray(image), return_tensors="pt")["input_values"].to(model.device)
    return model.score(model.model(input_values=input_values).last_hidden_state)[0].float().softmax(dim=-1).cpu()


def read_series(
    csv_file: str | None, settings: dict, channels: list[str], time_column: str, target_columns: str
) -> list[Series]:
    """
    The first series of a CSV file, at most `MAX_SERIES`, up to their last values.

    Args:
        csv_file: its path.
        settings: how the training data was read.
        channels: what the model forecasts. The visitor's columns are put in this order if they are the same, and are
            taken as they come otherwise.
        time_column: name of the column with time stamps; empty for none.
        target_columns: names of the columns to forecast, with commas between them.

    Raises:
        UsageError: there is no file, or it can't be read so.
    """
    if csv_file is None:
        raise UsageError("Choose a CSV file.")
    names = [name.strip() for name in target_columns.split(",") if name.strip()]
    columns = {"time_column": time_column.strip() or None, "target_columns": names or None}
    kept = {name: settings[name] for name in ("layout", "id_column")}
    try:
        args = TimeSeriesArguments(train_file=[csv_file], **kept, **columns)
        series = load_series(args)[:MAX_SERIES]
        if set(series[0].channels) == set(channels):
            match_channels(args, series, channels, "the model")
        return known_parts(args, series)
    except UsageError as error:
        raise UsageError(str(error).replace(f"--train_file {csv_file}", Path(csv_file).name)) from error


def season_notes(series: list[Series], season_length: int) -> list[str]:
    """Notes for the visitor on series whose spacing mostly goes with another season than the model's."""
    found = {part.spacing for part in series if part.spacing is not None}
    return [
        f"Steps {spacing} apart mostly have seasons of {spacing.season_length} steps; this model has learnt "
        f"seasons of {season_length}."
        for spacing in found
        if spacing.season_length not in (1, season_length)
    ]
