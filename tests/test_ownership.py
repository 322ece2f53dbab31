"""The memory of parameters belongs to the user: it is updated in place, whatever its layout."""

import pytest
import torch
from helpers import TOWER
from torch import nn

from hypergradient import SGD, Adam, Hyperoptimizer

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


@pytest.mark.parametrize("above", [None, SGD(lr=1e-3)], ids=repr)
def test_a_parameter_that_is_negated_on_paper_alone_moves(above):
    z = torch.randn(5, dtype=torch.complex128)
    p = torch.nn.Parameter(z.conj().imag)
    twin = torch.nn.Parameter(p.detach().clone().resolve_neg())
    assert p.is_neg()
    for q in (p, twin):
        optimizer = Hyperoptimizer([q], SGD(lr=0.1) if above is None else SGD(lr=0.1) / above)
        for t in range(3):
            q.grad = torch.full((5,), 1.0 + t, dtype=torch.float64)
            optimizer.step()
    torch.testing.assert_close(p.detach().resolve_neg(), twin.detach())
