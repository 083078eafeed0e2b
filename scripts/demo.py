# SPDX-License-Identifier: Apache-2.0
"""
Shows three models at work in a browser: text as it is written, music as it is played on, a digit as it is read.

    python scripts/demo.py
    python scripts/demo.py --text_model outputs/quickstart --port 8000
    python scripts/demo.py --make_space outputs/space   # the same as a Space of the Hub: a folder to push there
"""

import argparse
import html
import importlib.metadata
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rtransformer_hf.training.command_line import CommandParser, run_command

import gradio as gr
import numpy as np
import pretty_midi
import torch
from generate import load_causal_lm
from generate_music import load_music_model
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image, ImageDraw
from transformers import (
    AutoImageProcessor,
    AutoModelForSequenceClassification,
    BaseImageProcessor,
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

import rtransformer_hf
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_arguments import check_architecture, default_device, trained_frames_per_beat
from rtransformer_hf.training.new_tokenizers import unknown_token_id
from rtransformer_hf.training.piano_rolls import (
    DEFAULT_FRAMES_PER_BEAT,
    LOWEST_PITCH,
    MIDI_SUFFIXES,
    NUM_KEYS,
    read_midi_and_rest,
    write_audio,
    write_midi,
    write_piano_roll_picture,
)

MAX_PROMPT = 2000  # characters
NUM_BARS = 10  # likeliest next tokens shown
FRAMES_PER_BEAT = 2  # of the example tune
TEMPO = 120
DIGITS = 10
IMAGE_SIZE = 28  # of MNIST; a digit fills 20 x 20 of it
SECONDS_PER_ROW = 0.05  # the model reads a digit faster than the eye
CONCURRENT_VISITORS = 4  # at work at a time, for each tab; others wait in a queue

# A jig, made up for this demo: a frame is half a beat, a chord lasts six.
EXAMPLE_MELODY = (
    "E5 G5 E5 C5 E5 G5 A5 F5 A5 C6 A5 F5 G5 D5 G5 B5 G5 F5 E5 G5 E5 C5 C5 C5 "
    "E5 G5 E5 C5 E5 G5 A5 F5 A5 C6 A5 F5 G5 F5 E5 D5 C5 B4 C5 E5 D5 C5 C5 C5"
)
EXAMPLE_CHORDS = "C F G C C F G C"
CHORDS = {"C": "C3 E3 G3", "F": "F3 A3 C4", "G": "G3 B3 D4"}
CANVAS, PEN = 280, 22  # side of the drawing area and width of the pen, in its own units
EXAMPLE_DRAWING = ["80,95 95,65 140,50 185,68 192,105 165,145 85,225 200,225"]  # a two

TRAINED_BY = {
    "text": "scripts/train_causal_lm.py scripts/recipes/ptb_char_small.yaml --train_file ptb.train.txt "
    "--validation_file ptb.valid.txt --output_dir outputs/ptb_char_small",
    "music": "scripts/train_polyphonic_music.py scripts/recipes/nottingham.yaml --data Nottingham.mat "
    "--output_dir outputs/nottingham",
    "digit": "scripts/train_sequence_classification.py scripts/recipes/smnist_small.yaml --dataset_name ylecun/mnist "
    "--test_split test --output_dir outputs/smnist",
}


# What the models do: plain functions, of which Gradio knows nothing


def read_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[torch.Tensor, list[str]]:
    """
    (1, tokens) ids of a prompt, and what a visitor should know of how it was read.

    Raises:
        UsageError: it holds nothing that the model knows.
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
        raise UsageError(f"A beginning is needed, of characters that the model knows. {' '.join(notes)}")
    return torch.tensor([ids]), notes


@torch.no_grad()
def write_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor,
    num_tokens: int,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
) -> Iterator[tuple[str, torch.Tensor, int]]:
    """
    Continues (1, tokens) ids. After each new token: the text so far, the (vocabulary,) distribution that the token was
    drawn from, and its id.
    """
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    tokens = input_ids = input_ids.to(model.device)
    cache = DynamicCache(config=model.config)
    for _ in range(num_tokens):
        logits = model(tokens, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        probabilities = warpers(input_ids, logits).softmax(dim=-1)
        tokens = torch.multinomial(probabilities, 1, generator=generator)
        input_ids = torch.cat([input_ids, tokens], dim=-1)
        has_ended = int(tokens) == tokenizer.eos_token_id
        text = input_ids[0, :-1] if has_ended else input_ids[0]
        yield tokenizer.decode(text), probabilities[0], int(tokens)
        if has_ended:
            return


def example_tune(frames_per_beat: int = FRAMES_PER_BEAT) -> np.ndarray:
    """(frames, 88)."""
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
    The at most `num_frames` frames to continue, (frames, 88), and what a visitor should know of how they were read.

    Raises:
        UsageError: there is no MIDI file, it can't be read, or it holds no notes.
    """
    if start == "Silence":
        return np.zeros((0, NUM_KEYS), dtype=np.uint8), []
    if start == "Example tune":
        return example_tune(frames_per_beat)[:num_frames], []
    if midi_file is None:
        raise UsageError("A MIDI file is needed, or another start.")
    try:
        tune, left_out = read_midi_and_rest(midi_file, frames_per_beat)
    except UsageError as error:
        raise UsageError(str(error).replace(midi_file, Path(midi_file).name)) from error
    notes = [f"Left out: {left_out}."] if left_out else []
    if len(tune) == 0:
        raise UsageError(" ".join(["The MIDI file holds no notes; a tune of at least one frame is accepted.", *notes]))
    if len(tune) > num_frames:
        notes.append(f"The tune was cut to the first {num_frames} of its {len(tune):,} frames.")
    return tune[:num_frames], notes


def continue_tune(
    model: PreTrainedModel, tune: np.ndarray, num_frames: int, temperature: float, generator: torch.Generator
) -> Iterator[np.ndarray]:
    """The (88,) frames that follow (frames, 88), one by one as they are drawn. Nothing given starts a new tune."""
    given = tune if len(tune) else np.zeros((1, NUM_KEYS), dtype=np.uint8)
    frames = torch.from_numpy(given)[None].to(model.device, model.dtype)
    for frame in islice(model.sample_frames(frames, None, temperature, generator), num_frames):
        yield frame[0, 0].to("cpu", torch.uint8).numpy()


def load_digit_model(checkpoint: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    The classifier and its image processor.

    Raises:
        UsageError: there is no such checkpoint, or it is none that reads the pixels of a digit row by row.
    """
    try:
        check_architecture(checkpoint, "RTransformerForSequenceClassification")
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint).to(default_device())
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        found = (model.config.input_size, model.config.num_labels, getattr(processor, "permutation_seed", None))
        if found != (1, DIGITS, None):
            raise ValueError(f"its input_size, num_labels and permutation_seed are {found}")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"checkpoint {checkpoint!r} can't be used; a folder or Hub id of a classifier of {DIGITS} digits that "
            f"reads grey pixels row by row, with its image processor, is accepted: {error}"
        ) from error
    return model, processor


def prepare_drawing(strokes: list[str]) -> np.ndarray:
    """
    A drawing as MNIST has its digits: white on black, in a box of 20 x 20, its centre of mass in the middle of the
    image.

    Args:
        strokes: points "x,y x,y ..." of each, as of an SVG, from 0 to `CANVAS`.

    Returns:
        (28, 28) uint8.

    Raises:
        UsageError: nothing is drawn.
    """
    if not strokes:
        raise UsageError("Nothing is drawn yet; a digit is needed.")
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
    (pixels, digits): what the model takes an image (28, 28) for after each of its pixels. Its states see the past
    alone, so that one pass gives them all.
    """
    input_values = processor(Image.fromarray(image), return_tensors="pt")["input_values"].to(model.device)
    return model.score(model.model(input_values=input_values).last_hidden_state)[0].float().softmax(dim=-1).cpu()


# Drawing: HTML and SVG, since a plot that is made anew many times a second must be small and must not blink


def draw_bars(names: list[str], probabilities: list[float], colours: list[str], caption: str) -> str:
    """A table of names, bars and percentages."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td><div style="width:{100 * probability:.1f}%;'
        f'background:{colour}"></div></td><td>{100 * probability:.1f} %</td></tr>'
        for name, probability, colour in zip(names, probabilities, colours, strict=True)
    )
    return f'<table class="bars"><caption>{html.escape(caption)}</caption>{rows}</table>'


def draw_next_token(tokenizer: PreTrainedTokenizerBase, probabilities: torch.Tensor, drawn: int) -> str:
    """Bars of the likeliest tokens of a (vocabulary,) distribution, the one that was drawn in another colour."""
    highest, tokens = probabilities.topk(min(NUM_BARS, len(probabilities)))
    colours = ["var(--color-accent)" if token == drawn else "var(--neutral-400)" for token in tokens]
    caption = f"Drawn: {token_name(tokenizer, drawn)}, of {100 * float(probabilities[drawn]):.1f} %"
    return draw_bars([token_name(tokenizer, token) for token in tokens], highest.tolist(), colours, caption)


def token_name(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    text = tokenizer.decode([token])
    return {" ": "space", "\n": "new line", "<|endoftext|>": "end"}.get(text, text)


def draw_chart(svg: str, width: int, height: int, labels: dict[str, float], caption: str) -> str:
    """An SVG stretched to the width that there is, labels of its vertical axis at fractions of it, and a caption."""
    ticks = "".join(f'<span style="bottom:{100 * place:.1f}%">{label}</span>' for label, place in labels.items())
    return (
        f'<figure class="chart"><div aria-hidden="true">{ticks}</div><svg viewBox="0 0 {width} {height}" '
        f'preserveAspectRatio="none" role="img" aria-label="{caption}">{svg}</svg><figcaption>{caption}</figcaption>'
        "</figure>"
    )


def draw_tune(tune: np.ndarray, num_given: int, num_frames: int) -> str:
    """The piano roll of (frames, 88), with room for `num_frames`; those given are shaded."""
    keys, frames = np.nonzero(tune.T)
    notes = "".join(f"M{frame} {NUM_KEYS - key - 0.5}h1" for frame, key in zip(frames, keys, strict=True))
    c_keys = {f"C{octave}": 12 * octave - 9 for octave in range(1, 9)}
    lines = "".join(f"M0 {NUM_KEYS - key}h{num_frames}" for key in c_keys.values())
    svg = (
        f'<rect width="{num_given}" height="{NUM_KEYS}" class="given"/><path d="{lines}" class="grid"/>'
        f'<path d="{notes}" class="notes"/>'
    )
    labels = {name: key / NUM_KEYS for name, key in c_keys.items()}
    return draw_chart(
        svg,
        num_frames,
        NUM_KEYS,
        labels,
        f"Frames: {num_given} given, {len(tune) - num_given} of {num_frames - num_given} new ones",
    )


def draw_reading(image: np.ndarray, probabilities: torch.Tensor, num_read: int) -> tuple[str, str, str]:
    """The (28, 28) image as far as it is read, the probability of each digit so far, and now."""
    pixels = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill-opacity="{image[y, x] / 255:.2f}"/>'
        for y, x in np.argwhere(image)
    )
    unread = f'<rect y="{num_read // IMAGE_SIZE}" width="28" height="28" class="unread"/>'
    caption = f"{num_read} of {image.size} pixels read"
    picture = (
        f'<figure class="digit"><svg viewBox="0 0 {IMAGE_SIZE} {IMAGE_SIZE}" role="img" '
        f'aria-label="The drawing as the model sees it"><rect width="28" height="28" fill="black"/>'
        f'<g fill="white">{pixels}</g>{unread}</svg><figcaption>{caption}</figcaption></figure>'
    )
    colours = [to_hex(colour) for colour in colormaps["tab10"].colors]
    lines = "".join(
        f'<polyline class="line" stroke="{colour}" points="'
        + " ".join(f"{x} {1 - y:.3f}" for x, y in enumerate(line, start=1))
        + '"/>'
        for colour, line in zip(colours, probabilities[:num_read].T.tolist(), strict=True)
    )
    labels = {"0 %": 0, "50 %": 0.5, "100 %": 1}
    plot = draw_chart(
        f'<path d="M0 0H784M0 .5H784M0 1H784" class="grid"/>{lines}',
        image.size,
        1,
        labels,
        f"Probability of each digit by pixels read: {num_read} of {image.size}",
    )
    now = probabilities[num_read - 1]
    names = [str(digit) for digit in range(DIGITS)]
    best = f"{int(now.argmax())}, with {100 * float(now.max()):.1f} %"
    return picture, plot, draw_bars(names, now.tolist(), colours, f"Read as {best}")


CSS = """
.bars { width: 100%; table-layout: fixed; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.bars caption, figcaption { text-align: left; padding: 6px 0; }
.bars th { width: 4.5em; text-align: right; padding: 2px 8px; font-weight: 600; overflow: hidden; white-space: pre; }
.bars td:last-child { width: 4.5em; text-align: right; white-space: nowrap; }
.bars td div { height: 1.2em; min-width: 1px; }
.chart { margin: 0; padding-left: 3.4em; position: relative; }
.chart > svg { display: block; width: 100%; height: 280px; background: var(--background-fill-secondary); }
.chart > div { position: absolute; left: 0; top: 0; width: 3em; height: 280px; font-size: var(--text-sm); }
.chart span { position: absolute; right: 0; transform: translateY(50%); white-space: nowrap; }
.chart .given { fill: var(--color-accent); fill-opacity: .2; }
.chart .notes { stroke: var(--body-text-color); stroke-width: 1; }
.chart .grid { stroke: var(--border-color-primary); stroke-width: 1px; vector-effect: non-scaling-stroke; }
.chart .line { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke; }
.digit { margin: 0; }
.digit svg { width: 168px; height: 168px; display: block; }
.digit .unread { fill: #808080; fill-opacity: .6; }
.drawing { touch-action: none; user-select: none; }
.drawing svg { display: block; width: 280px; height: 280px; background: white; cursor: crosshair; }
.drawing svg { border: 1px solid #808080; }
.drawing polyline { fill: none; stroke: black; stroke-linecap: round; stroke-linejoin: round; }
.drawing circle { fill: none; stroke: none; }
.drawing:focus-visible { outline: none; }
.drawing:focus-visible svg { outline: 3px solid var(--color-accent); }
.drawing:focus-visible circle { stroke: var(--color-accent); stroke-width: 3; }
"""


# The page


def make_page(args: argparse.Namespace) -> gr.Blocks:
    tabs = {"Text": text_tab, "Music": music_tab, "Digit": digit_tab}
    with gr.Blocks(title="R-Transformer", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# R-Transformer\nA small RNN over a sliding window ahead of causal attention "
            "([arXiv 1907.05572](https://arxiv.org/abs/1907.05572)): three small models at work."
        )
        for name, make_tab in tabs.items():
            checkpoint = getattr(args, f"{name.lower()}_model")
            with gr.Tab(name):
                try:
                    make_tab(checkpoint)
                except UsageError as error:
                    print(f"demo.py: the tab {name} has no model: {error}", file=sys.stderr)
                    gr.Markdown(
                        f"This tab has no model yet: `{checkpoint}` can't be opened.\n\nOne is trained by\n\n"
                        f"```bash\npython {TRAINED_BY[name.lower()]}\n```\n\nand shown by `python scripts/demo.py "
                        f"--{name.lower()}_model` with the `--output_dir` above, or a model of the Hub."
                    )
    return page.queue(default_concurrency_limit=CONCURRENT_VISITORS, max_size=100)


def new_generator(model: PreTrainedModel) -> torch.Generator:
    """A source of randomness of its own for each run, seeded anew: visitors don't share one."""
    generator = torch.Generator(model.device)
    generator.seed()
    return generator


def text_tab(checkpoint: str):
    model, tokenizer = load_causal_lm(checkpoint)

    def write(prompt: str, temperature: float, top_p: float, num_tokens: int):
        try:
            input_ids, notes = read_prompt(tokenizer, prompt)
        except UsageError as error:
            gr.Warning(str(error))
            return
        for note in notes:
            gr.Warning(note)
        written = write_text(model, tokenizer, input_ids, num_tokens, temperature, top_p, new_generator(model))
        for text, probabilities, token in written:
            yield text, draw_next_token(tokenizer, probabilities, token)

    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox("the company said ", label="Beginning", lines=3)
            temperature = gr.Slider(0.1, 2, 0.7, step=0.05, label="Temperature")
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="Draw from the likeliest tokens")
            num_tokens = gr.Slider(1, 1000, 300, step=1, precision=0, label="Length, in tokens")
            with gr.Row():
                start, stop = gr.Button("Write", variant="primary"), gr.Button("Stop")
        with gr.Column():
            text = gr.Textbox(label="Text", lines=10, max_lines=10, interactive=False)
            bars = gr.HTML(apply_default_css=False)
    run = start.click(write, [prompt, temperature, top_p, num_tokens], [text, bars], show_progress="hidden")
    stop.click(None, cancels=[run])


def music_tab(checkpoint: str):
    model = load_music_model(checkpoint)
    frames_per_beat = trained_frames_per_beat(checkpoint) or DEFAULT_FRAMES_PER_BEAT

    def play_on(start: str, midi_file: str | None, num_given: int, num_frames: int, temperature: float):
        try:
            tune, notes = read_tune(start, midi_file, num_given, frames_per_beat)
        except UsageError as error:
            gr.Warning(str(error))
            yield gr.skip(), None, gr.skip(), gr.skip()  # nothing new to keep
            return
        for note in notes:
            gr.Warning(note)
        num_given = len(tune)
        yield draw_tune(tune, num_given, num_given + num_frames), (tune, num_given), None, None
        for frame in continue_tune(model, tune, num_frames, temperature, new_generator(model)):
            tune = np.concatenate([tune, frame[None]])
            yield draw_tune(tune, num_given, num_given + num_frames), (tune, num_given), gr.skip(), gr.skip()

    def keep(tune: tuple[np.ndarray, int] | None):
        if tune is None:
            return
        roll, num_given = tune
        with tempfile.TemporaryDirectory() as folder:  # Gradio has copies when it asks for what comes next
            audio, midi, picture = (f"{folder}/tune.{suffix}" for suffix in ("wav", "mid", "png"))
            write_audio(audio, roll, frames_per_beat, TEMPO)
            write_midi(midi, roll, frames_per_beat, TEMPO)
            write_piano_roll_picture(picture, roll, num_given)
            yield audio, [midi, picture]

    with gr.Row():
        with gr.Column(scale=1):
            start = gr.Radio(["Example tune", "MIDI file", "Silence"], value="Example tune", label="Start from")
            midi_file = gr.File(label="MIDI file", file_types=list(MIDI_SUFFIXES), height=120)
            num_given = gr.Slider(1, 256, 48, step=1, precision=0, label=f"Frames given, {frames_per_beat} a beat")
            num_frames = gr.Slider(1, 512, 128, step=1, precision=0, label="Frames to add")
            temperature = gr.Slider(0.1, 2, 1, step=0.05, label="Temperature")
            with gr.Row():
                play, stop = gr.Button("Play on", variant="primary"), gr.Button("Stop")
        with gr.Column(scale=2):
            roll = gr.HTML(apply_default_css=False)
            audio = gr.Audio(label="Sound", interactive=False)
            files = gr.Files(label="To keep: MIDI, picture", interactive=False)
    tune = gr.State()
    run = play.click(
        play_on,
        [start, midi_file, num_given, num_frames, temperature],
        [roll, tune, audio, files],
        show_progress="hidden",
    )
    run.then(keep, tune, [audio, files], show_progress="hidden")
    stop.click(None, cancels=[run])


def digit_tab(checkpoint: str):
    model, processor = load_digit_model(checkpoint)

    def read(strokes: list[str]):
        try:
            image = prepare_drawing(strokes)
        except UsageError as error:
            gr.Warning(str(error))
            return
        probabilities = read_digit(model, processor, image)
        for num_read in range(IMAGE_SIZE, image.size + 1, IMAGE_SIZE):
            yield draw_reading(image, probabilities, num_read)
            time.sleep(SECONDS_PER_ROW)

    with gr.Row():
        with gr.Column(scale=1):
            drawing = gr.HTML(
                [],
                html_template=DRAWING_AREA,
                js_on_load=DRAWING_SCRIPT,
                x=CANVAS // 2,
                y=CANVAS // 2,
                elem_classes="drawing",
                apply_default_css=False,
            )
            with gr.Row():
                start, clear = gr.Button("Read", variant="primary"), gr.Button("Clear")
                example = gr.Button("Draw an example")
            picture = gr.HTML(apply_default_css=False)
        with gr.Column(scale=2):
            plot, bars = gr.HTML(apply_default_css=False), gr.HTML(apply_default_css=False)
    start.click(read, drawing, [picture, plot, bars], show_progress="hidden")
    clear.click(list, None, drawing, show_progress="hidden")
    example.click(lambda: EXAMPLE_DRAWING, None, drawing, show_progress="hidden")


# Gradio's own Sketchpad waits for a choice of tools, knows no keyboard and needs WebGL.
DRAWING_AREA = f"""<p>Draw a digit, or move the pen with the arrow keys; space puts it down and lifts it.</p>
<svg viewBox="0 0 {CANVAS} {CANVAS}" stroke-width="{PEN}">
{{{{#each value}}}}<polyline points="{{{{this}}}}"/>{{{{/each}}}}
<circle cx="${{x}}" cy="${{y}}" r="{PEN // 2}"/></svg>"""
DRAWING_SCRIPT = """
const step = 10, arrows = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]};
let isDown = false;
element.tabIndex = 0;
element.setAttribute("role", "application");
element.setAttribute("aria-label", "Drawing area. Arrow keys move the pen, space puts it down and lifts it.");

function movePen(x, y, isNew) {
    const [inX, inY] = [x, y].map(value => Math.round(Math.min(Math.max(value, 0), SIZE)));
    const point = `${inX},${inY}`, strokes = [...props.value];
    if (isNew) strokes.push(`${point} ${point}`);
    else if (isDown) strokes.push(`${strokes.pop()} ${point}`);
    [props.x, props.y, props.value] = [inX, inY, strokes];
}
function place(event) {
    const box = element.querySelector("svg").getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * SIZE, (event.clientY - box.top) / box.height * SIZE];
}
element.addEventListener("pointerdown", event => {
    if (!event.target.closest("svg")) return;
    element.setPointerCapture(event.pointerId);
    isDown = true;
    movePen(...place(event), true);
});
element.addEventListener("pointermove", event => {
    if (element.hasPointerCapture(event.pointerId)) movePen(...place(event), false);
});
element.addEventListener("pointerup", () => { isDown = false; });
element.addEventListener("keydown", event => {
    if (event.key in arrows) movePen(props.x + arrows[event.key][0], props.y + arrows[event.key][1], false);
    else if (event.key === " ") {
        isDown = !isDown;
        if (isDown) movePen(props.x, props.y, true);
    } else return;
    event.preventDefault();
});
watch("value", () => { isDown = false; });  // drawn or cleared by a button: the stroke that was begun is no more
""".replace("SIZE", str(CANVAS))


# The command line


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    if args.make_space is not None:
        try:
            make_space(args)
        except UsageError as error:
            sys.exit(f"demo.py: error: {error}")
        return
    page = make_page(args)
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            ssr_mode=False,
            max_file_size="1mb",
            css=CSS,
            footer_links=["gradio", "settings"],
        )
    except OSError as error:
        sys.exit(f"demo.py: error: --host {args.host} and --port {args.port} can't be served at: {error}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--text_model",
        default="model_cards/ptb_char_medium",
        help="Folder or Hub id of a causal language model with its tokenizer. (default: %(default)s)",
    )
    parser.add_argument(
        "--music_model",
        default="model_cards/nottingham_joint",
        help="Folder or Hub id of a model of piano rolls. (default: %(default)s)",
    )
    parser.add_argument(
        "--digit_model",
        default="model_cards/smnist_small",
        help="Folder or Hub id of a classifier of digits by their pixels. (default: %(default)s)",
    )
    parser.add_argument("--host", help="Address to serve at; 0.0.0.0: the whole network. (default: this computer)")
    parser.add_argument("--port", type=int, help="Port to serve at. (default: the first free one from 7860 on)")
    parser.add_argument("--share", action="store_true", help="Make a public link, through a server of Gradio.")
    parser.add_argument(
        "--make_space",
        metavar="FOLDER",
        help="Start nothing, but write the demo as a Space of the Hub, with models that are folders copied into it; "
        "`hf upload USER/NAME FOLDER --repo-type space` pushes it.",
    )
    args = parser.parse_args(argv)
    if args.port is not None and not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port} is not accepted; it must be 1 to 65535.")
    return args


SPACE_APP = '''"""The demo of R-Transformer with the models of this Space."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "scripts"))

import demo

MODELS = {models}
FLAGS = [[f"--{{name}}", str(HERE / model) if (HERE / model).is_dir() else model] for name, model in MODELS.items()]

if __name__ == "__main__":
    demo.main(sum(FLAGS, []))
'''
SPACE_CARD = """---
title: R-Transformer
emoji: 🎼
colorFrom: yellow
colorTo: red
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
short_description: Text, music and digits, one step at a time
---

# R-Transformer

Text as it is written, music as it is played on, a digit as it is read: small models of
[R-Transformer](https://arxiv.org/abs/1907.05572) at work. `pip install -r requirements.txt gradio` and `python app.py`
start it anywhere.
"""
SPACE_SCRIPTS = ("demo", "generate", "generate_music")
SPACE_REQUIREMENTS = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "matplotlib",
    "pillow",
    "pretty-midi",
    "pyyaml",
    "scipy",
)


def make_space(args: argparse.Namespace):
    """
    Writes the folder of a Space: app, card, requirements, the package, the scripts and the models.

    Raises:
        UsageError: the folder is not empty.
    """
    target = Path(args.make_space)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--make_space {args.make_space!r} is not empty; a new or empty folder is accepted.")
    target.parent.mkdir(parents=True, exist_ok=True)
    scripts = Path(__file__).parent
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        space = Path(folder, "unfinished")
        models = {}
        for flag in ("text_model", "music_model", "digit_model"):
            models[flag] = checkpoint = getattr(args, flag)
            if Path(checkpoint).is_dir():
                models[flag] = f"models/{Path(checkpoint).resolve().name}"
                shutil.copytree(checkpoint, space / models[flag], dirs_exist_ok=True)
            else:
                print(f"--{flag} {checkpoint} is no folder here; the Space will look for it on the Hub.")
        shutil.copytree(
            Path(rtransformer_hf.__file__).parent,
            space / "rtransformer_hf",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (space / "scripts").mkdir()
        for name in SPACE_SCRIPTS:
            shutil.copy(scripts / f"{name}.py", space / "scripts")
        # A local version such as +cpu is on no index.
        versions = {name: importlib.metadata.version(name).split("+")[0] for name in (*SPACE_REQUIREMENTS, "gradio")}
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        requirements = "".join(f"{name}=={versions[name]}\n" for name in SPACE_REQUIREMENTS)
        for name, content in (
            ("app.py", SPACE_APP.format(models=models)),
            ("README.md", SPACE_CARD.format(gradio=versions["gradio"], python=python)),
            ("requirements.txt", requirements),
        ):
            (space / name).write_text(content, encoding="utf-8")
        space.replace(target)
    print(args.make_space)


if __name__ == "__main__":
    run_command(main)
