"""State and parameters belong to the user: what is edited is used and saved, memory of any layout is updated in place."""

import copy

import pytest
import torch
from helpers import TOWER, fit, network
from torch import nn

from hypergradient import SGD, Adam, Hyperoptimizer


def reset_entries(optimizer):
    """As a script does that restarts the momentum."""
    for p, memory in optimizer.state.items():
        memory["exp_avg"] = torch.zeros_like(p)


def copy_entries(optimizer):
    """As one does that moves the state to another device and back."""
    for memory in optimizer.state.values():
        memory.update({n: x.clone() for n, x in memory.items() if isinstance(x, torch.Tensor)})


def clear(optimizer):
    """As one does that starts anew from the present weights."""
    optimizer.state.clear()


EDITS = [reset_entries, copy_entries, clear]


@pytest.mark.parametrize("edit", EDITS)
def test_state_that_a_user_edits_is_used(edit):
    runs = []
    for kind in (lambda ps: Hyperoptimizer(ps, Adam(lr=0.01)), lambda ps: torch.optim.Adam(ps, lr=0.01)):
        model = network()
        optimizer = kind(model.parameters())
        fit(optimizer, model, 4)
        edit(optimizer)
        fit(optimizer, model, 4, 4)
        runs.append(list(model.parameters()))
    torch.testing.assert_close(*runs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("edit", EDITS)
def test_state_that_a_user_has_edited_is_saved_as_it_is(edit):
    """Or a checkpoint made later is of another training than the one that goes on."""
    model = network()
    optimizer = Hyperoptimizer(model.parameters(), TOWER)
    fit(optimizer, model, 4)
    edit(optimizer)
    fit(optimizer, model, 4, 4)
    twin = copy.deepcopy(model)
    other = Hyperoptimizer(twin.parameters(), TOWER)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fit(optimizer, model, 4, 8)
    fit(other, twin, 4, 8)
    torch.testing.assert_close(list(twin.parameters()), list(model.parameters()), rtol=0, atol=0)
    assert other.hyperparameters() == optimizer.hyperparameters()


LAYOUTS = {
    "slices of one buffer": lambda x: torch.cat([x.flatten(), x.flatten()])[: x.numel()].view(x.shape),
    "transposed": lambda x: x.T.contiguous().T,
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
}


@pytest.mark.parametrize("size", [(3, 4), (400, 500)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_parameters_of_any_layout_are_updated_in_place(layout, size):
    x = torch.sin(torch.arange(float(size[0] * size[1]))).view(size)
    mine, twin = layout(x).requires_grad_(), x.clone().requires_grad_()
    pointer, stride = mine.data_ptr(), mine.stride()
    for p in (mine, twin):
        optimizer = Hyperoptimizer([p], Adam(lr=0.01, horizon=5) / SGD(lr=1e-6))
        for t in range(4):
            p.grad = torch.cos(p.detach() * t) if p is twin else layout(torch.cos(p.detach() * t))
            optimizer.step()
    torch.testing.assert_close(mine.detach(), twin.detach(), rtol=1e-8, atol=1e-12)
    assert (mine.data_ptr(), mine.stride()) == (pointer, stride)


def test_channels_last_and_expanded_gradients():
    runs = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3)).to(memory_format=layout)
        bias = torch.zeros(5, requires_grad=True)
        optimizer = Hyperoptimizer([*model.parameters(), bias], TOWER)
        for t in range(5):
            x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(t)).to(memory_format=layout)
            optimizer.zero_grad()
            (model(x).square().mean() + bias.sum()).backward()
            optimizer.step()
        assert model[0].weight.is_contiguous(memory_format=layout)
        runs.append([[p.detach().contiguous() for p in model.parameters()], bias.detach()])
    torch.testing.assert_close(*runs, rtol=1e-8, atol=1e-12)
