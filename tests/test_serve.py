# SPDX-License-Identifier: Apache-2.0
"""The server: completions, streams and errors by HTTP."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import SENTENCES
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils.import_utils import is_serve_available

if not is_serve_available():
    pytest.skip("the packages of the server are not installed", allow_module_level=True)

import httpx
import serve

from rtransformer_hf import RTransformerForCausalLM, RTransformerForSequenceClassification
from rtransformer_hf.training.errors import UsageError

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def checkpoint(text_model) -> str:
    return text_model("char")


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def start(checkpoint: str):
    """A client of a server of the checkpoint, until the generator goes on."""
    port = free_port()
    server = serve.serve(checkpoint, "localhost", port, device="cpu", non_blocking=True)
    with httpx.Client(base_url=f"http://localhost:{port}", timeout=60) as client:
        for _ in range(200):
            try:
                assert client.get("/health").status_code == 200
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        yield client
    server.kill_server()


@pytest.fixture(scope="module")
def client(checkpoint):
    yield from start(checkpoint)


@pytest.fixture(scope="module")
def chat_client(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    yield from start(str(folder))


def test_the_command(checkpoint):
    port = free_port()
    command = [sys.executable, serve.__file__, checkpoint, "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if "Uvicorn running" in line:
                    break
            prompt, rest = split(SENTENCES[0])
            url = f"http://localhost:{port}/v1/completions"
            answer = httpx.post(url, json={"prompt": prompt, "temperature": 0}, timeout=60)
            assert answer.json()["choices"][0]["text"] == rest
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130 and "serve.py: stopped." in process.stderr.read()
        finally:
            process.kill()


def split(sentence: str) -> tuple[str, str]:
    words = sentence.split(" ")
    return " ".join(words[:2]), " " + " ".join(words[2:]) + "\n"


def test_a_text_goes_on_to_its_end(client, checkpoint):
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [checkpoint]
    for sentence in SENTENCES:
        prompt, rest = split(sentence)
        answer = client.post("/v1/completions", json={"model": checkpoint, "prompt": prompt, "temperature": 0})
        assert answer.status_code == 200, answer.text
        [choice] = answer.json()["choices"]
        assert choice["text"] == rest and choice["finish_reason"] == "stop"
    cut = client.post("/v1/completions", json={"prompt": prompt, "temperature": 0, "max_tokens": 3}).json()
    assert cut["choices"][0]["text"] == rest[:3] and cut["choices"][0]["finish_reason"] == "length"


def stream(client, path: str, body: dict) -> list[dict]:
    with client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: {")]


def test_a_stream_gives_the_same_text_in_pieces(client):
    prompt, rest = split(SENTENCES[2])
    chunks = stream(client, "/v1/completions", {"prompt": prompt, "temperature": 0})
    pieces = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(pieces) == rest and sum(map(bool, pieces)) > 5
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_two_clients_at_once(client):
    prompts = [split(sentence) for sentence in SENTENCES] * 2
    barrier = threading.Barrier(2)

    def ask(index: int) -> list[str]:
        barrier.wait()
        texts = []
        for prompt, _ in prompts[index::2]:
            body = {"prompt": prompt, "temperature": 0}
            if index:
                chunks = stream(client, "/v1/completions", body)
                texts.append("".join(chunk["choices"][0]["text"] for chunk in chunks))
            else:
                texts.append(client.post("/v1/completions", json=body).json()["choices"][0]["text"])
        return texts

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, range(2)))
    assert answers == [[rest for _, rest in prompts[index::2]] for index in range(2)]


def test_a_temperature_draws_tokens(client):
    def draw(**options) -> str:
        body = {"prompt": "t", "max_tokens": 40, "temperature": 5.0, **options}
        return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

    assert draw(seed=1) == draw(seed=1) != draw(seed=2)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"prompt": ""}, "prompt: '' (expected"),
        ({}, "prompt: '' (expected"),
        ({"prompt": ["a", "b"]}, "prompt: ['a', 'b'] (expected"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: 0 (expected"),
        ({"prompt": "a", "temperature": "hot", "stream": True}, "temperature: 'hot' (expected"),
        ({"prompt": "a", "top_p": 2}, "top_p: 2 (expected"),
        ({"prompt": "a", "generation_config": "{"}, "Expecting property name"),
        ({"prompt": "a", "model": "another"}, "requested 'another'"),
        (["a"], "expected a JSON object"),
        (b"{", "Expecting property name"),
    ],
)
def test_bad_requests(client, body, named):
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and named in answer.text


def test_unknown_fields(client):
    answer = client.post("/v1/completions", json={"prompt": "a", "tempurature": 1})
    assert answer.status_code == 422 and "tempurature" in answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_messages_without_a_chat_template(client, path):
    answer = client.post(path, json={"messages": [{"role": "user", "content": "the cat"}]})
    assert answer.status_code == 400 and "needs a chat template" in answer.text


def test_messages_with_a_chat_template(chat_client):
    prompt, rest = split(SENTENCES[0])
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0}
    answer = chat_client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": rest}
    chunks = stream(chat_client, "/v1/chat/completions", body)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == rest
    answer = chat_client.post("/v1/responses", json={"input": prompt, "temperature": 0, "stream": False})
    assert answer.status_code == 200 and rest in [part["text"] for part in answer.json()["output"][0]["content"]]
    for messages in (None, [], "the cat", ["the cat"], [{"content": "a"}], [{"role": "user", "content": 1}]):
        answer = chat_client.post("/v1/chat/completions", json={"messages": messages})
        assert answer.status_code == 400 and "messages" in answer.text


def test_what_can_not_be_served(tmp_path, tiny_config, checkpoint, capsys):
    RTransformerForSequenceClassification(tiny_config()).save_pretrained(tmp_path)
    for bad, named in ((str(tmp_path), "it holds RTransformerForSequenceClassification"), ("./missing", "./missing")):
        with pytest.raises(UsageError, match="can't be used") as error:
            serve.main([bad])
        assert named in str(error.value)
    RTransformerForCausalLM(tiny_config()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"can't be used .*\(missing: model.layers.0.mlp.up_proj.weight\)"):
        serve.main([str(tmp_path)])
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: can't be listened on"):
            serve.main([checkpoint, "--port", str(port)])
    for flags, named in (
        (["--continuous_batching"], "no cache for the state"),
        (["--port", "0"], "--port: 0 (expected"),
    ):
        with pytest.raises(SystemExit) as stop:
            serve.main([checkpoint, *flags])
        assert stop.value.code == 2 and named in capsys.readouterr().err
