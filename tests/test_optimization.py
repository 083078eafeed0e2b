# SPDX-License-Identifier: Apache-2.0
"""Muon and AdamW as one optimizer."""

from types import SimpleNamespace

import pytest
import torch

from rtransformer_hf import RTransformerForCausalLM, RTransformerForSequenceClassification
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.optimization import MuonWithAdamW, WeightAverage, block_matrices
from rtransformer_hf.training.output_folder import ResumableTrainingArguments
from rtransformer_hf.training.run import ReportingTrainer


def make_optimizer(model: torch.nn.Module, **flags) -> MuonWithAdamW:
    weights = dict(model.named_parameters())
    matrices = [weights.pop(name) for name in block_matrices(model)]
    return MuonWithAdamW(matrices, [{"params": list(weights.values())}], lr=1e-2, **flags)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, num_steps: int):
    input_ids = torch.arange(12)[None] % 7
    for _ in range(num_steps):
        model(input_ids, labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_matrices_of_the_blocks_alone_go_to_muon(tiny_config):
    model = RTransformerForSequenceClassification(tiny_config(num_hidden_layers=1))
    assert block_matrices(model) == [
        f"model.layers.0.{name}.weight"
        for name in (
            *("local_rnns.0.cell.input_proj", "local_rnns.0.cell.recurrent_proj"),
            *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
            *("mlp.up_proj", "mlp.down_proj"),
        )
    ]


def test_each_part_steps_as_it_does_alone(tiny_config):
    model = RTransformerForCausalLM(tiny_config())
    twin = RTransformerForCausalLM(tiny_config())
    twin.load_state_dict(model.state_dict())
    weights = dict(twin.named_parameters())
    matrices = [weights.pop(name) for name in block_matrices(twin)]
    alone = [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(list(weights.values()), lr=1e-2, weight_decay=0.01),
    ]
    optimizer = make_optimizer(model, muon_lr=3e-3, weight_decay=0.1)
    schedules = [torch.optim.lr_scheduler.LinearLR(part, 0.5, total_iters=4) for part in [optimizer, *alone]]
    for _ in range(4):
        train(model, optimizer, 1)
        input_ids = torch.arange(12)[None] % 7
        twin(input_ids, labels=input_ids).loss.backward()
        for part in alone:
            part.step()
            part.zero_grad()
        for schedule in schedules:
            schedule.step()
    for weight, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_a_saved_state_goes_on_exactly(tiny_config, tmp_path):
    model = RTransformerForCausalLM(tiny_config())
    optimizer = make_optimizer(model)
    train(model, optimizer, 3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    train(model, optimizer, 3)

    state = torch.load(tmp_path / "state.pt")
    resumed = RTransformerForCausalLM(tiny_config())
    resumed.load_state_dict(state["model"])
    optimizer = make_optimizer(resumed)
    optimizer.load_state_dict(state["optimizer"])
    train(resumed, optimizer, 3)
    for weight, expected in zip(resumed.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_the_average_is_that_of_all_weights_up_to_now():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(5.0)
    average = WeightAverage(model, decay=0.4)
    expected = 5.0
    for step, weight in enumerate((1.0, 2.0, 7.0, 3.0), start=1):
        model.weight.data.fill_(weight)
        average.update()
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    with average.in_place():
        torch.testing.assert_close(model.weight.item(), expected)
        assert average.averaged.module.weight == 3.0
    assert model.weight == 3.0


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"muon_learning_rate": 1e-3}, "--muon_learning_rate 0.001"),
        ({"muon": True, "fsdp": "full_shard"}, "--muon needs whole weights"),
        ({"average_decay": 0.9, "fsdp": "full_shard"}, "--average_decay needs whole weights"),
    ],
)
def test_bad_flags(tmp_path, flags, named):
    with pytest.raises(UsageError, match=named):
        ResumableTrainingArguments(str(tmp_path), **flags)


STRUCTURES = {
    "butterfly": {"projection_type": "butterfly"},
    "monarch": {"projection_type": "monarch", "local_rnn_projection_type": "dense"},
    "heads": {"local_rnn_num_heads": 2},
}


def make_trainer(model: torch.nn.Module, **flags) -> ReportingTrainer:
    trainer = ReportingTrainer.__new__(ReportingTrainer)  # with what the methods read of it
    settings = {"muon_learning_rate": None, "learning_rate": 1e-2, "weight_decay": 0.1, "adam_epsilon": 1e-8}
    trainer.args = SimpleNamespace(**{**settings, "adam_beta1": 0.9, "adam_beta2": 0.999, **flags})
    trainer.model, trainer.optimizer = model, None
    return trainer


def test_butterflies_do_not_decay(tiny_config):
    model = RTransformerForCausalLM(tiny_config(projection_type="butterfly"))
    decayed = make_trainer(model).get_decay_parameter_names(model)
    assert "model.embed_tokens.weight" in decayed
    assert not any(name.endswith(("twiddle", "bias")) for name in decayed)


@pytest.mark.parametrize("structure", ["monarch", "heads"])
def test_structured_weights_go_to_adamw(tiny_config, structure):
    """And decay; the dense matrices beside them go to Muon."""
    model = RTransformerForCausalLM(tiny_config(num_hidden_layers=1, **STRUCTURES[structure]))
    optimizer = make_trainer(model, muon=True).create_optimizer()
    names = {weight: name for name, weight in model.named_parameters()}
    matrices, decayed, others = ({names[weight] for weight in group["params"]} for group in optimizer.param_groups)
    cell = "model.layers.0.local_rnns.0.cell"
    assert f"{cell}.input_proj.weight" in matrices and matrices == set(block_matrices(model))
    structured = {name for name, weight in model.named_parameters() if weight.ndim > 2}
    assert structured and decayed == {*structured, "model.embed_tokens.weight"}
    assert {weight.ndim for weight, name in names.items() if name in others} == {1}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train(model, optimizer, 1)
    assert all(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_muon_without_a_dense_matrix_is_refused(tiny_config):
    trainer = make_trainer(RTransformerForCausalLM(tiny_config(**STRUCTURES["butterfly"])), muon=True)
    with pytest.raises(
        UsageError, match=r"--muon: RTransformerForCausalLM has no nn.Linear .* as butterfly and Monarch"
    ):
        trainer.create_optimizer()
