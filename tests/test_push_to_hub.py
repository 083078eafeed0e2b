# SPDX-License-Identifier: Apache-2.0
"""scripts/push_to_hub.py and a Hub: what it uploads opens elsewhere, and what it can't upload it says in words."""

import dataclasses
import json
import shutil

import pytest
import torch
from card_code import code_of, run_code
from hub_server import ELSEWHERE, Fault, Hub
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from test_hub import BERT, READS, ROOT, WRITES, Machine
from transformers import AutoModelForAudioFrameClassification, AutoModelForCausalLM

from rtransformer_hf.training.model_card import read_facts, render_card

CARDS = ROOT / "model_cards"
MOTIONS = json.loads((CARDS / "basic_motions" / "config.json").read_text())["label2id"]

# Each push of the list, as (arguments, token): its output and what it ends with. The Hub's answers are those of its
# faults in their turn. One process does them all, as each costs an import of torch.
PUSHES = """
import contextlib, io, json, os, sys
import push_to_hub
from rtransformer_hf.training.command_line import run_command

results, pushes = [], json.loads(sys.argv[1])
sys.argv = ["scripts/push_to_hub.py"]
for arguments, token in pushes:
    os.environ["HF_TOKEN"] = token
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            run_command(lambda: push_to_hub.main(arguments))
    except SystemExit as stop:
        results.append((output.getvalue(), stop.code))
    else:
        results.append((output.getvalue(), None))
print(json.dumps(results))
"""

LOAD = """
import importlib.util
import torch
from transformers import AutoModelForCausalLM, AutoModelForAudioFrameClassification, AutoTokenizer

assert importlib.util.find_spec("rtransformer_hf") is None, "the package must be missing here"
tokenizer = AutoTokenizer.from_pretrained("anna/text", trust_remote_code=True)
inputs = tokenizer("the market", return_tensors="pt")
text = AutoModelForCausalLM.from_pretrained("anna/text", revision="draft", trust_remote_code=True)
tune = AutoModelForAudioFrameClassification.from_pretrained("anna/tune", trust_remote_code=True)
frames = torch.eye(88)[None, :9]
outputs = {"text": text(**inputs).logits, "tune": tune(input_values=frames).logits}
torch.save({**inputs, "frames": frames, **outputs}, "outputs.pt")
"""

