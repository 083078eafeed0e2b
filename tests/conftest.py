import os

# Nothing in the tests may reach for the Hub; and two test workers share two cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported: without a GPU its kernels run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

from rtransformer_hf import RTransformerConfig


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_config():
    """Makes a configuration of a few thousand parameters; keyword arguments override its fields."""

    def make(**overrides):
        sizes = {"vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        # Weights of this size make attention and gates far from uniform, so that no difference hides.
        return RTransformerConfig(**{**sizes, "local_window_size": 4, "initializer_range": 0.15, **overrides})

    return make
