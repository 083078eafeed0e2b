# SPDX-License-Identifier: Apache-2.0
"""
The demo's page: a tab for each of text, music, digits, forecasts, tags of words and labels of texts. Gradio runs the
generators below for each visitor.
"""

import sys
import tempfile
import time

import gradio as gr
import numpy as np
import torch
from transformers import PreTrainedModel

from .checkpoints import (
    load_causal_lm,
    load_digit_classifier,
    load_forecaster,
    load_music_model,
    load_tagger,
    load_text_classifier,
)
from .demo_drawing import (
    DRAWING_AREA,
    DRAWING_SCRIPT,
    draw_forecasts,
    draw_labels,
    draw_next_token,
    draw_reading,
    draw_spans,
    draw_tune,
)
from .demo_inputs import (
    CANVAS,
    EXAMPLE_DRAWING,
    IMAGE_SIZE,
    label_kind,
    label_text,
    prepare_drawing,
    read_digit,
    read_prompt,
    read_series,
    read_tune,
    season_notes,
    tag_text,
)
from .errors import UsageError
from .forecasting import forecast_ahead, forecast_table
from .generation import generate_frames, generate_tokens
from .model_arguments import trained_frames_per_beat
from .model_card import read_facts
from .piano_rolls import DEFAULT_FRAMES_PER_BEAT, MIDI_SUFFIXES, write_audio, write_midi, write_piano_roll_picture

TEMPO = 120
SECONDS_PER_ROW = 0.05  # the model reads a digit faster than the eye
CONCURRENT_VISITORS = 4  # at work at a time, for each tab; others wait in a queue

TRAINED_BY = {
    "text": "scripts/train_causal_lm.py scripts/recipes/ptb_char_small.yaml --train_file ptb.train.txt "
    "--validation_file ptb.valid.txt --output_dir outputs/ptb_char_small",
    "music": "scripts/train_polyphonic_music.py scripts/recipes/nottingham.yaml --data Nottingham.mat "
    "--output_dir outputs/nottingham",
    "digit": "scripts/train_sequence_classification.py scripts/recipes/smnist_small.yaml --dataset_name ylecun/mnist "
    "--test_split test --output_dir outputs/smnist",
    "forecast": "scripts/train_time_series.py scripts/recipes/air_passengers.yaml --train_file AirPassengers.csv "
    "--output_dir outputs/air_passengers",
    "tags": "scripts/train_token_classification.py scripts/recipes/japanese_ner.yaml --train_file train.conll "
    "--test_file test.conll --output_dir outputs/japanese_ner",
    "label": "scripts/train_sequence_classification.py scripts/recipes/sst2.yaml --train_file train.csv "
    "--validation_file validation.csv --output_dir outputs/sst2",
}


def make_page(models: dict[str, str]) -> gr.Blocks:
    """
    Args:
        models: the checkpoints for the keys of `TRAINED_BY`, each a folder or an id on the Hub. A tab whose checkpoint
            can't be opened says how to train one.
    """
    tabs = {
        "Text": text_tab,
        "Music": music_tab,
        "Digit": digit_tab,
        "Forecast": forecast_tab,
        "Tags": tags_tab,
        "Label": label_tab,
    }
    with gr.Blocks(title="R-Transformer", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# R-Transformer\nA small RNN over a sliding window ahead of causal attention "
            "([arXiv 1907.05572](https://arxiv.org/abs/1907.05572)): six small models at work."
        )
        for name, make_tab in tabs.items():
            checkpoint = models[name.lower()]
            with gr.Tab(name):
                try:
                    make_tab(checkpoint)
                except UsageError as error:
                    print(f"The tab {name} has no model: {error}", file=sys.stderr)
                    gr.Markdown(
                        f"This tab has no model yet: `{checkpoint}` can't be opened.\n\nTrain one with\n\n"
                        f"```bash\npython {TRAINED_BY[name.lower()]}\n```\n\nand pass its `--output_dir`, or a model "
                        f"on the Hub, as `python scripts/demo.py --{name.lower()}_model ...`."
                    )
    return page.queue(default_concurrency_limit=CONCURRENT_VISITORS, max_size=100)


