# SPDX-License-Identifier: Apache-2.0
"""Butterfly, Monarch and block-diagonal layers, and models made of them."""

import copy
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from rtransformer_hf import RTransformerConfig, RTransformerForCausalLM, RTransformerModel, structured_linear
from rtransformer_hf.structured_linear import (
    RTransformerBlockDiagonalLinear,
    RTransformerButterflyLinear,
    RTransformerMonarchLinear,
    apply_butterfly,
    butterfly_factors,
    butterfly_matrix,
    orthogonal_twiddle,
)

STRUCTURES = {
    "butterfly": {"projection_type": "butterfly"},
    "published": {
        "projection_type": "butterfly",
        "local_rnn_type": "lstm",
        "local_rnn_gate_activation": "hard_sigmoid",
        "local_rnn_bias": False,
        "mlp_bias": False,
    },
    "monarch": {"projection_type": "monarch"},
    "heads": {"local_rnn_num_heads": 4},
    "monarch_heads": {"projection_type": "monarch", "local_rnn_num_heads": 2, "local_rnn_type": "lstm"},
}
every_structure = pytest.mark.parametrize("structure", STRUCTURES)


def make_config(structure, **kwargs):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}
    sizes |= {"local_window_size": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return RTransformerConfig(**{**sizes, **STRUCTURES[structure], **kwargs})


# ---- Butterfly ----


def multiply(twiddle, inputs):
    """(rows, n) -> (rows, stacks * n), factor by factor, as the published layer is defined."""
    stacks, num_blocks, num_levels = twiddle.shape[:3]
    outputs = []
    for stack in range(stacks):
        states = inputs
        for block in range(num_blocks):
            for index in range(num_levels):
                stride = 2**index if block % 2 == 0 else 2 ** (num_levels - 1 - index)
                matrices = twiddle[stack, block, index].view(-1, stride, 2, 2)
                runs = states.view(len(states), -1, 2, stride)
                states = torch.einsum("rojk,brko->brjo", matrices, runs).flatten(1)
        outputs.append(states)
    return torch.cat(outputs, dim=1)


def assert_same(results, expected, tolerance):
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("num_levels", [1, 2, 3, 5, 6])
def test_both_forms_are_the_product_of_the_factors(num_blocks, num_levels):
    twiddle = orthogonal_twiddle((2, num_blocks, num_levels, 2 ** (num_levels - 1), 2, 2), dtype=torch.float64)
    twiddle = (1.1 * twiddle).requires_grad_()
    inputs = torch.randn(3, 2**num_levels).double().requires_grad_()

    def output_and_gradients(run):
        output = run()
        return [output, *torch.autograd.grad(output.sin().sum(), (twiddle, inputs))]

    expected = output_and_gradients(lambda: multiply(twiddle, inputs))
    assert_same(output_and_gradients(lambda: apply_butterfly(butterfly_factors(twiddle), inputs)), expected, 1e-9)
    matrix = output_and_gradients(lambda: F.linear(inputs, butterfly_matrix(butterfly_factors(twiddle))))
    assert_same(matrix, expected, 1e-9)


@pytest.fixture(scope="module")
def torch_structured():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has extensions in C++, and says that they are missing
        return pytest.importorskip("torch_structured")


@pytest.mark.parametrize("min_chain_size", [2, 10**6], ids=["chain", "matrix"])
@pytest.mark.parametrize("in_features, out_features", [(2, 1), (3, 7), (8, 8), (24, 96), (33, 20), (64, 100)])
@pytest.mark.parametrize("bias, num_blocks", [(True, 2), (False, 2), (True, 1), (True, 3)])
def test_equals_torch_structured(
    in_features, out_features, bias, num_blocks, min_chain_size, torch_structured, monkeypatch
):
    monkeypatch.setattr(structured_linear, "MIN_CHAIN_SIZE", min_chain_size)
    layer = RTransformerButterflyLinear(in_features, out_features, bias, num_blocks)
    other = torch_structured.Butterfly(in_features, out_features, bias, nblocks=num_blocks, init="ortho")
    layer.load_state_dict(other.state_dict())
    inputs = [torch.randn(2, 3, in_features, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    results = []
    for module, hidden_states in zip((layer, other), inputs, strict=True):
        output = module(hidden_states.requires_grad_())
        results.append([output, *torch.autograd.grad(output.square().sum(), [hidden_states, *module.parameters()])])
    assert_same(*results, 2e-5)


def test_butterflies_start_orthogonal():
    layer = RTransformerButterflyLinear(32, 32)
    torch.testing.assert_close(layer.dense_weight() @ layer.dense_weight().T, torch.eye(32), atol=1e-5, rtol=0)
    determinants = torch.linalg.det(layer.twiddle)
    assert {round(value) for value in determinants.flatten().tolist()} == {-1, 1}


@pytest.mark.parametrize("layer_class", [RTransformerButterflyLinear, RTransformerMonarchLinear])
def test_the_matrix_is_kept_in_evaluation_until_a_weight_changes(layer_class):
    layer = layer_class(6, 10).eval()
    weight = next(layer.parameters())

    def scaled(change):
        before = layer.dense_weight()
        change()
        return not torch.equal(layer.dense_weight(), before)

    with torch.no_grad():
        assert layer.dense_weight() is layer.dense_weight()
        assert scaled(lambda: weight.mul_(2))
        state_dict = {name: value / 2 for name, value in layer.state_dict().items()}
        assert scaled(lambda: layer.load_state_dict(state_dict))
        assert scaled(lambda: setattr(weight, "data", weight * 3))
        assert scaled(lambda: (weight.data.mul_(2), layer.eval()))
    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.randn(2, 6)).square().sum().backward()
    with torch.no_grad():
        assert layer.dense_weight() is not layer.dense_weight()  # not kept in training
        layer.eval()
        assert scaled(optimizer.step)
    assert layer.dense_weight().requires_grad


@pytest.mark.parametrize("min_chain_size", [2, 10**6], ids=["chain", "matrix"])
@torch.no_grad()
def test_weights_of_a_single_call_are_not_taken_for_later_ones(min_chain_size, monkeypatch):
    """Though later ones may have the same address."""
    monkeypatch.setattr(structured_linear, "MIN_CHAIN_SIZE", min_chain_size)
    layer = RTransformerButterflyLinear(6, 10, bias=False).double().eval()
    inputs = torch.randn(2, 6).double()
    expected = layer(inputs)
    for scale in (1.1, 1.2, 1.3, 1.4, 1.5):
        output = torch.func.functional_call(layer, {"twiddle": scale * layer.twiddle}, (inputs,))
        torch.testing.assert_close(output, scale**6 * expected)  # two blocks of three factors


@pytest.mark.parametrize("layer_class", [RTransformerButterflyLinear, RTransformerMonarchLinear])
def test_kept_matrices_are_not_copied_or_saved(layer_class):
    layer = layer_class(6, 10).eval()
    with torch.no_grad():
        expected = layer.dense_weight()
        assert "_kept" in vars(layer)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert "_kept" not in vars(other)
            assert torch.equal(other.dense_weight(), expected)


def test_16_bits_are_as_exact_as_their_weights():
    layer = RTransformerButterflyLinear(64, 64).to(torch.bfloat16)
    exact = copy.deepcopy(layer).double().dense_weight()
    assert (layer.dense_weight() - exact).norm() < 0.004 * exact.norm()


LAYERS = {
    "chain": (RTransformerButterflyLinear, 2),
    "matrix": (RTransformerButterflyLinear, 10**6),
    "monarch": (RTransformerMonarchLinear, None),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_autocast_is_that_of_a_dense_layer(name, monkeypatch):
    """And leaves nothing of lower precision behind."""
    layer_class, min_chain_size = LAYERS[name]
    monkeypatch.setattr(structured_linear, "MIN_CHAIN_SIZE", min_chain_size)
    layer = layer_class(24, 40).eval()
    inputs = torch.randn(3, 24)
    expected = copy.deepcopy(layer)(inputs), copy.deepcopy(layer).dense_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.dense_weight(), expected[1])
        output = layer(inputs)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected[0], atol=0.05, rtol=0)
    assert torch.equal(layer(inputs), expected[0]) and torch.equal(layer.dense_weight(), expected[1])


def test_block_diagonal_layer_under_autocast():
    layer = RTransformerBlockDiagonalLinear(8, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 3, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("layer_class", [RTransformerButterflyLinear, RTransformerMonarchLinear])
@torch.no_grad()
def test_an_ensemble_by_vmap(layer_class):
    layers = [layer_class(6, 10).eval() for _ in range(2)]
    weights, _ = torch.func.stack_module_state(layers)
    inputs = torch.randn(3, 6)

    def run(weights):
        return torch.func.functional_call(layers[0], weights, (inputs,))

    expected = torch.stack([layer(inputs) for layer in layers])
    torch.testing.assert_close(torch.func.vmap(run)(weights), expected)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RTransformerButterflyLinear(1, 4), "`in_features` must be at least 2.*got `in_features=1`"),
        (lambda: RTransformerButterflyLinear(4, 4, num_blocks=0), "got .*`num_blocks=0`"),
        (lambda: RTransformerMonarchLinear(4, 0), "must be at least 1, got .*`out_features=0`"),
        (lambda: RTransformerBlockDiagonalLinear(8, 3, 3), "`num_heads` must divide `hidden_size`, 8 here, got 3"),
        (lambda: RTransformerBlockDiagonalLinear(8, 3, 0), "`num_heads` must divide `hidden_size`, 8 here, got 0"),
        (lambda: RTransformerMonarchLinear.from_dense(nn.Identity()), "must be an unmodified nn.Linear, got Identity"),
    ],
)
def test_sizes_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- Monarch ----


