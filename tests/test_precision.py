"""Loss scaling, autocast, half-precision parameters."""

import copy

import helpers
import pytest
import torch
from helpers import TOWER, TOWERS, resumed
from torch import nn

from hypergradient import SGD, Adam, Hyperoptimizer, Muon

HALF = [torch.bfloat16, torch.float16]


def network(dtype=torch.float32):
    return helpers.network().to(dtype)


def value_at(model, t):
    dtype = model[0].weight.dtype
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(t % 10)).to(dtype)
    return (model(x) - torch.sin(2 * x[:, :2])).square().mean()


def fit(optimizer, model, steps, start=0):
    """Losses."""
    losses = []
    for t in range(start, start + steps):
        optimizer.zero_grad()
        loss = value_at(model, t)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def everything(optimizer, model):
    """A copy of the weights, hyperparameters, hypergradients and states of all levels."""
    told = optimizer.hyperparameters(), optimizer.hypergradients()
    return copy.deepcopy([list(model.state_dict().values()), optimizer.state_dict(), *told])


def identical(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def float32(x):
    """The tensors in nested dicts."""
    if isinstance(x, dict):
        return [t for y in x.values() for t in float32(y)]
    return [x] if isinstance(x, torch.Tensor) else []


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("tower", TOWERS, ids=repr)
def test_grad_scaler_skips_the_step_of_every_level(tower, per, bad):
    """A scale that is a power of two changes no bit: hypergradients are those of the unscaled gradients."""
    (model, optimizer), (twin, other) = ((m, Hyperoptimizer(m.parameters(), tower, per=per)) for m in (network(), network()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=4)
    for t in range(10):
        optimizer.zero_grad()
        scaler.scale(value_at(model, t)).backward()
        before = everything(optimizer, model)
        if t in (0, 3, 7):
            model[2].bias.grad[1] = bad
        else:
            fit(other, twin, 1, t)
        scaler.step(optimizer)
        scaler.update()
        if t in (0, 3, 7):
            identical(everything(optimizer, model), before)
    assert scaler.get_scale() != 2.0**12
    identical(everything(optimizer, model), everything(other, twin))


def test_grad_scaler_with_unscale_and_clipping():
    (model, optimizer), (twin, other) = ((m, Hyperoptimizer(m.parameters(), TOWER)) for m in (network(), network()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for t in range(5):
        optimizer.zero_grad()
        scaler.scale(value_at(model, t)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        other.zero_grad()
        value_at(twin, t).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        other.step()
    identical(everything(optimizer, model), everything(other, twin))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_leaves_hyperparameters_in_float32(dtype):
    (model, optimizer), (twin, other) = (
        (m, Hyperoptimizer(m.parameters(), Adam(lr=0.01, horizon=20) / Adam(lr=1e-4))) for m in (network(), network())
    )
    for t in range(100):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = value_at(model, t)
        loss.backward()
        optimizer.step()
    losses = fit(other, twin, 100)
    assert loss.item() < 0.7 * losses[9]
    assert optimizer.hyperparameters()[0] == pytest.approx(other.hyperparameters()[0], rel=0.1)
    assert {t.dtype for t in float32(optimizer.state_dict()["state"])} == {torch.float32}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rule", [Adam(lr=0.1), Muon(lr=0.1)], ids=repr)
def test_a_step_under_autocast_is_the_same_step(rule, dtype):
    """The update itself is not cast, where somebody makes the whole loop run under autocast."""
    runs = []
    for enabled in (False, True):
        p = torch.eye(3, dtype=torch.float32, requires_grad=True)
        optimizer = Hyperoptimizer([p], rule / SGD(lr=1e-3))
        for t in range(5):
            p.grad = torch.full_like(p, 1.0 + t) + p.detach()
            with torch.autocast("cpu", dtype, enabled=enabled):
                optimizer.step()
        runs.append([p.detach(), optimizer.hyperparameters()])
    identical(*runs)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("tower", TOWERS, ids=repr)
def test_half_precision_parameters_keep_float32_hyperparameters_through_load_state_dict(tower, dtype):
    model = network(dtype)
    optimizer = Hyperoptimizer(model.parameters(), tower)
    fit(optimizer, model, 6)
    told = optimizer.hyperparameters(), optimizer.hypergradients()
    before = copy.deepcopy(optimizer.state_dict())
    copied = copy.deepcopy(model)
    for twin in (optimizer, resumed(optimizer, list(copied.parameters()))):
        twin.load_state_dict(copy.deepcopy(before))
        identical(twin.state_dict(), before)
        identical((twin.hyperparameters(), twin.hypergradients()), told)
        assert {t.dtype for t in float32(twin.state_dict()["state"])} == {torch.float32}
    identical([fit(twin, copied, 4, 6)], [fit(optimizer, model, 4, 6)])
    assert model[0].weight.dtype == dtype
    if optimizer.tower.height:
        learned = optimizer.hyperparameters()[0]["lr"]
        assert learned != torch.tensor(learned).to(dtype).item(), "a value that the parameters' dtype does not have"


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_hypergradients_of_half_precision_parameters_are_summed_in_float32(dtype):
    """4096 terms of 1: a sum in bfloat16 ends at 256, one in float16 at 2048."""
    p = torch.ones(4096, dtype=dtype, requires_grad=True)
    optimizer = Hyperoptimizer([p], SGD(lr=2.0**-10) / SGD(lr=0.0))
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert optimizer.hypergradients()[0]["lr"] == -4096


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_parameters_of_several_dtypes_in_one_group(dtype):
    model = network()
    model[2].to(dtype)

    def value(t):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(t % 10), dtype=torch.float32)
        return (model[2](model[:2](x).to(dtype)) - torch.sin(x[:, :2])).square().mean()

    optimizer, losses = Hyperoptimizer(model.parameters(), TOWER), []
    for t in range(100):
        optimizer.zero_grad()
        losses.append(value(t))
        losses[-1].backward()
        optimizer.step()
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert [p.dtype for p in model.parameters()] == [torch.float32] * 2 + [dtype] * 2