def new_generator(model: PreTrainedModel) -> torch.Generator:
    """A newly seeded generator for each run, so that visitors don't share one."""
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
        written = generate_tokens(model, tokenizer, input_ids, num_tokens, temperature, top_p, new_generator(model))
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
        for frame in generate_frames(model, tune, num_frames, temperature, new_generator(model)):
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
    model, processor = load_digit_classifier(checkpoint)

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


def forecast_tab(checkpoint: str):
    model, extractor, settings = load_forecaster(checkpoint)
    targets = extractor.channel_names[: model.config.num_target_channels]

    def forecast(csv_file: str | None, time_column: str, target_columns: str, horizon: int):
        try:
            series = read_series(csv_file, settings, targets, time_column, target_columns)
            quantiles = [
                forecast_ahead(model, extractor, part, settings["season_length"], horizon, new_generator(model))
                for part in series
            ]
        except UsageError as error:
            gr.Warning(str(error))
            yield gr.skip(), None
            return
        for note in season_notes(series, settings["season_length"]):
            gr.Warning(note)
        with tempfile.TemporaryDirectory() as folder:  # Gradio has a copy when it asks for what comes next
            table = f"{folder}/forecast.csv"
            rows = forecast_table(series, quantiles, settings["id_column"], time_column.strip())
            rows.to_csv(table, index=False)
            yield draw_forecasts(series, quantiles), table

    with gr.Row():
        with gr.Column(scale=1):
            csv_file = gr.File(label="CSV file, a row a step", file_types=[".csv", ".tsv"], height=120)
            time_column = gr.Textbox(settings["time_column"] or "", label="Column of the time stamps")
            target_columns = gr.Textbox(", ".join(targets), label="Columns to forecast, with commas between them")
            longest = 4 * model.config.prediction_length
            horizon = gr.Slider(
                1, longest, model.config.prediction_length, step=1, precision=0, label="Steps to forecast"
            )
            start = gr.Button("Forecast", variant="primary")
        with gr.Column(scale=2):
            picture = gr.HTML(apply_default_css=False)
            table = gr.File(label="To keep: the quantiles", interactive=False)
    start.click(forecast, [csv_file, time_column, target_columns, horizon], [picture, table], show_progress="hidden")


def tags_tab(checkpoint: str):
    model, tokenizer, settings = load_tagger(checkpoint)

    def tag(text: str):
        try:
            text, spans, notes = tag_text(model, tokenizer, text, settings.get("word_separator", " "))
        except UsageError as error:
            gr.Warning(str(error))
            return gr.skip(), gr.skip()
        for note in notes:
            gr.Warning(note)
        entities = [{"entity": span.tag, "start": span.start, "end": span.end} for span in spans]
        return {"text": text, "entities": entities}, draw_spans(text, spans)

    with gr.Row():
        with gr.Column():
            text = gr.Textbox(example_text(checkpoint), label="Text to tag", lines=5)
            start = gr.Button("Tag", variant="primary")
        with gr.Column():
            tagged = gr.HighlightedText(label="Tagged text", interactive=False)
            bars = gr.HTML(apply_default_css=False)
    start.click(tag, text, [tagged, bars], show_progress="hidden")


def label_tab(checkpoint: str):
    model, tokenizer, settings = load_text_classifier(checkpoint)
    is_pair = settings.get("text_pair_column") is not None

    def label(*texts: str):
        try:
            scores, notes = label_text(model, tokenizer, list(texts))
        except UsageError as error:
            gr.Warning(str(error))
            return gr.skip()
        for note in notes:
            gr.Warning(note)
        return draw_labels(scores, label_kind(model))

    with gr.Row():
        with gr.Column():
            texts = [gr.Textbox(example_text(checkpoint), label="Text to label", lines=5)]
            if is_pair:
                texts.append(gr.Textbox(label="Second text", lines=5))
            start = gr.Button("Label", variant="primary")
        with gr.Column():
            bars = gr.HTML(apply_default_css=False)
    start.click(label, texts, bars, show_progress="hidden")


def example_text(checkpoint: str) -> str:
    """The text in the code of a checkpoint's card, if it says one."""
    facts = read_facts(checkpoint)
    return facts.example if facts is not None and isinstance(facts.example, str) else ""
