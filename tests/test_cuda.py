"""On a CUDA device, where there is one; the same on the CPU, operation by operation, wherever there is none.

How many operations a step takes there, is counted on tensors without data.
"""

import copy
from collections import Counter

import pytest
import torch
from cases import loss, parameters
from helpers import NoHostSynchronization
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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
            optimizer.param_groups[0]["lr"] *= 0.9  # as a scheduler does
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


class Operations(TorchDispatchMode):
    """Counts them by name, without views."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += not func.is_view
        return func(*args, **(kwargs or {}))


def step_of(shapes, tower, device="meta"):
    """The operations of a fifth step of parameters of ones, by name."""
    params = [torch.ones(shape, device=device, requires_grad=True) for shape in shapes]
    optimizer = Hyperoptimizer(params, tower)
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(4):
        optimizer.step()
    with Operations() as found:
        optimizer.step()
    return found.names


@pytest.mark.parametrize("tower", [*TOWERS[:3], auto(SGD())], ids=str)
def test_elsewhere_a_step_is_not_cut_into_pieces_for_a_cache(tower):
    assert step_of([(3000, 1000)], tower) == step_of([(500, 300)], tower)


def test_elsewhere_parts_are_not_added_up_one_by_one():
    """Those of each large parameter, for the metric of the default."""
    few, many = (step_of([(64, 64)] * n, auto()) for n in (4, 64))
    assert many["sum"] == few["sum"]
    assert few.total() <= many.total() < 260


@towers
@devices
def test_nothing_is_kept_of_what_others_might_write(device, tower):
    """What a script writes by way of .data is seen on the CPU alone: elsewhere the host would wait."""
    where = "meta" if device == "cpu" else device
    params = [p.detach().to(where).requires_grad_() for p in parameters(matrix=isinstance(tower.rules[0], Muon))]
    optimizer = Hyperoptimizer(params, tower)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    twins, other = problem("cpu", tower)
    train(twins, other, 3)
    assert [*optimizer.state[params[0]]] == [*other.state[twins[0]]]


@devices
@pytest.mark.parametrize("per", ["all", "tensor"])
def test_parameters_on_two_devices(device, per):
    """The first of them on the device, or the last."""
    runs = []
    for places in (("cpu", "cpu"), (device, "cpu"), ("cpu", device)):
        for tower in TOWERS[:3]:
            params = [p.detach().to(places[i % 2]).requires_grad_() for i, p in enumerate(parameters())]
            optimizer = Hyperoptimizer(params, tower, per=per)
            train(params, optimizer, 10)
            runs.append(([p.detach().cpu() for p in params], optimizer.hyperparameters()[0]["lr"]))
    for i, (found, lr) in enumerate(runs):
        torch.testing.assert_close(found, runs[i % 3][0], rtol=1e-9, atol=1e-12)
        assert lr == pytest.approx(runs[i % 3][1], rel=1e-9)


@devices
def test_where_gradients_come_and_go_the_host_does_not_read_parameter_by_parameter(device):
    params = [torch.ones(3, device=device, requires_grad=True) for _ in range(40)]
    optimizer, reads = Hyperoptimizer(params), []
    for t in range(6):
        for i, p in enumerate(params):
            p.grad = None if t == 4 and i % 2 else torch.ones_like(p)
        with Operations() as found:
            optimizer.step()
        reads.append(found.names["_local_scalar_dense"])
    assert max(reads[1:]) < 10


def test_a_step_is_refused_in_a_graph(monkeypatch):
    """The host counts steps: when the graph runs again, it would not know."""
    params, optimizer = problem("cpu", auto())
    train(params, optimizer, 3)
    optimizer.eval()
    before = [p.detach().clone() for p in params]
    for asked in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, asked, lambda: True)
    with pytest.raises(RuntimeError, match="cannot be part of a CUDA graph"):
        optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], before, rtol=0, atol=0)
