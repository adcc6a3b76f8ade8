"""Computing less changes neither loss nor gradients."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft.tuners.lora import Linear, LoraLayer
from PIL import Image
from transformers.models.blt import modeling_blt
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.models import packing
from radloop.models.loading import Loaded
from radloop.training import adapter, fused, losses, merging
from radloop.training.adapter import with_lora
from radloop.training.fused import lora_linear, rms_norm, rotary, swiglu
from radloop.training.fused.lora_linear import LoraLinear
from radloop.training.fused.stock import is_copy
from radloop.training.last_layer import only_at

FAMILIES = [name for name in models.REGISTRY if name not in ("blip", "llava_med")]


def base(family: str, folder: Path) -> Loaded:
    models.get_family(family).tiny(folder)
    return models.load(ModelConfig(base=str(folder), family=family))


def tuned(loaded: Loaded, **settings: object) -> Loaded:
    """LoRA layers that already do something."""
    torch.manual_seed(0)
    config = FinetuneConfig.model_validate({"rank": 2, "targets": ("attention", "mlp")} | settings)
    loaded = with_lora(loaded, config)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    loaded.model.train()
    return loaded


def gradients(loaded: Loaded) -> list[torch.Tensor]:
    """The loss of questions about an image, together and apart in rows of their own, and its gradients."""
    image = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    questions, answers = ["Is it large?", "Where is it?"], ["yes", "left lower lobe"]
    pairs = loaded.prompts.pairs(questions, answers, [[image.size]] * 2)
    rows = [(group,) for shared in (True, False) for group in packing.groups(["image"], pairs, shared)]
    loaded.model.zero_grad()
    loss = losses.token_losses(loaded, lambda names: loaded.encode([image] * len(names)), rows).mean()
    loss.backward()
    found = [parameter.grad for parameter in loaded.model.parameters() if parameter.requires_grad]
    return [loss.detach(), *(torch.zeros(()) if grad is None else grad for grad in found)]


@contextmanager
def everywhere(_model: object, _predicts: object) -> Iterator[None]:
    yield


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_all_tokens_and_of_stock_layers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = gradients(tuned(base(family, tmp_path / "fast")))
    monkeypatch.setattr(losses, "only_at", everywhere)
    monkeypatch.setattr(LoraLinear, "forward", Linear.forward)
    monkeypatch.setattr(fused, "fuse_layers", lambda _: None)
    monkeypatch.setattr(adapter, "use_fast_attention", lambda *_: None)
    slow = gradients(tuned(base(family, tmp_path / "slow")))
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_computes_the_tokens_that_are_read(family: str, tmp_path: Path) -> None:
    model = base(family, tmp_path).model
    layers = model.get_decoder().layers
    rows: list[int] = []
    for layer in (layers[0], layers[-1]):
        layer.mlp.register_forward_hook(
            lambda _module, inputs, _found: rows.append(inputs[0][..., 0].numel())
        )
    predicts = torch.zeros(2, 6, dtype=torch.bool)
    predicts[0, 3] = predicts[1, 5] = True
    ids = torch.full((2, 6), 5)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with only_at(model, predicts):
            found = model(input_ids=ids).logits
    assert rows == [12, 12, 12, 2]
    torch.testing.assert_close(found[predicts], whole[predicts])
    assert not torch.allclose(found[~predicts], whole[~predicts])


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_fused_where_they_are_of_the_usual_kind(family: str, tmp_path: Path) -> None:
    decoder = tuned(base(family, tmp_path)).model.get_decoder()
    kinds = {type(module).__name__ for module in decoder.modules()}
    expected = {kind for kind in kinds if kind.endswith(("Attention", "MLP", "RMSNorm"))}
    # Norms of 1 + weight, MLPs without gate or of GELU, and attention to images, which have no order.
    expected -= {"Gemma3RMSNorm", "Gemma3MLP", "PersimmonMLP", "MllamaTextCrossAttention"}
    assert {type(module).__name__ for module in decoder.modules() if "forward" in vars(module)} == expected


@pytest.mark.parametrize(("module", "is_used"), [(modeling_mistral, True), (modeling_blt, False)])
def test_a_rotation_is_replaced_only_by_one_that_does_the_same(module: ModuleType, is_used: bool) -> None:
    """Blt's function is Llama's word for word, but calls another `rotate_half`, which rotates in pairs."""
    assert is_copy(module.apply_rotary_pos_emb, modeling_llama.apply_rotary_pos_emb)
    kind = module.MistralAttention if is_used else module.BltSelfAttention
    assert (rotary._with_ours(kind) is not None) == is_used
    q, k, cos, sin = (torch.randn(shape) for shape in ((1, 2, 3, 8), (1, 1, 3, 8), (1, 3, 8), (1, 3, 8)))
    ours, stock = rotary._rotated(q, k, cos, sin), module.apply_rotary_pos_emb(q, k, cos, sin)
    assert all(map(torch.allclose, ours, stock)) == is_used


def test_other_functions_are_no_copies() -> None:
    for other in (modeling_llama.rotate_half, None, len):
        assert not is_copy(other, modeling_llama.apply_rotary_pos_emb)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_with_an_adapter_take_part_in_the_check_of_a_merge(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tuned(base(family, tmp_path))
    layers = {name for name, layer in loaded.model.named_modules() if isinstance(layer, LoraLayer)}
    names = {layer: name for name, layer in loaded.model.named_modules()}
    merged: set[str] = set()
    stock = merging.merged_weight
    monkeypatch.setattr(
        merging, "merged_weight", lambda layer, dtype: merged.add(names[layer]) or stock(layer, dtype)
    )
    assert merging.verify_merge(loaded, merging.standard_probe(loaded)).agrees
    assert merged == layers
    rounded: set[str] = set()
    with merging._rounded_once_more(loaded.model, torch.float32):
        for layer in names:
            if isinstance(layer, LoraLayer):
                layer.register_forward_hook(lambda layer, *_: rounded.add(names[layer]))
        gradients(loaded)
    assert rounded == layers


def test_an_mlp_without_its_adapter_is_a_stock_one(tmp_path: Path) -> None:
    loaded = tuned(base("llava", tmp_path))
    mlp = loaded.model.get_decoder().layers[0].mlp
    x = torch.randn(2, 3, mlp.gate_proj.in_features)
    expected = mlp(x).detach()
    assert mlp(x[:, :0]).shape == (2, 0, x.shape[-1])
    again = pickle.loads(pickle.dumps(mlp))  # noqa: S301 # what has just been written
    torch.testing.assert_close(again(x), expected)
    loaded.model.merge_and_unload()
    torch.testing.assert_close(mlp(x), expected, rtol=1e-3, atol=1e-5)


def test_an_mlp_with_layers_that_are_not_plain_lora_goes_the_stock_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlp = tuned(base("llava", tmp_path)).model.get_decoder().layers[0].mlp
    x = torch.randn(2, 3, mlp.gate_proj.in_features)
    mlp.requires_grad_(False)
    expected = type(mlp).forward(mlp, x)
    torch.testing.assert_close(mlp(x), expected)
    monkeypatch.setattr(swiglu, "_SwiGlu", None)  # whoever uses it fails
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(mlp(x).float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
    mlp.up_proj.lora_dropout["default"] = torch.nn.Dropout(0.5).eval()
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("change", ["trained", "half"])
def test_other_norms_go_the_stock_way(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = tuned(base("llava", tmp_path)).model.get_decoder().norm
    monkeypatch.setattr(rms_norm, "_RmsNorm", None)  # whoever uses it fails
    if change == "trained":
        norm.weight.requires_grad_()
    else:
        norm.to(torch.bfloat16)
    found = norm(torch.full((1, 2, len(norm.weight)), 3.0, dtype=norm.weight.dtype))
    torch.testing.assert_close(found, norm.weight.expand_as(found), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("settings", "is_fast"), [({}, True), ({"dropout": 0.5}, False), ({"use_dora": True}, False)]
)
def test_only_plain_lora_takes_the_short_way(
    settings: dict[str, object], is_fast: bool, tmp_path: Path
) -> None:
    model = tuned(base("llava", tmp_path), **settings).model
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    assert layers
    assert {layer._only_adapter() is not None for layer in layers} == {is_fast}


def test_hooks_of_a_layer_leave_it_fast_and_those_of_layers_in_it_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = tuned(base("llava", tmp_path)).model.get_decoder().layers[0].self_attn.q_proj
    x = torch.randn(2, 3, layer.in_features)
    called: list[str] = []
    for name, module in layer.named_modules():
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.append(name))
        if not name:
            expected = layer(x)
            assert layer.factors(x) is None  # nobody multiplies by them instead of calling the layer
    monkeypatch.setattr(lora_linear, "_Product", None)  # whoever uses it fails
    torch.testing.assert_close(layer(x), expected)
    assert {"base_layer", "lora_A.default", "lora_B.default"} < {*called}
