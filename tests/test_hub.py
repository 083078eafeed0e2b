# SPDX-License-Identifier: Apache-2.0
"""Training, sharing and loading by way of a Hub, with the client libraries as they are; see hub_server.py."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hub_server import ELSEWHERE, Fault, Hub
from huggingface_hub import ModelCard
from PIL import Image
from test_train_causal_lm import RECIPE
from test_train_polyphonic_music import write_mat
from transformers import (
    AutoModelForAudioFrameClassification,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    GenerationConfig,
)

ROOT = Path(__file__).parent.parent
WRITES, READS, BERT = "hf_thatOfAnnaWrites", "hf_thatOfAnnaReads", "hf_thatOfBert"
TEXT = ("--train_file", "train.txt", "--validation_file", "train.txt")
LM_ONLY = ("tokenizer", "block_size", "stride", "eval_stride", "shift_windows")


class Machine:
    """A folder, a cache and a Hub; what its processes have said is kept."""

    said: list[str] = []

    def __init__(self, folder: Path, hub: Hub):
        self.folder, self.hub, self.home = folder, hub, folder / "home"
        self.folder.mkdir(exist_ok=True)

    def run(self, *command: str, token: str | None = None, packages=(ROOT, ROOT / "scripts"), **variables: str):
        environment = {**self.hub.environment(self.home, token, packages), **variables}
        process = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )
        self.said.append(process.stdout + process.stderr)
        return process

    def train(self, script: str, *flags: str, token: str | None = None):
        return self.run(str(ROOT / "scripts" / script), *flags, "--push_to_hub", token=token)

    def succeed(self, code: str, *arguments: str, packages=ELSEWHERE, **options):
        """Runs code where the package is not installed, as -S keeps its editable install off the path."""
        process = self.run("-S", "-c", code, *arguments, packages=packages, **options)
        assert process.returncode == 0, process.stderr
        return process


@pytest.fixture(scope="module")
def hub():
    with Hub({WRITES: ("anna", "write"), READS: ("anna", "read"), BERT: ("bert", "write")}) as hub:
        yield hub


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = [line for line in RECIPE.splitlines() if not line.startswith(LM_ONLY)]
    (folder / "short.yaml").write_text("\n".join(recipe))
    (folder / "train.txt").write_text("".join(f"line {i * i} of a text\n" for i in range(60)))
    write_mat(str(folder / "tunes.mat"), {"traindata": 6, "validdata": 3, "testdata": 3})
    months = [f"{2020 + month // 12}-{month % 12 + 1:02},{month % 12 + month * month % 5}" for month in range(60)]
    (folder / "sales.csv").write_text("\n".join(["month,sold", *months]))
    random = np.random.RandomState(0)
    images = [Image.fromarray(random.randint(0, 256, (4, 5), dtype=np.uint8)) for _ in range(24)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["odd", "even"])})
    rows = datasets.Dataset.from_dict({"image": images, "label": [index % 2 for index in range(24)]}, features)
    rows.to_parquet(folder / "pictures.parquet")
    return folder


@pytest.fixture
def machine(tmp_path, hub, data):
    """Another machine with the data, at a Hub without faults."""
    hub.faults.clear()
    hub.requests.clear()
    shutil.copytree(data, tmp_path / "machine", ignore=shutil.ignore_patterns("home", "tiny", "music", "sales"))
    return Machine(tmp_path / "machine", hub)


@pytest.fixture(scope="module")
def trained(hub, data):
    """The folder of a language model that is pushed while it trains, to a Hub that has its moments."""
    machine = Machine(data, hub)
    hub.faults[:] = [Fault("POST", "/commit/", 500), Fault("POST", "/preupload/", 429), Fault("PUT", "/lfs/")]
    strategy = ("--hub_strategy", "checkpoint", "--hub_always_push", "--hub_token", WRITES)
    process = machine.train("train_causal_lm.py", "recipe.yaml", *TEXT, "--output_dir", "tiny", *strategy)
    assert process.returncode == 0, process.stderr
    assert not any(fault.times for fault in hub.faults)
    assert "A push to the Hub failed; the training continues: HfHubHTTPError: " in process.stderr
    return data / "tiny"


@pytest.fixture(scope="module")
def music(hub, data):
    """The folder of a music model that two processes train."""
    hub.faults.clear()
    hub.requests.clear()
    script = ("--nproc_per_node", "2", str(ROOT / "scripts" / "train_polyphonic_music.py"), "short.yaml")
    flags = ("--data", "tunes.mat", "--output_dir", "music", "--use_cpu", "--push_to_hub", "--hub_revision", "draft")
    monarch = ("--projection_type", "monarch", "--local_rnn_num_heads", "2")
    process = Machine(data, hub).run("-m", "torch.distributed.run", *script, *flags, *monarch, token=WRITES)
    assert process.returncode == 0, process.stderr
    return data / "music"


@pytest.fixture(scope="module")
def forecaster(hub, data):
    """The folder of a model that forecasts."""
    hub.faults.clear()
    flags = ("short.yaml", "--train_file", "sales.csv", "--time_column", "month", "--horizon", "4")
    process = Machine(data, hub).train(
        "train_time_series.py", *flags, "--num_parallel_samples", "5", "--output_dir", "sales", token=WRITES
    )
    assert process.returncode == 0, process.stderr
    return data / "sales"


TAG = """
import sys
from huggingface_hub import HfApi

