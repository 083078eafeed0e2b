# SPDX-License-Identifier: Apache-2.0
"""`python -m rtransformer_hf`: installed versions, and the LocalRNN implementation that runs on each device."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from . import __version__
from .local_rnn import choose_implementation

# Optional packages and the feature that needs them.
OPTIONAL_PACKAGES = {
    "triton": "the LocalRNN's kernels on a GPU",
    "accelerate": "training",
    "datasets": "training",
    "peft": "LoRA",
    "onnxruntime": "export",
    "torchao": "quantisation",
    "gradio": "the demo",
}
NOT_INSTALLED = "not installed"


def main():
    print(f"rtransformer_hf {__version__}")
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, Transformers {version('transformers')}")
    for package, purpose in OPTIONAL_PACKAGES.items():
        print(f"  {package:<12}{version_of(package):<16}{purpose}")
    for device, reason in devices():
        implementation = choose_implementation(torch.empty(1, 1, 1, device=device), sequence_positions=None)
        print(f'LocalRNN on "{device}": local_rnn_implementation="{implementation}": {reason}')
    print("Start: `bash scripts/quickstart.sh` in the repository trains a model in minutes; README.md has the rest.")


def devices() -> list[tuple[str, str]]:
    """The available devices, each with the reason for the chosen implementation."""
    threads = torch.get_num_threads()
    cpu = f"blocks of positions that stay in cache, on {threads} thread{'s' * (threads > 1)}"
    if not torch.cuda.is_available():
        return [("cpu", f"{cpu}; PyTorch sees no GPU")]
    has_triton = version_of("triton") != NOT_INSTALLED
    cuda = "fused kernels" if has_triton else "plain PyTorch, slower than the kernels, which need `pip install triton`"
    return [("cpu", cpu), ("cuda", f"{cuda}, on {torch.cuda.get_device_name()}")]


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


if __name__ == "__main__":
    main()