@pytest.mark.parametrize("in_features, out_features, num_blocks", [(16, 16, 4), (10, 37, 3), (24, 96, 4), (5, 2, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_monarch_is_its_matrix(in_features, out_features, num_blocks, bias):
    layer = RTransformerMonarchLinear(in_features, out_features, bias, num_blocks).double()
    inputs = torch.randn(2, 3, in_features).double().requires_grad_()
    parameters = [inputs, *layer.parameters()]
    results = []
    for output in (layer(inputs), F.linear(inputs, layer.dense_weight(), layer.bias)):
        results.append([output, *torch.autograd.grad(output.square().sum(), parameters)])
    assert_same(*results, 1e-10)


@pytest.mark.parametrize("in_features, out_features", [(32, 128), (96, 24), (50, 30)])
def test_from_dense_cuts_each_block_to_its_largest_singular_values(in_features, out_features):
    linear = nn.Linear(in_features, out_features).double()
    monarch = RTransformerMonarchLinear.from_dense(linear, num_blocks=4)
    assert torch.equal(monarch.bias, linear.bias)
    in_size, out_size = -(-in_features // 4), -(-out_features // 4)
    for row in range(4):
        for column in range(4):
            block = (slice(row * out_size, (row + 1) * out_size), slice(column * in_size, (column + 1) * in_size))
            error = torch.linalg.matrix_norm(monarch.dense_weight()[block] - linear.weight[block])
            tail = torch.linalg.svdvals(linear.weight[block])[monarch.rank :].norm()
            torch.testing.assert_close(error, tail)
    again = nn.Linear(in_features, out_features).double()
    again.weight.data = monarch.dense_weight().detach()
    projected = RTransformerMonarchLinear.from_dense(again, num_blocks=4)
    torch.testing.assert_close(projected.dense_weight(), again.weight)


@pytest.mark.parametrize("std", [None, 0.05])
def test_monarch_starts_with_the_scale_of_a_dense_layer(std):
    layer = RTransformerMonarchLinear(256, 512)
    layer.reset_parameters(std)
    expected = 256**-0.5 / 3**0.5 if std is None else std
    assert layer.dense_weight().std().item() == pytest.approx(expected, rel=0.03)


def test_block_diagonal_starts_with_the_scale_of_what_a_unit_sees():
    layer = RTransformerBlockDiagonalLinear(64, 3, 4)
    assert layer.weight.abs().max() <= 1 / 4 < 1.05 * layer.weight.abs().max()
    assert layer.bias.abs().max() <= 1 / 8 < 1.05 * layer.bias.abs().max()


# ---- Models ----


@pytest.fixture(scope="module", params=STRUCTURES)
def model(request):
    torch.manual_seed(0)
    return RTransformerForCausalLM(make_config(request.param)).eval()


@torch.no_grad()
def test_decoding_and_padding_are_exact(model):
    ids = torch.randint(3, 30, (2, 9))
    expected = model(ids).logits
    outputs = model(ids[:, :5], use_cache=True)
    pieces = [outputs.logits]
    for position in range(5, 9):
        outputs = model(ids[:, position : position + 1], cache=outputs.cache, use_cache=True)
        pieces.append(outputs.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-5, rtol=0)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    logits = model(padded, attention_mask=(padded != 0).long()).logits
    torch.testing.assert_close(logits[:, 3:], expected, atol=1e-5, rtol=0)


def test_generation_strategies_agree(model):
    ids, model = torch.randint(3, 30, (1, 5)), copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.randn(30))  # else tied embeddings repeat the last token
        model.lm_head.bias[2] = -100  # and no text ends

    def generate(**settings):
        settings = GenerationConfig(**{"max_new_tokens": 8, "do_sample": False, **settings})
        return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)

    expected = generate(use_cache=False)
    assert expected.shape == (1, 13)
    for settings in (
        {},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 2},
    ):
        assert torch.equal(generate(**settings), expected), settings
    assert torch.equal(generate(num_beams=3), generate(num_beams=3, use_cache=False))


def test_operator_forms_agree_and_modified_modules_are_called(model):
    ids = torch.randint(3, 30, (2, 6))
    cells = [layer.local_rnns[0].cell for layer in model.model.layers]
    results = []
    for implementation in ("reference", "shared_projection", "blocked", "modules"):
        for cell in cells:
            cell.implementation = implementation
            weights = cell.weights
            if implementation == "modules":
                cell.weights = lambda: None
        output = model(ids).logits
        results.append([output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))])
    for cell in cells:
        cell.implementation = None
        del cell.weights
    assert weights() is not None
    for other in results[1:]:
        assert_same(other, results[0], 1e-4)