assert HfApi().whoami()["name"] == "anna"
HfApi().create_tag("anna/tiny", tag="fourth", revision=sys.argv[1])
"""

LOAD = """
import importlib.util, sys
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers import Trainer, TrainingArguments

assert importlib.util.find_spec("rtransformer_hf") is None, "the package must be missing here"
logits = {}
for revision in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained("anna/tiny", revision=revision, trust_remote_code=True)
    logits[revision] = model(torch.arange(12).view(2, 6)).logits
torch.save(logits, "logits.pt")
"""

USE = """
tokenizer = AutoTokenizer.from_pretrained("anna/tiny", trust_remote_code=True)
assert tokenizer.decode(tokenizer("line 16 of")["input_ids"]) == "line 16 of"
generator = pipeline("text-generation", model="anna/tiny", trust_remote_code=True)
assert generator("line", max_new_tokens=4, do_sample=False)[0]["generated_text"].startswith("line")
for auto_class in (AutoModel, AutoModelForSequenceClassification):  # the code serves every task
    auto_class.from_pretrained("anna/tiny", trust_remote_code=True)

input_ids = torch.arange(12).view(2, 6)
trainer = Trainer(model, TrainingArguments("smoothed", label_smoothing_factor=0.1, report_to="none", use_cpu=True))
smoothed = trainer.compute_loss(model, {"input_ids": input_ids, "labels": input_ids})
logits = model(input_ids).logits[:, :-1].flatten(0, 1)
torch.testing.assert_close(smoothed, F.cross_entropy(logits, input_ids[:, 1:].flatten(), label_smoothing=0.1))

mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
outputs = model(input_ids, attention_mask=mask, use_cache=True)
outputs.cache.batch_select_indices(torch.tensor([1]))
mask = torch.tensor([[1, 1, 1, 0, 0, 0, 1]])
padded = model(torch.tensor([[3]]), attention_mask=mask, cache=outputs.cache).logits[:, -1]
torch.testing.assert_close(padded, model(torch.tensor([[6, 7, 8, 3]])).logits[:, -1], atol=1e-5, rtol=0)

optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model.train()(torch.arange(12).view(2, 6), labels=torch.arange(12).view(2, 6)).loss.backward()
optimizer.step()
model.push_to_hub("anna/tuned")
"""


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.arange(12).view(2, 6)).logits


def test_a_model_that_was_pushed_while_it_trained(trained, hub, machine):
    repository = hub.repositories["anna/tiny"]
    assert {path: repository.files[path] for path in ("config.json", "model.safetensors", "tokenizer.json")} == {
        path: (trained / path).read_bytes() for path in ("config.json", "model.safetensors", "tokenizer.json")
    }
    generation_config = GenerationConfig(**json.loads(repository.files["generation_config.json"]))
    assert generation_config.eos_token_id == json.loads(repository.files["config.json"])["eos_token_id"]
    card = ModelCard(repository.files["README.md"].decode())
    assert 'from_pretrained("anna/tiny", ' in card.text and '"tiny"' not in card.text
    assert card.data.model_name == "tiny" and card.data.pipeline_tag == "text-generation"
    assert "--hub_token $HF_TOKEN" in card.text and repository.titles["End of training"] == repository.sha("main")

    older = repository.titles["Training in progress, step 4"]
    card = ModelCard(repository.commits[older]["README.md"].decode())
    assert "not finished yet." in card.text and "None so far." in card.text and "learning_curves.png" not in card.text
    assert card.data.eval_results is None
    machine.succeed(TAG + LOAD + USE, older, "fourth", "main", token=WRITES)
    loaded = torch.load(machine.folder / "logits.pt")
    torch.testing.assert_close(loaded["main"], logits(trained))
    torch.testing.assert_close(loaded[older], logits(trained / "checkpoint-4"))
    torch.testing.assert_close(loaded["fourth"], loaded[older])
    assert not torch.allclose(loaded["main"], loaded[older])

    tuned = hub.repositories["anna/tuned"].files
    code = {path for path in repository.files if path.endswith(".py") and "/" not in path}
    assert code >= {"modeling_rtransformer.py", "configuration_rtransformer.py", "local_rnn.py"}
    assert all(tuned[path] == repository.files[path] for path in code)
    assert json.loads(tuned["config.json"])["auto_map"] == json.loads(repository.files["config.json"])["auto_map"]
    assert tuned["model.safetensors"] != repository.files["model.safetensors"]

    (machine.folder / "logits.pt").unlink()
    machine.succeed(LOAD, older, "main", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    torch.testing.assert_close(torch.load(machine.folder / "logits.pt"), {key: loaded[key] for key in (older, "main")})


RESUME = """
import sys
from huggingface_hub import snapshot_download
import train_causal_lm

