# SPDX-License-Identifier: Apache-2.0
"""The demo's charts, as HTML and SVG: redrawn many times a second, they must be small and must not flicker."""

import html

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from transformers import PreTrainedTokenizerBase

from .checkpoints import NUM_DIGITS
from .demo_inputs import CANVAS, IMAGE_SIZE, PEN, Span
from .forecasting import LEVELS
from .piano_rolls import NUM_KEYS
from .time_series import Series

NUM_BARS = 10  # likeliest next tokens shown


def draw_bars(
    names: list[str], probabilities: list[float], colours: list[str], caption: str, has_long_names: bool = False
) -> str:
    """A table of names, bars and percentages."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td><div style="width:{100 * probability:.1f}%;'
        f'background:{colour}"></div></td><td>{100 * probability:.1f} %</td></tr>'
        for name, probability, colour in zip(names, probabilities, colours, strict=True)
    )
    kind = "bars long" if has_long_names else "bars"
    return f'<table class="{kind}"><caption>{html.escape(caption)}</caption>{rows}</table>'


def draw_next_token(tokenizer: PreTrainedTokenizerBase, probabilities: torch.Tensor, drawn: int) -> str:
    """Bars of the likeliest tokens of a (vocabulary,) distribution; the token that was drawn stands out."""
    highest, tokens = probabilities.topk(min(NUM_BARS, len(probabilities)))
    colours = ["var(--color-accent)" if token == drawn else "var(--neutral-400)" for token in tokens]
    caption = f"Drawn: {token_name(tokenizer, drawn)}, of {100 * float(probabilities[drawn]):.1f} %"
    return draw_bars([token_name(tokenizer, token) for token in tokens], highest.tolist(), colours, caption)


def token_name(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    text = tokenizer.decode([token])
    return {" ": "space", "\n": "new line", "<|endoftext|>": "end"}.get(text, text)


def draw_labels(scores: dict[str, float], kind: str | None) -> str:
    """
    Bars of the labels with the highest probabilities, or the number that a regression gives.

    Args:
        scores: of each label, the highest first.
        kind: as of `demo_inputs.label_kind`.
    """
    if kind == "regression":
        return "".join(
            f'<p class="number">{html.escape(name)}: <strong>{score:.4g}</strong></p>'
            for name, score in scores.items()
        )
    if kind is None:
        best = [max(scores, key=scores.get)]
        caption = f"Label: {best[0]}, with {100 * scores[best[0]]:.1f} %"
    else:
        best = [name for name, score in scores.items() if score > 0.5]
        caption = f"Labels above one half: {', '.join(best) or 'none'}"
    names = list(scores)[:NUM_BARS]
    colours = ["var(--color-accent)" if name in best else "var(--neutral-400)" for name in names]
    return draw_bars(names, [scores[name] for name in names], colours, caption, has_long_names=True)


def draw_spans(text: str, spans: list[Span]) -> str:
    """Bars of the spans' probabilities, in the order of the text."""
    names = [f"{span.tag}: {text[span.start : span.end]}" for span in spans]
    colours = ["var(--neutral-400)"] * len(spans)
    caption = "How sure the model is of each" if spans else "Nothing found"
    return draw_bars(names, [span.probability for span in spans], colours, caption, has_long_names=True)


def draw_chart(svg: str, width: int, height: int, labels: dict[str, float], caption: str) -> str:
    """An SVG stretched to the page's width, with labels at fractions of its vertical axis, and a caption."""
    ticks = "".join(f'<span style="bottom:{100 * place:.1f}%">{label}</span>' for label, place in labels.items())
    return (
        f'<figure class="chart"><div aria-hidden="true">{ticks}</div><svg viewBox="0 0 {width} {height}" '
        f'preserveAspectRatio="none" role="img" aria-label="{caption}">{svg}</svg><figcaption>{caption}</figcaption>'
        "</figure>"
    )


def draw_tune(tune: np.ndarray, num_given: int, num_frames: int) -> str:
    """The piano roll of a tune, (frames, 88), with room for `num_frames`; the given frames are shaded."""
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
    """The (28, 28) image with its unread part shaded, the curve of each digit's probability, and its last values."""
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
    names = [str(digit) for digit in range(NUM_DIGITS)]
    best = f"{int(now.argmax())}, with {100 * float(now.max()):.1f} %"
    return picture, plot, draw_bars(names, now.tolist(), colours, f"Read as {best}")


def draw_forecasts(series: list[Series], quantiles: list[np.ndarray]) -> str:
    """
    The last known values of each channel of each series, and what may come next: the median in two bands.

    Args:
        series: as they were read.
        quantiles: (levels, horizon, channels) of each, of the levels `LEVELS`.
    """
    return "".join(
        draw_forecast(f"{part.name}, {part.channels[channel]}", part.values[:, channel], found[:, :, channel])
        for part, found in zip(series, quantiles, strict=True)
        for channel in range(found.shape[2])
    )


def draw_forecast(name: str, values: np.ndarray, quantiles: np.ndarray) -> str:
    horizon, height = quantiles.shape[1], 100
    known = values[-max(4 * horizon, 24) :]
    low, high = np.nanmin([*known, *quantiles.flatten()]), np.nanmax([*known, *quantiles.flatten()])
    scale = height / (high - low if high > low else 1)

    def points(steps: np.ndarray, line: np.ndarray) -> str:
        return " ".join(
            f"{step} {height - scale * (value - low):.2f}" for step, value in zip(steps, line, strict=True)
        )

    ahead = np.arange(len(known), len(known) + horizon)
    pieces = np.split(np.arange(len(known)), np.flatnonzero(np.isnan(known)))
    pieces = [piece[~np.isnan(known[piece])] for piece in pieces]
    lines = "".join(f'<polyline class="line known" points="{points(p, known[p])}"/>' for p in pieces if len(p) > 0)
    bands = "".join(
        f'<polygon class="band" points="{points(ahead, quantiles[lower])} '
        f'{points(ahead[::-1], quantiles[-1 - lower][::-1])}"/>'
        for lower in (0, 2)
    )
    median = f'<polyline class="line median" points="{points(ahead, quantiles[len(LEVELS) // 2])}"/>'
    inner, outer = (f"{LEVELS[-1 - lower] - LEVELS[lower]:.0%}" for lower in (2, 0))
    caption = (
        f"{html.escape(name)}: the last {len(known)} known values, and the median of the next {horizon} within bands "
        f"that hold {inner} and {outer} of the samples"
    )
    labels = {f"{low:.4g}": 0, f"{(low + high) / 2:.4g}": 0.5, f"{high:.4g}": 1}
    return draw_chart(bands + lines + median, len(known) + horizon - 1, height, labels, caption)


CSS = """
.bars { width: 100%; table-layout: fixed; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.bars caption, figcaption { text-align: left; padding: 6px 0; }
.bars th { width: 4.5em; text-align: right; padding: 2px 8px; font-weight: 600; overflow: hidden; white-space: pre; }
.bars.long th { width: 45%; text-overflow: ellipsis; }
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
.chart .known { stroke: var(--body-text-color); }
.chart .median { stroke: var(--color-accent); }
.chart .band { fill: var(--color-accent); fill-opacity: .2; }
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

# In place of Gradio's Sketchpad, which asks for a tool first, can't be used by keyboard and needs WebGL.
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