def test_a_hook_is_not_passed_over(model):
    cell = model.model.layers[0].local_rnns[0].cell
    projection = cell.gates_proj if cell.is_joint else cell.recurrent_proj
    calls = []
    with projection.register_forward_hook(lambda *_: calls.append(1)):
        model(torch.randint(3, 30, (1, 4)))
    assert calls


def test_checkpointing_changes_nothing(model):
    ids = torch.randint(3, 30, (2, 6))
    gradients = []
    model.train()
    for checkpointing in (False, True):
        (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
        gradients.append(torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters())))
    model.gradient_checkpointing_disable()
    model.eval()
    assert_same(*gradients, 1e-6)


@pytest.mark.parametrize("initializer_range", [None, 0.02])
@every_structure
def test_checkpoints(structure, initializer_range, tmp_path):
    model = RTransformerForCausalLM(make_config(structure, initializer_range=initializer_range)).eval()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    assert (tmp_path / "structured_linear.py").exists()
    ids = torch.randint(3, 30, (2, 6))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert all(getattr(loaded.config, name) == value for name, value in STRUCTURES[structure].items())


@torch.no_grad()
def test_layers_on_disk(model, tmp_path):
    """Accelerate loads the weights of a layer for its forward pass alone."""
    model.save_pretrained(tmp_path)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.layers.0": "cpu"}
    offloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map={**places, "model.layers.1": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    ids = torch.randint(3, 30, (2, 6))
    torch.testing.assert_close(offloaded(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(offloaded.generate(ids, **settings), model.generate(ids, **settings))


def test_compiled(model):
    torch.compiler.reset()
    ids = torch.randint(3, 30, (2, 6))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_exported(model):
    ids = torch.randint(3, 30, (2, 6))
    exported = torch.export.export(model, (ids,), {"use_cache": False}).module()
    torch.testing.assert_close(exported(ids, use_cache=False).logits, model(ids).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_quantisation_leaves_structured_layers_as_they_are(model):
    quantization = pytest.importorskip("torchao.quantization")
    ids = torch.randint(3, 30, (2, 6))
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, quantization.Int8WeightOnlyConfig())
    assert type(quantized.lm_head.weight) is not nn.Parameter
    torch.testing.assert_close(quantized(ids).logits, model(ids).logits, atol=0.05, rtol=0)


@pytest.mark.parametrize("include_local_rnn", [False, True])
def test_compressed_model(include_local_rnn, tmp_path):
    dense = RTransformerForCausalLM(make_config("heads", hidden_size=32, local_rnn_num_heads=1)).eval()
    dense.generation_config.max_length = 50
    model = RTransformerForCausalLM.from_dense(dense, num_monarch_blocks=2, include_local_rnn=include_local_rnn)
    assert not model.training and model.generation_config.max_length == 50
    assert model.num_parameters() < dense.num_parameters()
    assert dense.config.projection_type == "dense"
    layer = model.model.layers[0]
    assert isinstance(layer.local_rnns[0].cell.input_proj, RTransformerMonarchLinear) == include_local_rnn
    expected = RTransformerMonarchLinear.from_dense(dense.model.layers[0].mlp.up_proj, 2)
    assert torch.equal(layer.mlp.up_proj.left, expected.left)
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, 30, (2, 6))
    assert torch.equal(RTransformerForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    model.train()(ids, labels=ids).loss.backward()

    with pytest.raises(ValueError, match=r"`model.config.projection_type` must be 'dense', got 'monarch'"):
        RTransformerForCausalLM.from_dense(model)
    dense.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    modified = r"`model.layers.1.mlp.up_proj` of the model can't be compressed: .* must be an unmodified nn.Linear"
    with pytest.raises(ValueError, match=modified):
        RTransformerForCausalLM.from_dense(dense)
    broken = copy.deepcopy(dense)
    broken.model.layers[0].self_attn.k_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"`model.layers.0.self_attn.k_proj` of .*: `linear.weight` must be finite"):
        RTransformerForCausalLM.from_dense(broken)
    with pytest.raises(ValueError, match=r"`model` must be an RTransformerModel, got .* RTransformerForCausalLM"):
        RTransformerModel.from_dense(dense)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"projection_type": "sparse"}, "`projection_type` must be one of .*'monarch'.*, got 'sparse'"),
        ({"local_rnn_projection_type": "x"}, "`local_rnn_projection_type` must be one of .*, got 'x'"),
        ({"local_rnn_gate_activation": "relu"}, "`local_rnn_gate_activation` must be one of .*, got 'relu'"),
        ({"num_monarch_blocks": 0}, "`num_monarch_blocks` must be an integer of at least 1, got 0"),
        (
            {"num_monarch_blocks": 9, "projection_type": "monarch"},
            "`num_monarch_blocks` must be at most `hidden_size` and `intermediate_size`, 8 and 32 here, got 9",
        ),
        ({"num_butterfly_blocks": 0}, "`num_butterfly_blocks` must be an integer of at least 1, got 0"),
        ({"local_rnn_num_heads": 5}, "`local_rnn_num_heads` must divide `hidden_size`, got `local_rnn_num_heads=5`"),
        ({"local_rnn_num_heads": 2, "projection_type": "butterfly"}, "`local_rnn_num_heads` must be 1 for .*, got 2"),
        (
            {"hidden_size": 1, "num_attention_heads": 1, "projection_type": "butterfly"},
            "`hidden_size` and `intermediate_size` must be at least 2 for butterfly projections, got 1 and 4",
        ),
    ],
)
def test_bad_configurations(arguments, message):
    sizes = {"hidden_size": 8, "num_attention_heads": 2}
    with pytest.raises(ValueError, match=message):
        RTransformerConfig(**{**sizes, **arguments})


