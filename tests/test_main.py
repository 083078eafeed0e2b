# SPDX-License-Identifier: Apache-2.0
"""`python -m rtransformer_hf` says what is installed and what would run."""

import platform

import torch
import transformers

from rtransformer_hf import __main__ as program
from rtransformer_hf.local_rnn import choose_implementation


def test_versions_and_implementation(capsys):
    program.main()
    printed = capsys.readouterr().out
    for version in (platform.python_version(), torch.__version__, transformers.__version__):
        assert version in printed
    implementation = choose_implementation(torch.empty(1, 1, 1), sequence_positions=None)
    assert f'"cpu": local_rnn_implementation="{implementation}"' in printed
    assert "quickstart.sh" in printed


def test_reasons(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ((device, reason),) = program.devices()
    assert device == "cpu" and "PyTorch sees no GPU" in reason

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr(program, "version_of", lambda package: "3.0")
    assert program.devices()[1] == ("cuda", "fused kernels, on a GPU")
    monkeypatch.setattr(program, "version_of", lambda package: program.NOT_INSTALLED)
    assert "pip install triton" in program.devices()[1][1]


def test_missing_packages_are_told():
    assert program.version_of("no-such-package") == program.NOT_INSTALLED
