"""PEFT: LoRA alone, adapters that are added in mid-training, merged, switched and saved."""

import copy

import peft
import pytest
import torch
from frameworks import FINE, llama

from hypergradient import SGD, AdamW, Hyperoptimizer

pytestmark = [
    pytest.mark.usefixtures("float32"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # peft's own use of transformers
]
MAKERS = {
    "default": Hyperoptimizer,
    "tower": lambda ps: Hyperoptimizer(ps, FINE),
    "per tensor": lambda ps: Hyperoptimizer(ps, FINE, per="tensor"),
}


def lora(model, name="default"):
    """`model` with an adapter `name`."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    if isinstance(model, peft.PeftModel):
        model.add_adapter(name, config)
        model.set_adapter(name)
        return model
    return peft.get_peft_model(model, config, adapter_name=name)


def trainable(model, name=""):
    return [p for n, p in model.named_parameters() if p.requires_grad and name in n]


def fit(model, optimizer, lines, steps, start=0):
    losses = []
    for t in range(start, start + steps):
        batch = lines[torch.arange(8 * t, 8 * t + 8) % len(lines)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_lora_is_as_with_torch_when_nothing_is_learned(lines):
    """All parameters are handed over; those that are frozen stay, to the bit."""
    models = [lora(llama()), lora(llama())]
    before = copy.deepcopy(models[0].state_dict())
    mine = Hyperoptimizer(models[0].parameters(), AdamW(lr=3e-3) / SGD(lr=0.0))
    for model, optimizer in zip(models, (mine, torch.optim.AdamW(models[1].parameters(), lr=3e-3)), strict=True):
        fit(model, optimizer, lines, 8)
    torch.testing.assert_close(trainable(models[0]), trainable(models[1]), rtol=1e-4, atol=1e-6)
    moved = {n for n, p in models[0].state_dict().items() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "lora_" in n}
    assert set(mine.state) == set(trainable(models[0]))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_an_adapter_added_in_mid_training_is_one_of_its_own(lines, make):
    """Its parameters in a group that is added, the first adapter frozen: the weights of an optimizer made for it alone."""
    model = lora(llama())
    optimizer = make(trainable(model))
    fit(model, optimizer, lines, 10)
    first, twin = trainable(model), copy.deepcopy(model)
    kept = [p.detach().clone() for p in first]
    learned = optimizer.hyperparameters()[0]
    for m in (model, twin):
        lora(m, "second")
    optimizer.add_param_group({"params": trainable(model, "second")})
    optimizer.zero_grad()
    alone = make(trainable(twin, "second"))
    losses = fit(model, optimizer, lines, 10, 10)
    assert losses == fit(twin, alone, lines, 10, 10)
    torch.testing.assert_close(trainable(model, "second"), trainable(twin, "second"), rtol=0, atol=0)
    torch.testing.assert_close([p.detach() for p in first], kept, rtol=0, atol=0)
    assert optimizer.hyperparameters()[0] == learned
    assert optimizer.hyperparameters(1)[0] == alone.hyperparameters()[0] != learned


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_lora_learns_and_its_adapter_is_saved_at_the_average(tmp_path, lines, make):
    """It learns at least as much as with an lr that was chosen for it."""
    model, twin = lora(llama()), lora(llama())
    optimizer = make(model.parameters())
    ends = [fit(m, o, lines, 100)[-10:] for m, o in ((model, optimizer), (twin, torch.optim.AdamW(twin.parameters(), lr=3e-3)))]
    assert sum(ends[0]) < sum(ends[1]) + 0.01
    optimizer.eval()
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(llama(), tmp_path)
    batch = lines[:8]
    assert again(input_ids=batch, labels=batch).loss.item() == model(input_ids=batch, labels=batch).loss.item()
    torch.testing.assert_close(model.merge_and_unload()(batch).logits, again(batch).logits, rtol=1e-4, atol=1e-5)
