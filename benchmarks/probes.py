"""Thirteen probes that any optimizer can be put through: what scripts and trainers do with theirs, in one process.

    probe(contestant)   raises where the contestant fails; the table PROBES has them all

A contestant says how its optimizer is made, for a model or for groups. `benchmarks.battery` runs the probes on optimizers
of others too and writes the table of the documentation; the tests run them on every rule of the package.
"""

from __future__ import annotations

import copy
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.optim import optimizer as hooks

import hypergradient as hg


@dataclass(frozen=True)
class Contestant:
    """An optimizer to be probed.

    Args:
        make: from a model, or from parameters or groups of them, to an optimizer.
        matrix: whether it moves real matrices only; it is then probed on such.
        refuses: by probe, what it is right to refuse: the error that has to be raised then.
    """

    name: str
    make: Callable[[Any], Any]
    matrix: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def ours() -> list[Contestant]:
    """Every rule of the package, alone and on all levels of a tower of three; Muon below two others."""
    found = []
    rules = {c for c in vars(hg).values() if isinstance(c, type) and issubclass(c, hg.Rule) and c not in (hg.Rule, hg.Averages)}
    for kind in sorted(rules, key=lambda c: c.__name__):
        rule = kind(lr=max(kind().lr, 0.01))
        above = kind(lr=1e-4) if rule.elementwise else hg.Adam(lr=1e-4)
        refuses = {} if rule.elementwise else {"complex parameter": "real matrices only"}
        for tower in (hg.Tower.of(rule), rule / above / hg.SGD(lr=1e-6)):
            name = " / ".join(type(r).__name__ for r in tower)
            found.append(Contestant(name, lambda params, t=tower: ours_on(params, t), not rule.elementwise, refuses))
    return found


def ours_on(params: Any, tower: hg.Tower) -> hg.Hyperoptimizer:
    return hg.Hyperoptimizer(params.parameters() if isinstance(params, nn.Module) else params, tower)


# ---------------------------------------------------------------- problem


