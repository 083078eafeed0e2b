# SPDX-License-Identifier: Apache-2.0
"""
Serves a causal language model over HTTP with OpenAI's API, by the server of `transformers serve`.

    python scripts/serve.py outputs/quickstart
    curl localhost:8000/v1/completions -H "Content-Type: application/json" \\
        -d '{"prompt": "The following", "max_tokens": 100, "temperature": 0.7, "stream": true}'

/v1/completions continues text. /v1/chat/completions and /v1/responses answer messages, for which the tokenizer needs a
chat template. Requests are answered one at a time. With temperature 0 the likeliest token is taken, otherwise tokens
are sampled. (`transformers serve` by itself opens only models that are part of Transformers.)
"""

import argparse
import socket
from typing import TYPE_CHECKING, Any

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.flags import CommandParser, number

if TYPE_CHECKING:
    from fastapi import FastAPI
    from transformers import PreTrainedTokenizerBase
    from transformers.cli.serve import Serve
    from transformers.cli.serving.model_manager import ModelManager

COMPLETIONS, CHAT_COMPLETIONS, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    serve(args.checkpoint, args.host, args.port, args.device, args.dtype)
    raise KeyboardInterrupt  # the server answers Ctrl-C itself: when it returns, it has been stopped


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("checkpoint", help="Folder or Hub id of a causal language model with its tokenizer.")
    parser.add_argument("--host", default="localhost", help="Address to listen on. (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=number(int, at_least=1, at_most=65535),
        default=8000,
        help="Port to listen on. (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="For example cpu or cuda:0. (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="For example bfloat16. (default: the checkpoint's)")
    parser.add_argument(
        "--continuous_batching",
        action="store_true",
        help="Not supported: its cache holds keys and values only, and LocalRNN layers also have a state.",
    )
    args = parser.parse_args(argv)
    if args.continuous_batching:
        parser.error(
            "--continuous_batching: Transformers' continuous batching has no cache for the state of LocalRNN layers "
            "(without the flag, requests are answered one at a time)"
        )
    return args


def serve(
    checkpoint: str, host: str, port: int, device: str = "auto", dtype: str = "auto", non_blocking: bool = False
) -> "Serve":
    """
    Serves a checkpoint until the process is interrupted, or returns at once with `non_blocking`: `kill_server` of what
    is returned ends it.

    Raises:
        UsageError: the server's packages are missing, there is no such checkpoint of a causal language model, or the
            port is taken.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.import_utils import is_serve_available

    from rtransformer_hf import RTransformerForCausalLM
    from rtransformer_hf.training.checkpoints import open_checkpoint
    from rtransformer_hf.training.loading import open_model
    from rtransformer_hf.training.model_arguments import CAUSAL_LM_ARCHITECTURES

    if not is_serve_available():
        raise UsageError("the server's packages are not installed (expected: pip install -e '.[serve]')")
    with open_checkpoint(checkpoint, "a causal language model with its tokenizer", *CAUSAL_LM_ARCHITECTURES):
        open_model(AutoModelForCausalLM, checkpoint)  # the server would make up weights that are missing
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UsageError(f"--host {host}, --port {port}: can't be listened on: {error}") from error

    from transformers.cli.serve import Serve
    from transformers.cli.serving import model_manager as manager
    from transformers.cli.serving import server

    # The server looks up a model's class by name in its own reference to the module `transformers`, which need not be
    # the module that `import transformers` gives: importing parts of the library can replace it.
    manager.transformers.RTransformerForCausalLM = RTransformerForCausalLM
    build_server = server.build_server

    def build_checked_server(model_manager, *args, **kwargs):
        draw_tokens(model_manager)
        return check_requests(build_server(model_manager, *args, **kwargs), tokenizer)

    server.build_server = build_checked_server
    try:
        return Serve(
            force_model=checkpoint, host=host, port=port, device=device, dtype=dtype, non_blocking=non_blocking
        )
    finally:
        server.build_server = build_server


def draw_tokens(model_manager: "ModelManager"):
    """Makes loaded models sample by default: greedy decoding would ignore a request's temperature."""
    load = model_manager.load_model_and_processor

    def load_to_draw(*args, **kwargs):
        model, processor = load(*args, **kwargs)
        model.generation_config.do_sample = True
        return model, processor

    model_manager.load_model_and_processor = load_to_draw


def check_requests(app: "FastAPI", tokenizer: "PreTrainedTokenizerBase") -> "FastAPI":
    """Makes the application answer a bad request with status 400 and what is wrong with it."""
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from jinja2 import TemplateError

    def refuse(message: str) -> JSONResponse:
        return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status_code=400)

    @app.middleware("http")
    async def check(request: Request, call_next):
        if request.method == "POST" and request.url.path in (COMPLETIONS, CHAT_COMPLETIONS, RESPONSES):
            try:
                find_faults(request.url.path, await request.json(), tokenizer)
            except ValueError as error:
                return refuse(str(error))
        return await call_next(request)

    async def on_bad_value(_request: Request, error: Exception) -> JSONResponse:
        return refuse(str(error))

    app.add_exception_handler(ValueError, on_bad_value)
    app.add_exception_handler(TemplateError, on_bad_value)  # a role that the chat template does not know, for one
    return app


def find_faults(path: str, body: Any, tokenizer: "PreTrainedTokenizerBase"):
    """
    Raises:
        ValueError: the request has a bad field.
    """
    if not isinstance(body, dict):
        raise ValueError(f"body: {body!r} (expected a JSON object)")

    def is_number(value: Any, *types: type) -> bool:
        return isinstance(value, types) and not isinstance(value, bool)

    at_least_one = (lambda value: is_number(value, int) and value >= 1, "an integer of at least 1")
    for name, (is_valid, expected) in {
        "max_tokens": at_least_one,
        "max_completion_tokens": at_least_one,
        "max_output_tokens": at_least_one,
        "temperature": (lambda value: is_number(value, int, float) and value >= 0, "a number of at least 0"),
        "top_p": (lambda value: is_number(value, int, float) and 0 < value <= 1, "more than 0 and at most 1"),
        "frequency_penalty": (lambda value: is_number(value, int, float) and value > -1, "a number of more than -1"),
        "seed": (lambda value: is_number(value, int) and 0 <= value < 2**32, "an integer from 0 to 2**32 - 1"),
        "stream": (lambda value: isinstance(value, bool), "true or false"),
        "generation_config": (lambda value: isinstance(value, str), "a string that holds a JSON object"),
    }.items():
        if body.get(name) is not None and not is_valid(body[name]):
            raise ValueError(f"{name}: {body[name]!r} (expected {expected})")
    if path == COMPLETIONS:
        prompt = body.get("prompt", "")
        if not isinstance(prompt, str):
            raise ValueError(f"prompt: {prompt!r} (expected a string)")
        if len(tokenizer(prompt)["input_ids"]) == 0:
            raise ValueError(f"prompt: {prompt!r} (expected a text of at least one token)")
        return
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{path} needs a chat template, and the checkpoint's tokenizer has none (tokenizer.chat_template); "
            f"{COMPLETIONS} works without one"
        )
    name = "messages" if path == CHAT_COMPLETIONS else "input"
    messages = body.get(name)
    if path == RESPONSES and isinstance(messages, str):
        return
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{name}: {messages!r} (expected a list of at least one message)")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{name}: {message!r} (expected a message with role and content)")
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise ValueError(f"{name}: content {message['content']!r} (expected a string or a list)")


if __name__ == "__main__":
    run_command(main)
