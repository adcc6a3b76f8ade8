"""Computing less changes neither loss nor gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import Linear
from PIL import Image

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.models import packing
from radloop.models.loading import Loaded
from radloop.training import adapter, losses, rms_norm
from radloop.training.adapter import with_lora
from radloop.training.last_layer import only_at
from radloop.training.lora_linear import LoraLinear

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
    """The loss of two questions about an image, and its gradients."""
    image = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    questions, answers = ["Is it large?", "Where is it?"], ["yes", "left lower lobe"]
    pairs = loaded.prompts.pairs(questions, answers, [[image.size]] * 2)
    rows = [(group,) for group in packing.groups(["image"], pairs)]
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
    for shortcut in ("fuse_norms", "use_fast_attention"):
        monkeypatch.setattr(adapter, shortcut, lambda *_: None)
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
def test_norms_are_fused_where_they_are_of_the_usual_kind(family: str, tmp_path: Path) -> None:
    model = tuned(base(family, tmp_path)).model
    kinds = {type(module).__name__ for module in model.modules() if "RMSNorm" in type(module).__name__}
    fused = {type(module).__name__ for module in model.modules() if "forward" in vars(module)}
    assert fused == kinds - {"Gemma3RMSNorm"}


@pytest.mark.parametrize("change", ["trained", "half"])
def test_other_norms_go_the_stock_way(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = next(m for m in tuned(base("llava", tmp_path)).model.modules() if "forward" in vars(m))
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
