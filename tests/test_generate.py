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
"""The script that writes text from a checkpoint."""

import io
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import generate
from new_tokenizers import load_tokenizer

from rtransformer_hf import RTransformerForCausalLM, RTransformerForSequenceClassification


@pytest.fixture
def checkpoint(tmp_path, tiny_config):
    tokenizer = load_tokenizer("char", ["abcdefgh \n"])
    tokenizer.save_pretrained(tmp_path)
    RTransformerForCausalLM(tiny_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    return str(tmp_path)


def test_text_is_streamed_as_it_is_made(checkpoint, capsys, monkeypatch):
    pieces = []
    monkeypatch.setattr(
        generate.TextStreamer, "on_finalized_text", lambda self, text, stream_end=False: pieces.append(text)
    )
    generate.main([checkpoint, "a b", "--max_new_tokens", "60"])
    assert len(pieces) > 2
    text = "".join(pieces)
    assert text.startswith("a b") and len(text) == 63 and set(text) <= set("abcdefgh \n\N{REPLACEMENT CHARACTER}")


def test_the_same_seed_gives_the_same_text(checkpoint, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        generate.main([checkpoint, "a", "--max_new_tokens", "30", "--seed", seed])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_without_sampling_the_seed_does_not_matter(checkpoint, capsys):
    texts = []
    for seed in ("1", "2"):
        generate.main([checkpoint, "a", "--no-do_sample", "--max_new_tokens", "30", "--seed", seed])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_the_prompt_may_come_from_standard_input(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("abba"))
    generate.main([checkpoint, "--max_new_tokens", "5"])
    assert capsys.readouterr().out.startswith("abba")


def test_unknown_characters_of_the_prompt_are_counted(checkpoint, capsys):
    generate.main([checkpoint, "aXYb", "--max_new_tokens", "5"])
    assert "2 of the prompt's 4 tokens are unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--temperature", "0"], "--temperature 0.0"),
        (["--top_p", "1.5"], "--top_p 1.5"),
        (["--top_k", "-1"], "--top_k -1"),
        (["--max_new_tokens", "0"], "--max_new_tokens 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--temp", "1"], "--temp"),
    ],
)
def test_bad_flags(capsys, flags, named):
    with pytest.raises(SystemExit) as stop:
        generate.main(["any", "a", *flags])
    assert stop.value.code == 2 and named in capsys.readouterr().err


def test_what_is_no_causal_language_model(tmp_path, tiny_config, checkpoint):
    RTransformerForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "classifier")
    (tmp_path / "empty").mkdir()
    for bad, named in (
        ("classifier", "it holds RTransformerForSequenceClassification"),
        ("empty", "can't be used"),
        ("missing", "can't be used"),
    ):
        path = str(tmp_path / bad)
        with pytest.raises(SystemExit) as stop:
            generate.main([path, "a"])
        assert path in stop.value.code and named in stop.value.code
        assert "causal language model" in stop.value.code


def test_a_prompt_without_tokens(checkpoint):
    with pytest.raises(SystemExit, match="prompt '' holds no token"):
        generate.main([checkpoint, ""])