revision, *argv = sys.argv[1:]
snapshot_download("anna/tiny", revision=revision, allow_patterns="last-checkpoint/*", local_dir="pushed")
train_causal_lm.main(argv)
"""


def test_training_goes_on_from_a_pushed_checkpoint(trained, hub, machine):
    hub.repositories["anna/tiny"].private = True
    revision = hub.repositories["anna/tiny"].titles["Training in progress, step 4, checkpoint"]
    hub.faults.append(Fault("GET", "/lfs/"))  # a download that breaks off
    flags = ("recipe.yaml", *TEXT, "--output_dir", "tiny", "--resume_from_checkpoint", "pushed/last-checkpoint")
    machine.succeed(RESUME, revision, *flags, packages=(ROOT, ROOT / "scripts", *ELSEWHERE), token=READS)
    assert not hub.faults[0].times
    results, expected = (
        json.loads((folder / "all_results.json").read_text()) for folder in (machine.folder / "tiny", trained)
    )
    assert results["eval_loss"] == expected["eval_loss"]
    assert not (machine.folder / "tiny" / "checkpoint-4").exists()
    torch.testing.assert_close(logits(machine.folder / "tiny"), logits(trained), rtol=0, atol=0)


def test_of_two_processes_one_pushes(music, hub):
    for path in ("/api/repos/create", "/api/models/anna/music/branch/draft"):
        assert hub.requests.count(("POST", path)) == 1
    repository = hub.repositories["anna/music"]
    assert repository.sha("draft") == repository.titles["End of training"] != repository.sha("main")
    assert (
        b'from_pretrained("anna/music", revision="draft", trust'
        in repository.commits[repository.sha("draft")]["README.md"]
    )


USE_OTHERS = """
import importlib.util
import numpy as np
import torch
from huggingface_hub import HfApi
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModelForTimeSeriesPrediction
from transformers import AutoModelForAudioFrameClassification, AutoModelForSequenceClassification

