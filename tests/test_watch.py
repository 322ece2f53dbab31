"""What goes wrong in tuning is said once, with the group, the value and what to write instead."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from cases import parameters, train

from hypergradient import SGD, Adam, Averages, Hyperoptimizer, auto, from_torch, hyperparameter, nonnegative, unit_interval

pytestmark = pytest.mark.filterwarnings("error")  # also what other tests may say


def descend(tower, steps=40, **options):
    """A slope that never ends, of a loss that is far too large a number for the paper's towers."""
    p = torch.ones(3, requires_grad=True)
    optimizer = Hyperoptimizer([{"params": [torch.ones(2, requires_grad=True)]}, {"params": [p]}], tower, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        (1e3 * p.sum()).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
def test_a_step_size_that_runs_away_is_said_once_and_by_its_group(per):
    where = "group 0" if per == "all" else "group 1"
    with pytest.warns(
        RuntimeWarning, match=f"{where}: the learned lr has run away, from 1e-09 to .*Hyperoptimizer\\(params\\)"
    ) as said:
        descend(SGD(lr=1e-9) / SGD(lr=1e-3), per=per)
    assert len([w for w in said if "learned lr" in str(w.message)]) == 1
    assert said[0].filename == __file__


def test_a_step_size_that_comes_to_rest_at_0_is_said():
    p = torch.ones(1, requires_grad=True)
    optimizer = Hyperoptimizer([p], SGD(lr=0.1) / SGD(lr=10.0))

    def swing():
        for t in range(20):
            p.grad = torch.full_like(p, (-1.0) ** t)
            optimizer.step()

    with pytest.warns(RuntimeWarning, match="group 0: the learned lr has come to rest at 0, from 0.1 at the start"):
        swing()


@pytest.mark.parametrize("tower", [None, auto(Adam(lr=1e-12)), auto(SGD(momentum=0.9))], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_nothing_is_said_where_weights_are_large(tower, scale):
    """Of data that nobody has scaled."""
    torch.manual_seed(0)
    x = torch.randn(256, 10)
    y, p = scale * x @ torch.randn(10), torch.zeros(10, requires_grad=True)
    optimizer = Hyperoptimizer([p], tower)
    for _ in range(200):
        batch = torch.randint(256, (64,))
        optimizer.zero_grad()
        (x[batch] @ p - y[batch]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("tower", [Adam(lr=1e-3) / SGD(lr=1e-5), Adam(lr=1e-6) / SGD(lr=1e-5), auto(), auto(SGD())], ids=str)
def test_nothing_is_said_of_what_goes_well(tower):
    params = parameters()
    train(Hyperoptimizer(params, tower), params, 60)


@pytest.mark.parametrize("tower", [None, auto(Adam())], ids=str)
def test_gradients_that_remember_make_auto_run_away_and_that_is_said(tower):
    """As momentum that is taken before the step: along it, a longer path always looks better. Not so with `tune_on`."""

    def go(on):
        torch.manual_seed(0)
        x = torch.randn(512, 20)
        y = (x @ torch.randn(20) > 0).long()
        model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
        optimizer, kept = Hyperoptimizer(model.parameters(), tower), [torch.zeros_like(p) for p in model.parameters()]
        for t in range(160):
            batch = slice(t % 16 * 32, t % 16 * 32 + 32)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            for p, old in zip(model.parameters(), kept, strict=True):
                p.grad = old.lerp_(p.grad, 0.1).clone()
            if on:
                optimizer.tune_on(torch.nn.functional.cross_entropy(model(x[batch]), y[batch]))
            optimizer.step()

    with pytest.warns(
        RuntimeWarning, match=r"group 0: the learned lr has grown from .*momentum.*optimizer\.tune_on\(loss\)"
    ) as said:
        go(on=False)
    assert len(said) == 1
    go(on=True)


@pytest.mark.parametrize(
    "make",
    [Hyperoptimizer, lambda params: from_torch(torch.optim.AdamW(params, lr=1e-3))],
    ids=["default", "from_torch"],
)
def test_that_gradients_are_never_set_to_0_is_said(make):
    """Under AdamW the step size that runs away comes to rest where nothing can be read any more, long before it is HIGH."""
    torch.manual_seed(0)
    x = torch.randn(512, 20)
    y = (x @ torch.randn(20) > 0).long()
    layers = [torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)]
    model = torch.nn.Sequential(*layers)
    optimizer = make(model.parameters())

    def go():
        for t in range(300):
            batch = slice(t % 16 * 32, t % 16 * 32 + 32)
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()

    with pytest.warns(RuntimeWarning, match=r"group 0: the learned lr has grown from .* without zero_grad\(\) before") as said:
        go()
    assert len(said) == 1


@pytest.mark.parametrize("tower", [auto(), auto(Adam())], ids=["default", "Adam"])
def test_nothing_is_said_of_a_parameter_that_rests(tower):
    """What is not read of it is not lost, however far the step sizes have grown: here, targets are large."""
    torch.manual_seed(0)
    x = torch.randn(256, 20)
    y = 1e4 * (x @ torch.randn(20, 1))
    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = Hyperoptimizer(model.parameters(), tower, per="tensor")
    for t in range(260):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        if t > 200:
            model[2].weight.grad = model[2].bias.grad = None
        optimizer.step()
    assert max(optimizer.hyperparameters()[0]["lr"][2:]) > 10  # where it would be said, were it lost


@dataclass(frozen=True)
class Rooted(Averages):
    """RMSprop as one writes it."""

    lr: float = hyperparameter(0.01, nonnegative)
    beta: float = hyperparameter(0.9, unit_interval)

    def init(self, param):
        return {"v": torch.zeros_like(param)}

    def coefficients(self, step):
        return (1 - self.beta,)

    def averages(self, grad, c):
        return {"v": (grad, c[0], grad)}

    def displacement(self, state, c):
        return self.lr * state["v"] / (torch.sqrt(state["v"]) + 1e-8)


@dataclass(frozen=True)
class Safe(Rooted):
    def displacement(self, state, c):
        return self.lr * state["v"] / (torch.sqrt(state["v"].clamp_min(1e-38)) + 1e-8)


@pytest.mark.parametrize("rule", [Rooted(), Safe()], ids=repr)
def test_a_rule_of_ones_own_whose_derivative_is_never_finite_is_said(rule):
    p, rests = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = Hyperoptimizer([{"params": [rests]}, {"params": [p]}], rule / SGD(lr=1e-5))

    def go():
        for t in range(40):
            p.grad = torch.tensor([1.0 + t, 0.0])
            rests.grad = torch.ones(2) if t < 12 else None
            optimizer.step()

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        go()
    messages = [str(w.message) for w in said]
    assert len(messages) == (type(rule) is Rooted)
    assert all("group 1: the hypergradients of Rooted are NaN" in m for m in messages)


def test_a_rule_of_ones_own_that_rests_every_second_step_is_not_said():
    p, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = Hyperoptimizer([{"params": [p]}, {"params": [other]}], Safe() / SGD(lr=1e-5))
    for t in range(40):
        p.grad = torch.ones(2) if t % 2 else None
        other.grad = torch.ones(2)
        optimizer.step()
