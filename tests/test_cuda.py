"""On a CUDA device, where there is one; the same on the CPU, operation by operation, wherever there is none."""

import copy

import pytest
import torch
from cases import loss, parameters
from helpers import NoHostSynchronization
from torch import nn

from hypergradient import SGD, Adam, Hyperoptimizer, Muon, auto

NONE = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
TOWERS = [auto(), Adam(lr=1e-2) / SGD(lr=1e-5), Adam(lr=1e-2) / Adam(lr=1e-3) / SGD(lr=1e-4), auto(Muon())]

pytestmark = pytest.mark.usefixtures("without_tapes")
towers = pytest.mark.parametrize("tower", TOWERS, ids=str)
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NONE])])


def problem(device, tower):
    """Parameters and their optimizer."""
    params = [p.detach().to(device).requires_grad_() for p in parameters(matrix=isinstance(tower.rules[0], Muon))]
    return params, Hyperoptimizer(params, tower)


def train(params, optimizer, steps, start=0):
    """Gradients from the host: the same on every device."""
    for t in range(start, start + steps):
        mine = [p.detach().cpu().requires_grad_() for p in params]
        grads = torch.autograd.grad(loss(mine, t), mine)
        for p, g in zip(params, grads, strict=True):
            p.grad = g.to(p.device)
        optimizer.step()


@towers
@devices
def test_steps_are_those_of_the_cpu(device, tower):
    runs = []
    for where in ("cpu", device):
        params, optimizer = problem(where, tower)
        train(params, optimizer, 20)
        runs.append(([p.detach().cpu() for p in params], optimizer.hyperparameters()))
    torch.testing.assert_close(runs[1][0], runs[0][0], rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(runs[1][1], runs[0][1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)


@towers
@devices
def test_a_step_does_not_wait_for_the_device(device, tower):
    params, optimizer = problem(device, tower)
    train(params, optimizer, 3)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoHostSynchronization():
            optimizer.step()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@towers
@devices
def test_a_checkpoint_goes_on_on_another_device(device, tower):
    """From the CPU to the device and back."""
    params, optimizer = problem("cpu", tower)
    train(params, optimizer, 5)
    for where in (device, "cpu"):
        moved = [p.detach().to(where).requires_grad_() for p in params]
        other = Hyperoptimizer(moved, tower)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        params, optimizer = moved, other
        train(params, optimizer, 5, start=5)
    twins, straight = problem("cpu", tower)
    train(twins, straight, 5)
    for _ in range(2):
        train(twins, straight, 5, start=5)
    torch.testing.assert_close([p.detach().cpu() for p in params], [p.detach() for p in twins], rtol=1e-9, atol=1e-12)


@devices
def test_a_scaler_skips_steps_that_are_not_finite(device, float32):
    model = nn.Linear(4, 2, device=device)
    optimizer, scaler = Hyperoptimizer(model.parameters()), torch.amp.GradScaler(device)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(model(torch.full((3, 4), torch.inf, device=device)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close([p.detach() for p in model.parameters()], before, rtol=0, atol=0)
