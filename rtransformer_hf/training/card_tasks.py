# SPDX-License-Identifier: Apache-2.0
"""What model cards say of each task: example code, metrics, limits."""

from dataclasses import dataclass, field


@dataclass
class Task:
    """What cards of a task have in common."""

    pipeline_tag: str
    description: str
    unit: str  # of a window of the LocalRNN
    usage: str  # with {import_code}, {checkpoint}, {options} and {example}
    metrics: tuple[str, ...]
    metrics_note: str
    limits: str
    loss_unit: str
    more_notes: dict[str, str] = field(default_factory=dict)  # on metrics that only some cards have
    contexts: tuple[str, str] = ("", "")  # {context} of notes and limits: what a position sees, causal or not


CLASSIFIER_LIMITS = (
    "For any input it returns one of its training labels, with the errors and biases of its training data. It has "
    "not been tested on {inputs} of other kinds."
)

CLASSIFIER_NOTES = {
    "macro_f1": "Macro F1 is the mean of the labels' F1.",
    "auroc": "AUROC is the mean of the areas under the labels' ROC curves, each against the rest.",
    "calibration_error": "Calibration error says how far scores are from the share of right answers among those with "
    "a like score, on average (15 bins).",
}

MULTI_LABEL_METRICS = ("accuracy", "micro_f1", "macro_f1", "auroc", "calibration_error")
MULTI_LABEL_NOTE = (
    "Accuracy is the share of a split's {inputs} that are right in all labels; a label is predicted where its score "
    "is above 0.5. Micro F1 counts all labels of all {inputs} alike."
)
REGRESSION_METRICS = ("mae", "r2", "spearman")
REGRESSION_NOTE = (
    "MAE is the mean absolute error, r2 the share of the variance that is explained, and spearman the rank "
    "correlation of predictions and labels."
)
REGRESSION_LIMITS = (
    "For any input it predicts numbers like those of its training data, with that data's errors and biases. It has "
    "not been tested on {inputs} of other kinds."
)
IMAGE_USAGE = """\
{import_code}from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSequenceClassification

processor = AutoImageProcessor.from_pretrained({checkpoint}{options})
model = AutoModelForSequenceClassification.from_pretrained({checkpoint}{options})
image = Image.new({example})  # a black one, in place of Image.open("yours.png")
inputs = processor(image, return_tensors="pt")"""

SERIES_USAGE = """\
{import_code}import numpy as np
from transformers import AutoFeatureExtractor, AutoModel{model_kind}

extractor = AutoFeatureExtractor.from_pretrained({checkpoint}{options})
model = AutoModel{model_kind}.from_pretrained({checkpoint}{options}).eval()
series = np.random.default_rng(0).normal(size=(50, {channels}))  # yours: (steps, channels)
inputs = extractor(series, return_tensors="pt")"""