def network(contestant: Contestant, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same small model each time."""
    generator, bias = torch.Generator().manual_seed(0), not contestant.matrix
    model = nn.Sequential(nn.Linear(6, 8, bias=bias), nn.Tanh(), nn.Linear(8, 2, bias=bias)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float32))
    return model


def loss(model: nn.Module, t: int) -> Tensor:
    """A loss on one of ten batches."""
    dtype = next(iter(model.parameters())).dtype
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(100 + t % 10), dtype=torch.float32)
    return (model(x.to(dtype)) - torch.sin(2 * x[:, :2]).to(dtype)).square().mean()


def backward(optimizer: Any, model: nn.Module, t: int) -> Tensor:
    value = loss(model, t)
    value.backward(create_graph=getattr(optimizer, "create_graph", False))
    return value


def fit(optimizer: Any, model: nn.Module, steps: int, start: int = 0) -> list[float]:
    """Losses of `steps` steps."""
    losses = []
    for t in range(start, start + steps):
        optimizer.zero_grad()
        value = backward(optimizer, model, t)
        optimizer.step()
        losses.append(value.item())
    return losses


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def start(contestant: Contestant, **options: Any) -> tuple[nn.Module, Any]:
    model = network(contestant, **options)
    return model, contestant.make(model)


def same(one: Any, other: Any, why: str, **tolerance: float) -> None:
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    torch.testing.assert_close(one, other, **tolerance, equal_nan=True, msg=lambda text: f"{why}: {text}")


def failure(action: Callable[[], Any]) -> Exception | None:
    """The error that `action` raises."""
    try:
        action()
    except Exception as error:
        return error
    return None


def learns(losses: list[float]) -> None:
    assert all(map(math.isfinite, losses)), "a loss that is not finite"
    first, last = sum(losses[:10]), sum(losses[-10:])
    assert last < 0.97 * first, f"the loss does not fall: {first / 10:.3g}, then {last / 10:.3g}"


# ----------------------------------------------------------------- probes


def trains(contestant: Contestant) -> None:
    model, optimizer = start(contestant)
    learns(fit(optimizer, model, 200))


def warms_up_from_zero(contestant: Contestant) -> None:
    model, optimizer = start(contestant)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(t / 10, 1.0))
    before, losses = values(model), []
    for t in range(60):
        losses += fit(optimizer, model, 1, t)
        schedule.step()
        if t == 0:
            same(values(model), before, "weights moved with a step size of 0")
    learns(losses)
    assert float(optimizer.param_groups[0]["lr"]) == schedule.base_lrs[0], "the schedule's value was overwritten"


def has_groups(contestant: Contestant) -> None:
    """A group with a tenth of the step size makes a tenth of the step."""
    a, b = (nn.Parameter(torch.eye(3, dtype=torch.float32)) for _ in range(2))
    lr = contestant.make([a]).defaults["lr"]
    optimizer = contestant.make([{"params": [a], "lr": lr}, {"params": [b], "lr": lr / 10}])
    for t in range(20):
        for p in (a, b):
            p.grad = torch.full_like(p, 1.0 + t % 3) + torch.eye(3, dtype=torch.float32)
        optimizer.step()
        if t == 0:
            one, other = (p.detach() - torch.eye(3, dtype=torch.float32) for p in (a, b))
            assert one.abs().max() > 0, "nothing moved"
            same(other, one / 10, "the groups do not have their own step sizes", rtol=1e-2, atol=1e-7)
    assert all(p.isfinite().all() for p in (a, b)), "weights that are not finite"


def leaves_the_frozen_alone(contestant: Contestant) -> None:
    model = network(contestant)
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    losses = fit(contestant.make(model), model, 60)
    assert not model[0].weight.requires_grad, "the frozen parameter was thawed"
    same(model[0].weight, before, "the frozen parameter moved")
    learns(losses)


def resumes_exactly(contestant: Contestant) -> None:
    model, optimizer = start(contestant)
    fit(optimizer, model, 7)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), model.state_dict()], file)
    file.seek(0)
    saved, weights = torch.load(file, weights_only=True)
    twin = network(contestant)
    twin.load_state_dict(weights)
    other = contestant.make(twin)
    other.load_state_dict(saved)
    same(fit(other, twin, 10, 7), fit(optimizer, model, 10, 7), "losses after the resume")
    same(values(twin), values(model), "weights after the resume")


def takes_a_group_in_mid_run(contestant: Contestant) -> None:
    model = network(contestant)
    optimizer = contestant.make(list(model[0].parameters()))
    late = [p.clone() for p in model[2].parameters()]
    fit(optimizer, model, 5)
    same(values(model[2]), late, "what is not in a group moved")
    optimizer.add_param_group({"params": list(model[2].parameters())})
    losses = fit(optimizer, model, 60, 5)
    assert not torch.equal(late[0], model[2].weight), "the new group does not move"
    learns(losses)


def calls_a_closure(contestant: Contestant) -> None:
    model, optimizer = start(contestant)
    twin, other = start(contestant)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model, t)
        value.backward()
        return value

    for t in range(6):
        (expected,) = fit(other, twin, 1, t)
        if t < 3:
            returned = optimizer.step(closure)
        else:
            with torch.no_grad():
                returned = optimizer.step(closure)
        assert returned is not None, "the closure's loss is not returned"
        assert returned.item() == expected, "the closure's loss is another"
    same(values(model), values(twin), "a step with a closure is another")
    assert torch.is_grad_enabled(), "gradients are switched off afterwards"


def moves_bfloat16(contestant: Contestant) -> None:
    model, optimizer = start(contestant, dtype=torch.bfloat16)
    losses = fit(optimizer, model, 60)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(copy.deepcopy(before))
    same(optimizer.state_dict(), before, "load_state_dict rounds the state")
    learns(losses + fit(optimizer, model, 10, 60))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}, "the parameters change their dtype"


def refuses_sparse_gradients(contestant: Contestant) -> None:
    model, optimizer = start(contestant)
    fit(optimizer, model, 3)
    model[2].weight.grad = torch.ones_like(model[2].weight).to_sparse()
    before = copy.deepcopy([values(model), optimizer.state_dict()])
    error = failure(optimizer.step)
    assert error is not None, "no error"
    assert "sparse" in str(error), f"an unclear {type(error).__name__}: {error}"
    same([values(model), optimizer.state_dict()], before, "something moved before the error")
    fit(optimizer, model, 3)


def moves_complex(contestant: Contestant) -> None:
    """A complex parameter moves as its real and imaginary parts do."""
    z = nn.Parameter(torch.tensor([[1 + 2j, 3 - 1j], [0.5j, -2]], dtype=torch.complex64))
    w = nn.Parameter(torch.view_as_real(z.detach()).clone())
    for p in (z, w):
        optimizer = contestant.make([p])
        for _ in range(20):
            optimizer.zero_grad()
            ((torch.view_as_real(p) if p.is_complex() else p).square().sum(-1) - 1).square().sum().backward()
            optimizer.step()
    assert not torch.equal(z, torch.tensor([[1 + 2j, 3 - 1j], [0.5j, -2]])), "nothing moved"
    same(torch.view_as_real(z.detach()), w.detach(), "the parts do not move as numbers do", rtol=1e-5, atol=1e-6)


def heeds_the_grad_scaler(contestant: Contestant) -> None:
    """A scale that is a power of two changes no bit, and a step with an inf is not made."""
    model, optimizer = start(contestant)
    twin, other = start(contestant)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    for t in range(12):
        optimizer.zero_grad()
        scaler.scale(loss(model, t)).backward()
        before = copy.deepcopy([values(model), optimizer.state_dict()])
        if t in (4, 5, 9):
            model[0].weight.grad[0, 0] = torch.inf
        else:
            fit(other, twin, 1, t)
        scaler.step(optimizer)
        scaler.update()
        if t in (4, 5, 9):
            same([values(model), optimizer.state_dict()], before, "a skipped step has changed something")
    same(values(model), values(twin), "scaled steps are others")


def calls_hooks_once(contestant: Contestant) -> None:
    model, optimizer = start(contestant)
    calls: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        hooks.register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        hooks.register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    try:
        fit(optimizer, model, 3)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["global pre", "pre", "post", "global post"] * 3 or sorted(calls) == sorted(
        ["global pre", "pre", "post", "global post"] * 3
    ), f"hooks called {len(calls)} times in 3 steps, not 12"
    fit(optimizer, model, 1)
    assert len(calls) == 12, "a removed hook is called"


def can_be_compiled(contestant: Contestant) -> None:
    """``torch.compile(optimizer.step)`` makes the same steps, and is not compiled again in every step."""
    torch._dynamo.reset()
    model, optimizer = start(contestant)
    twin, other = start(contestant)
    counter = CompileCounter()  # runs what has been traced, as it stands
    step, made = torch.compile(optimizer.step, backend=counter), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(12):
            fit(other, twin, 1, t)
            optimizer.zero_grad()
            backward(optimizer, model, t)
            step()
            made.append(counter.frame_count)
    same(values(model), values(twin), "compiled steps are others", rtol=1e-4, atol=1e-6)
    assert made[-1] == made[5], f"compiled again and again: {made}"
    for warning in caught:  # the compiler of torch 2.13 itself uses what torch 2.13 deprecates
        assert "torch.jit" in str(warning.message), f"a warning: {warning.message}"


PROBES: dict[str, Callable[[Contestant], None]] = {
    "200 steps": trains,
    "warm-up from 0": warms_up_from_zero,
    "two groups": has_groups,
    "frozen parameter": leaves_the_frozen_alone,
    "exact resume": resumes_exactly,
    "add_param_group": takes_a_group_in_mid_run,
    "closure": calls_a_closure,
    "bfloat16": moves_bfloat16,
    "sparse gradient": refuses_sparse_gradients,
    "complex parameter": moves_complex,
    "GradScaler": heeds_the_grad_scaler,
    "step hooks": calls_hooks_once,
    "torch.compile": can_be_compiled,
}


def run(probe: str, contestant: Contestant) -> None:
    """Put a contestant through a probe, or see that it refuses what it is right to refuse."""
    if probe not in contestant.refuses:
        return PROBES[probe](contestant)
    error = failure(lambda: PROBES[probe](contestant))
    assert isinstance(error, ValueError), f"not refused: {error!r}"
    assert re.search(contestant.refuses[probe], str(error)), f"an unclear error: {error}"
    return None