@pytest.mark.parametrize("projection_type", ["butterfly", "monarch"])
def test_tensor_parallelism_is_refused_by_name(projection_type):
    config = RTransformerConfig(hidden_size=8, num_attention_heads=2, projection_type=projection_type)
    config.distributed_config = SimpleNamespace(tp_size=2)
    with pytest.raises(ValueError, match=f"`tp_size` must be 1 for `config.projection_type='{projection_type}'`"):
        RTransformerModel(config)


@pytest.mark.parametrize("structure", ["butterfly", "monarch", "heads"])
def test_lora(structure):
    """PEFT refuses what it can't adapt by name, and adapts the rest."""
    peft = pytest.importorskip("peft")
    model = RTransformerForCausalLM(make_config(structure))
    targets = {"butterfly": "q_proj", "monarch": "up_proj", "heads": "recurrent_proj"}
    with pytest.raises(ValueError, match=r"Target module RTransformer\w+Linear.* is not supported"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=[targets[structure]]))
    model = RTransformerForCausalLM(make_config(structure))
    targets = ["lm_head"] if structure != "heads" else ["input_proj", "q_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets))
    ids = torch.randint(3, 30, (2, 6))
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert any(parameter.grad is not None for name, parameter in adapted.named_parameters() if "lora_B" in name)