TASKS = {
    "language-modeling": Task(
        pipeline_tag="text-generation",
        description="A causal language model",
        unit="tokens",
        usage="""\
{import_code}from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({checkpoint}{options})
model = AutoModelForCausalLM.from_pretrained({checkpoint}{options})
prompt = tokenizer({example}, return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, do_sample=True, temperature=0.8, max_new_tokens=100)[0]))""",
        metrics=("perplexity", "bits_per_character"),
        metrics_note="Every token of a split but the first is predicted exactly once. Perplexity is per token.",
        limits="It continues text in the manner of its training data, errors and biases included, and knows nothing "
        "else. Do not take what it writes as fact.",
        loss_unit="nats per token",
    ),
    "text-classification": Task(
        pipeline_tag="text-classification",
        description="A classifier of texts",
        unit="tokens",
        usage="""\
{import_code}from transformers import pipeline

classifier = pipeline("text-classification", model={checkpoint}{options})
print(classifier({example}))""",
        metrics=("accuracy", "macro_f1", "auroc", "calibration_error"),
        metrics_note="Accuracy is the share of texts whose label gets the highest score.",
        limits=CLASSIFIER_LIMITS.format(inputs="texts"),
        loss_unit="nats per text",
        more_notes=CLASSIFIER_NOTES,
    ),
    "multi-label-text-classification": Task(
        pipeline_tag="text-classification",
        description="A classifier of texts that may have several labels",
        unit="tokens",
        usage="""\
{import_code}from transformers import pipeline

classifier = pipeline("text-classification", model={checkpoint}{options}, top_k=None)
print(classifier({example}))  # a label holds where its score is above 0.5""",
        metrics=MULTI_LABEL_METRICS,
        metrics_note=MULTI_LABEL_NOTE.format(inputs="texts"),
        limits=CLASSIFIER_LIMITS.format(inputs="texts"),
        loss_unit="nats per label",
        more_notes=CLASSIFIER_NOTES,
    ),
    "text-regression": Task(
        pipeline_tag="text-classification",
        description="A model that predicts a number from a text",
        unit="tokens",
        usage="""\
{import_code}from transformers import pipeline

scorer = pipeline("text-classification", model={checkpoint}{options}, function_to_apply="none")
print(scorer({example}))""",
        metrics=REGRESSION_METRICS,
        metrics_note=REGRESSION_NOTE,
        limits=REGRESSION_LIMITS.format(inputs="texts"),
        loss_unit="squared error",
    ),
    "token-classification": Task(
        pipeline_tag="token-classification",
        description="A tagger of words",
        unit="tokens",
        usage="""\
{import_code}from transformers import pipeline

tagger = pipeline("token-classification", model={checkpoint}{options})
print(tagger({example}, ignore_labels=[]))""",
        metrics=("span_f1", "span_precision", "span_recall", "macro_f1", "accuracy"),
        metrics_note="Accuracy is the share of a split's words whose own tag gets the highest score, at the word's "
        "first token.",
        limits="{context}It returns its training tags, with the errors and biases of its training data, and has not "
        "been tested on texts of other kinds.",
        loss_unit="nats per word",
        more_notes={
            "span_f1": "A span is right where its first word, its last word and its type are, by seqeval.",
            "macro_f1": "Macro F1 is the mean of the tags' F1.",
        },
        contexts=(
            "It sees a word and the text before it, not what follows. ",
            "It needs the text after a word as well as the text before it. ",
        ),
    ),
    "image-classification": Task(
        pipeline_tag="image-classification",
        description="A classifier of images as pixel sequences",
        unit="pixels",
        usage=f"""\
{IMAGE_USAGE}
print(model.config.id2label[model(**inputs).logits.argmax().item()])""",
        metrics=("accuracy", "macro_f1", "auroc", "calibration_error"),
        metrics_note="Accuracy is the share of images whose label gets the highest score.",
        limits=CLASSIFIER_LIMITS.format(inputs="images"),
        loss_unit="nats per image",
        more_notes=CLASSIFIER_NOTES,
    ),
    "multi-label-image-classification": Task(
        pipeline_tag="image-classification",
        description="A classifier of images, as pixel sequences, that may have several labels",
        unit="pixels",
        usage=f"""\
{IMAGE_USAGE}
scores = model(**inputs).logits.sigmoid()[0].tolist()
print([(model.config.id2label[index], score) for index, score in enumerate(scores)])  # it has those above 0.5""",
        metrics=MULTI_LABEL_METRICS,
        metrics_note=MULTI_LABEL_NOTE.format(inputs="images"),
        limits=CLASSIFIER_LIMITS.format(inputs="images"),
        loss_unit="nats per label",
        more_notes=CLASSIFIER_NOTES,
    ),
    "image-regression": Task(
        pipeline_tag="image-classification",
        description="A model that predicts a number from an image, as a pixel sequence",
        unit="pixels",
        usage=f"""\
{IMAGE_USAGE}
print(model(**inputs).logits.item())""",
        metrics=REGRESSION_METRICS,
        metrics_note=REGRESSION_NOTE,
        limits=REGRESSION_LIMITS.format(inputs="images"),
        loss_unit="squared error",
    ),
    "time-series-forecasting": Task(
        pipeline_tag="time-series-forecasting",
        description="A model that forecasts time series",
        unit="steps",
        usage="""\
{import_code}import torch
from transformers import AutoFeatureExtractor, AutoModelForTimeSeriesPrediction

extractor = AutoFeatureExtractor.from_pretrained({checkpoint}{options})
model = AutoModelForTimeSeriesPrediction.from_pretrained({checkpoint}{options}).eval()
known = torch.randn({context_length}, {channels})  # yours: (steps, {covariates} of these channels being covariates)
inputs = extractor(known, return_tensors="pt")
forecast = model.forecast(
    inputs.input_values,
    horizon={horizon},
    future_covariates=torch.zeros(1, {horizon}, {covariates}),  # of the steps to come, normalised
    generator=torch.Generator().manual_seed(0),
)
low, median, high = forecast.sequences.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=1)  # (1, {horizon}, targets)
print(tuple(median.shape), bool((low <= high).all()))""",
        metrics=("mase", "smape", "weighted_quantile_loss", "coverage_80"),
        metrics_note="MASE is the mean absolute error of the median forecast, divided by that of repeating the last "
        "season within the training steps; sMAPE is in percent. The weighted quantile loss, over the levels 0.1 to "
        "0.9, approximates the CRPS, relative to the mean absolute value. Coverage 80 is the share of values between "
        "the quantiles 0.1 and 0.9, ideally 0.8. All steps that are judged come after all training steps.",
        limits="It continues the patterns of its training series. It does not foresee new kinds of events, or changes "
        "of level or season after the training steps; bands show what such series usually did, not all that "
        "is possible.",
        loss_unit="loss per value, after scaling",
    ),
    "time-series-classification": Task(
        pipeline_tag="time-series-forecasting",
        description="A classifier of time series",
        unit="steps",
        usage=f"""\
{SERIES_USAGE}
print(model.config.id2label[model(**inputs).logits.argmax().item()])""",
        metrics=("accuracy", "macro_f1"),
        metrics_note="Accuracy is the share of a split's series whose own label gets the highest score; macro F1 is "
        "the mean of the classes' F1. The nearest neighbour is the training series at the smallest Euclidean "
        "distance.",
        limits=CLASSIFIER_LIMITS.format(inputs="series"),
        loss_unit="nats per series",
    ),
    "time-series-labelling": Task(
        pipeline_tag="time-series-forecasting",
        description="A model that labels each step of a time series",
        unit="steps",
        usage=f"""\
{SERIES_USAGE}
print([model.config.id2label[index] for index in model(**inputs).logits[0].argmax(-1).tolist()])""",
        metrics=("accuracy", "macro_f1"),
        metrics_note="Accuracy is the share of a split's steps whose own label gets the highest score, from {context};"
        " macro F1 is the mean of the classes' F1.",
        limits=CLASSIFIER_LIMITS.format(inputs="series"),
        loss_unit="nats per step",
        contexts=("the steps up to it", "all steps of its series"),
    ),
    "time-series-regression": Task(
        pipeline_tag="time-series-forecasting",
        description="A model that predicts a number from a time series",
        unit="steps",
        usage=f"""\
{SERIES_USAGE}
print(model(**inputs).logits[0].tolist())""",
        metrics=("mae", "rmse", "r2"),
        metrics_note="Mean absolute error, root of the mean squared error, and the share of the variance that is "
        "explained, over all labels of a split.",
        limits="For any input it predicts numbers like those of its training data. It has not been tested on series "
        "of other kinds.",
        loss_unit="squared error",
    ),
    "polyphonic-music": Task(
        pipeline_tag="time-series-forecasting",
        description="A model of polyphonic music",
        unit="frames",
        usage="""\
{import_code}import torch
from transformers import AutoModelForAudioFrameClassification

model = AutoModelForAudioFrameClassification.from_pretrained({checkpoint}{options})
silence = torch.zeros(1, 1, 88)  # (batch, frames, keys from A0 to C8)
tune = model.sample(silence, max_new_frames=100, generator=torch.Generator().manual_seed(0))
print(tune.shape, "with", int(tune.sum()), "keys sounding")""",
        metrics=("nll_per_frame",),
        metrics_note="Negative log-likelihood in nats, summed over the 88 keys of a frame and averaged over all "
        "frames of a split but the first of each tune; each is predicted from all frames before it in its tune.",
        limits="It knows the style of the tunes that it was trained on and no other; frames say which keys sound, not "
        "how loud or whether a key is struck again; tunes much longer than those in training may lose their thread.",
        loss_unit="nats per frame",
    ),
}