assert importlib.util.find_spec("rtransformer_hf") is None, "the package must be missing here"
music = AutoModelForAudioFrameClassification.from_pretrained("anna/music", revision="draft", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("anna/pixels", trust_remote_code=True)
inputs = processor(np.arange(20, dtype=np.uint8).reshape(4, 5), return_tensors="pt")
classifier = AutoModelForSequenceClassification.from_pretrained("anna/pixels", trust_remote_code=True)
frames = torch.eye(88)[None, :9]
outputs = {"music": music(input_values=frames).logits, "pixels": classifier(**inputs).logits}
extractor = AutoFeatureExtractor.from_pretrained("anna/sales", trust_remote_code=True)
assert extractor.channel_names == ["sold", "sine of the season", "cosine of the season"]
forecaster = AutoModelForTimeSeriesPrediction.from_pretrained("anna/sales", trust_remote_code=True)
series = extractor(np.arange(30).reshape(10, 3), return_tensors="pt")["input_values"]
generator = torch.Generator().manual_seed(0)
samples = forecaster.forecast(series, future_covariates=torch.zeros(1, 4, 2), generator=generator).sequences
torch.save({"frames": frames, **inputs, **outputs, "series": series, "samples": samples}, "outputs.pt")
assert not HfApi().repo_exists("anna/pixels", token=False), "it is private"
"""


def test_a_push_that_fails_leaves_the_work_whole(music, forecaster, hub, machine):
    """The line is cut while the commit goes up; once the Hub answers again, another push completes."""
    hub.faults.append(Fault("POST", "/commit/"))
    pictures = ("--train_file", "pictures.parquet", "--image_column", "image", "--projection_type", "butterfly")
    repository = ("--hub_model_id", "anna/pixels", "--hub_private_repo", "true")
    flags = (*repository, "--bidirectional", "--output_dir", "pixels")
    process = machine.train(
        "train_sequence_classification.py", "short.yaml", *pictures, *flags, "--hub_strategy", "end", token=WRITES
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "train_sequence_classification.py: error: pushing to the Hub failed: " in process.stderr
    again = "python scripts/push_to_hub.py pixels anna/pixels"
    assert process.stderr.endswith(f"The model is complete in pixels; push it again with: {again}\n")
    out = machine.folder / "pixels"
    classifier = AutoModelForSequenceClassification.from_pretrained(out)
    assert not classifier.config.is_causal
    assert (out / "checkpoint-6" / "trainer_state.json").exists() and ModelCard.load(out / "README.md").data.metrics
    assert set(hub.repositories["anna/pixels"].files) == {".gitattributes"}

    process = machine.run(str(ROOT / "scripts" / "push_to_hub.py"), "pixels", "anna/pixels", token=WRITES)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith(f"{hub.url}/anna/pixels\n")

    elsewhere = Machine(machine.folder.parent / "elsewhere", hub)
    elsewhere.succeed(USE_OTHERS, token=READS)
    outputs = torch.load(elsewhere.folder / "outputs.pt")
    torch.testing.assert_close(outputs["pixels"], classifier(input_values=outputs["input_values"]).logits)
    played = AutoModelForAudioFrameClassification.from_pretrained(music)(input_values=outputs["frames"]).logits
    torch.testing.assert_close(outputs["music"], played)

    model = AutoModelForTimeSeriesPrediction.from_pretrained(forecaster)
    covariates, generator = torch.zeros(1, 4, 2), torch.Generator().manual_seed(0)
    samples = model.forecast(outputs["series"], future_covariates=covariates, generator=generator).sequences
    assert samples.shape == (1, 5, 4, 1)
    torch.testing.assert_close(outputs["samples"], samples)


def test_a_forecaster_is_pushed_with_its_card_and_feature_extractor(forecaster, hub):
    files = hub.repositories["anna/sales"].files
    for path in ("config.json", "model.safetensors", "preprocessor_config.json", "evaluation.json", "forecasts.png"):
        assert files[path] == (forecaster / path).read_bytes()
    assert {"feature_extraction_rtransformer.py", "modeling_rtransformer.py", "time_series_head.py"} < files.keys()
    card = ModelCard(files["README.md"].decode())
    assert 'AutoModelForTimeSeriesPrediction.from_pretrained("anna/sales", trust_remote_code=True)' in card.text
    assert card.data.pipeline_tag == "time-series-forecasting" and "| test | seasonal naive |" in card.text


REFUSED = """
import json, sys
import train_causal_lm
from rtransformer_hf.training.errors import UsageError

messages = []
for flags in json.loads(sys.argv[1]):
    try:
        train_causal_lm.main([*sys.argv[2:], *flags])
    except UsageError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""


def test_what_the_hub_refuses_is_told_before_the_training(hub, machine):
    hub.faults.append(Fault("POST", "/repos/create", 500))
    hub.create("anna/old")
    cases = [
        (["--hub_token", WRITES], "HfHubHTTPError: Server error '500 Internal Server Error'"),
        ([], "the Hub asks for a token that it knows: `hf auth login`"),
        (["--hub_token", "hf_nobodyHasThis"], "the Hub asks for a token that it knows"),
        (["--hub_token", READS], "the token may not write there"),
        (["--hub_token", READS, "--hub_model_id", "anna/free"], "the token may not write there"),
        (["--hub_token", BERT], "the token may not write there"),
        (["--hub_token", WRITES, "--hub_model_id", "anna/ti ny"], "anna/ti ny"),
    ]
    flags = ("recipe.yaml", *TEXT, "--output_dir", "new", "--push_to_hub", "--hub_model_id", "anna/old")
    process = machine.succeed(
        REFUSED, json.dumps([case for case, _ in cases]), *flags, packages=(ROOT, ROOT / "scripts", *ELSEWHERE)
    )
    messages = json.loads(process.stdout.splitlines()[-1])
    for message, (flags, expected) in zip(messages, cases, strict=True):
        name = flags[-1] if "--hub_model_id" in flags else "anna/old"
        assert message.startswith(f"--push_to_hub: can't push to {name!r}: ") and expected in message
    assert {path.name for path in (machine.folder / "new").iterdir()} == {"training_run.json"}


def test_no_token_is_left_anywhere(trained, hub):
    """In what was said, written, or pushed so far."""
    texts = [said.encode() for said in Machine.said]
    texts += [path.read_bytes() for path in trained.parent.parent.rglob("*") if path.is_file()]
    for repository in hub.repositories.values():
        texts += [content for files in repository.commits.values() for content in files.values()]
    assert any(b"--hub_token $HF_TOKEN" in text for text in texts)
    for token in (WRITES, READS, BERT):
        assert not any(token.encode() in text for text in texts)