# What is wrong: with the arguments, the token, a changed copy of a folder, or the Hub. Then part of what is said.
REFUSED = {
    "name": (["card", "anna/te xt"], WRITES, "repository: 'anna/te xt' is not a valid name"),
    "namespace": (["card", "text"], WRITES, "repository: no owner in 'text' (expected user/name)"),
    "licence": (["card", "anna/new", "--license", "apache"], WRITES, "--license: unknown to the Hub: 'apache'"),
    "folder": (["nowhere", "anna/new"], WRITES, "folder: no such folder: 'nowhere'"),
    "facts": (["forged", "anna/new"], WRITES, "model_card.json: no facts of a card (expected JSON with task, "),
    "no model": (["empty", "anna/new"], WRITES, "folder: no config.json in 'empty'"),
    "no card": (["cardless", "anna/new"], WRITES, "folder: no README.md in 'cardless'"),
    "pickle": (["pickled", "anna/new"], WRITES, "folder: no model*.safetensors in 'pickled'"),
    "code": (["codeless", "anna/new"], WRITES, "holds FooForCausalLM without its code"),
    "configuration": (
        ["misconfigured", "anna/new"],
        WRITES,
        "folder: 'misconfigured' can't be used: JSONDecodeError: ",
    ),
    "weights": (["partial", "anna/new"], WRITES, "the weights do not match config.json"),
    "shapes": (["reshaped", "anna/new"], WRITES, "the weights do not match config.json: {'mismatched_keys'"),
    "numbers": (["diverged", "anna/new"], WRITES, "the model's outputs are not finite"),
    "metadata": (["badly_described", "anna/new"], WRITES, "folder: 'badly_described' can't be used: ValueError: "),
    "no token": (["card", "anna/new"], "", "the Hub asks for a token that it knows: `hf auth login`"),
    "unknown token": (["card", "anna/new"], "hf_nobodyHasThis", "the Hub asks for a token that it knows"),
    "token to read": (["card", "anna/new"], READS, "the token may not write there"),
    "another's": (["card", "anna/new"], BERT, "the token may not write there"),
    "token to read, a repository that is there": (["card", "anna/text"], READS, "the token may not write there"),
    "public": (["card", "anna/text", "--private"], WRITES, "--private: 'anna/text' is public already"),
    "fault": (["card", "anna/text"], WRITES, "429 Too Many Requests for url: "),
}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The Hub after all pushes, the machine that made them, and their results."""
    with Hub({WRITES: ("anna", "write"), READS: ("anna", "read"), BERT: ("bert", "write")}) as hub:
        machine = Machine(tmp_path_factory.mktemp("machine"), hub)
        folder = machine.folder
        shutil.copytree(CARDS / "ptb_char_small", folder / "card")
        for name in ("training_args.bin", "trainer_state.json", "notes.pkl"):
            (folder / "card" / name).write_text("to be left behind")
        shutil.copytree(folder / "card", folder / "card" / "checkpoint-1")
        bad_files = ("cardless", "pickled", "badly_described", "misconfigured", "forged")
        for name in (*bad_files, "codeless", "partial", "reshaped", "diverged"):
            shutil.copytree(CARDS / "ptb_char_small", folder / name)
        (folder / "empty").mkdir()
        (folder / "cardless" / "README.md").unlink()
        (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
        (folder / "forged" / "model_card.json").write_text('{"task": "guessing"}')
        config = folder / "codeless" / "config.json"
        config.write_text(config.read_text().replace("RTransformerForCausalLM", "FooForCausalLM"))
        (folder / "misconfigured" / "config.json").write_text("{")
        weights = load_file(folder / "card" / "model.safetensors")
        ruined = {**weights, "lm_head.bias": torch.full_like(weights["lm_head.bias"], torch.nan)}
        save_file(ruined, folder / "diverged" / "model.safetensors", metadata={"format": "pt"})
        reshaped = {**weights, "lm_head.bias": weights["lm_head.bias"][1:].clone()}
        save_file(reshaped, folder / "reshaped" / "model.safetensors", metadata={"format": "pt"})
        del weights["lm_head.bias"]
        save_file(weights, folder / "partial" / "model.safetensors", metadata={"format": "pt"})
        (folder / "badly_described" / "README.md").write_text("---\n- a list\n---\n")
        shutil.copytree(CARDS / "nottingham", folder / "unlicensed")
        facts = dataclasses.replace(read_facts(folder / "unlicensed"), license=None)
        (folder / "unlicensed" / "model_card.json").write_text(facts.to_json())
        (folder / "unlicensed" / "README.md").write_text(render_card(facts))

        pushes = {
            "dry": (["card", "anna/dry", "--dry_run"], WRITES),
            "unlicensed": (["unlicensed", "anna/dry", "--dry_run"], WRITES),
            "text": (["card", "anna/text", "--revision", "draft"], WRITES),
            "tune": ([str(CARDS / "nottingham_joint"), "anna/tune", "--private"], WRITES),
            "pixels": ([str(CARDS / "smnist_small"), "anna/pixels", "--revision", "draft"], WRITES),
            "sales": ([str(CARDS / "air_passengers"), "anna/sales"], WRITES),
            "motions": ([str(CARDS / "basic_motions"), "anna/motions"], WRITES),
            "label": ([str(next(CARDS.glob("trec_*"))), "anna/label", "--license", "mit"], WRITES),
            **{name: (arguments, token) for name, (arguments, token, _) in REFUSED.items()},
            "again": (["card", "anna/text"], WRITES),
        }
        hub.faults.append(Fault("POST", "/anna/text/commit/main", 429))
        packages = (ROOT, ROOT / "scripts", *ELSEWHERE)
        process = machine.succeed(PUSHES, json.dumps(list(pushes.values())), packages=packages)
        yield hub, machine, dict(zip(pushes, json.loads(process.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(pushed, name):
    _, _, results = pushed
    _, said = results[name]
    assert said.startswith("push_to_hub.py: error: ") and REFUSED[name][-1] in said and "\n" not in said


def test_nothing_is_made_for_what_is_refused(pushed):
    hub, _, results = pushed
    names = ("text", "tune", "pixels", "label", "sales", "motions")
    assert set(hub.repositories) == {f"anna/{name}" for name in names}
    listed, stopped = results["dry"]
    assert stopped is None and "model.safetensors" in listed and " MB  to anna/dry\nDry run: nothing was up" in listed
    assert "Not checked: the network, the token and whether it may write to anna/dry, whether that name is" in listed
    assert "Dry run" not in results["text"][0] and "licence" not in listed
    assert results["unlicensed"][0].startswith("The card states no licence; --license states one.\n")
    assert results["again"][0].endswith(f"{hub.url}/anna/text\n") and results["again"][1] is None


def test_what_is_pushed(pushed):
    hub, _, results = pushed
    text, tune = hub.repositories["anna/text"], hub.repositories["anna/tune"]
    listed, _ = results["text"]
    assert listed.endswith(f"{hub.url}/anna/text/tree/draft\n")
    files = text.commits[text.branches["draft"]]
    kept = {path.name for path in (CARDS / "ptb_char_small").iterdir()}
    code = {path for path in files if path.endswith(".py")}
    assert set(files) == {".gitattributes", "generation_config.json", *kept, *code}
    assert code >= {"modeling_rtransformer.py", "configuration_rtransformer.py", "local_rnn.py"}
    for path in set(files) - {".gitattributes"}:
        assert f"{len(files[path]) / 1e6:.3f} MB  {path}\n" in listed
    for path in kept - {"README.md", "model_card.json", "config.json"}:
        assert files[path] == (CARDS / "ptb_char_small" / path).read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert 'from_pretrained("anna/text", ' in card.text and "model_cards/" not in card.text
    assert card.data.license == "apache-2.0" and "import rtransformer_hf" not in card.text
    assert ModelCard(hub.repositories["anna/label"].files["README.md"].decode()).data.license == "mit"
    assert card.data.model_name == "text" and "\n# text\n" in card.text
    described = {"README.md", "model_card.json"}  # by its branch
    assert tune.private and not text.private and text.files.keys() == files.keys()
    assert all(text.files[path] == files[path] for path in files.keys() - described)
    assert len(text.commits) == 3 and len(tune.commits) == 2  # with the initial ones: a push is one commit


@pytest.mark.parametrize(("name", "card"), [("sales", "air_passengers"), ("motions", "basic_motions")])
def test_feature_extractors_go_up_as_they_are(pushed, name, card):
    files = pushed[0].repositories[f"anna/{name}"].files
    settings = json.loads(files["preprocessor_config.json"])
    assert settings.pop("auto_map") == {
        "AutoFeatureExtractor": "feature_extraction_rtransformer.RTransformerFeatureExtractor"
    }
    assert settings == json.loads((CARDS / card / "preprocessor_config.json").read_text())
    assert "feature_extraction_rtransformer.py" in files and "image_processing_rtransformer.py" not in files


def test_it_opens_elsewhere(pushed):
    """Where the package is not installed: by the names of its Auto classes, and by the code that its card prints."""
    hub, machine, _ = pushed
    names = {"text": "main", "tune": "main", "pixels": "draft", "label": "main", "sales": "main", "motions": "main"}
    repositories = {name: hub.repositories[f"anna/{name}"] for name in names}
    commits = {name: repositories[name].commits[repositories[name].branches[names[name]]] for name in names}
    cards = {name: files["README.md"].decode() for name, files in commits.items()}
    code = {name: (code_of(card), machine.folder) for name, card in cards.items()}
    environment = hub.environment(machine.folder / "elsewhere", READS, ELSEWHERE)
    printed = run_code({**code, "load": (LOAD, machine.folder)}, environment, ["-S"])
    assert printed["text"].startswith("the ") and len(printed["text"]) > 100
    assert printed["tune"].startswith("torch.Size([1, 101, 88]) with ")
    assert printed["pixels"].strip().isdigit() and "'score': " in printed["label"]
    assert "longest river" in code["label"][0]
    assert printed["sales"].startswith("(1, 12, 1) True") and printed["motions"].strip() in MOTIONS

    outputs = torch.load(machine.folder / "outputs.pt")
    text = AutoModelForCausalLM.from_pretrained(CARDS / "ptb_char_small")
    torch.testing.assert_close(outputs["text"], text(outputs["input_ids"]).logits)
    tune = AutoModelForAudioFrameClassification.from_pretrained(CARDS / "nottingham_joint")
    torch.testing.assert_close(outputs["tune"], tune(input_values=outputs["frames"]).logits)
