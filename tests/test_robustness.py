"""Numbers at their limits: gradients that are not finite, values at the edge of their constraint, rounding, overflow."""

import math
from dataclasses import dataclass

import pytest
import torch
from cases import loss, parameters, train
from helpers import levels, scalars

import hypergradient as hg
from hypergradient import POSITIVE, SGD, Adam, AdamW, Hyperoptimizer, Rule, hyperparameter, nonnegative
from hypergradient.level import COUNT, READ


@pytest.mark.parametrize("rule", [SGD(lr=0.1, tune="lr"), Adam(lr=0.1)], ids=repr)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_non_finite_gradients_do_not_enter_the_tower(rule, bad):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, rule / Adam(lr=1e-3) / SGD(lr=1e-5))
    train(optimizer, mine, 5)
    tower = levels(optimizer)
    values = optimizer.hyperparameters()
    keep = [p.detach().clone() for p in mine]
    mine[0].grad[0, 0] = bad
    optimizer.step()
    assert optimizer.hyperparameters() == values
    for level, rows in levels(optimizer).items():
        assert all(torch.equal(row, tower[level][i]) for i, row in enumerate(rows) if i != READ)
    assert not torch.equal(mine[1], keep[1])  # the weights do what they do in torch.optim


@dataclass(frozen=True)
class Sign(Rule):
    """A rule whose steps are finite along any gradient."""

    lr: float = hyperparameter(1e-3, nonnegative)

    def update(self, param, grad, state, c):
        return param - self.lr * grad.nan_to_num().sign(), state


def test_what_is_not_finite_at_a_level_stops_it_and_those_above_but_not_those_below():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, Adam(lr=0.1) / Sign(lr=1e-3) / Sign(lr=1e-4) / Sign(lr=1e-5) / Sign(lr=1e-6))
    train(optimizer, mine, 6)
    before, values = levels(optimizer), optimizer.hyperparameters()
    optimizer._own.levels.of(optimizer._own.levels.levels[1])[-2].fill_(torch.inf)  # dU/dlr: the third's gradient
    optimizer.step()
    made = [(rows[COUNT] - before[name][COUNT]).unique().tolist() for name, rows in levels(optimizer).items()]
    assert made == [[1], [1], [0], [0]]
    now = optimizer.hyperparameters()
    assert [a != b for a, b in zip(now, values, strict=True)] == [True, True, False, False, False]


def test_one_bad_gradient_does_not_stop_the_tuning_for_ever():
    p = torch.ones(4, requires_grad=True)
    optimizer = Hyperoptimizer([p], SGD(lr=0.1, momentum=0.0, horizon=10) / SGD(lr=1e-3))
    for t in range(30):
        p.grad = torch.ones(4)
        if t == 5:
            p.grad[0] = torch.inf
        optimizer.step()
        p.detach().nan_to_num_(1.0, 1.0, 1.0)
        optimizer.state[p]["momentum_buffer"].nan_to_num_(0.0, 0.0, 0.0)
    assert math.isfinite(optimizer.hypergradients()[0]["lr"])


def test_an_overflow_is_no_step():
    (p,) = scalars(3, dtype=torch.float32)
    optimizer = Hyperoptimizer([p], SGD(lr=0.1) / SGD(lr=1e30))
    for _ in range(3):
        p.grad = torch.full_like(p, 1e6)
        optimizer.step()
    assert optimizer.hyperparameters()[0]["lr"] == pytest.approx(0.1)


def test_the_cosine_stays_a_cosine_when_squares_leave_their_range():
    p = torch.ones(4, dtype=torch.float32, requires_grad=True)
    tower = Adam(lr=1e-3, tune="lr", charts={"lr": POSITIVE}, horizon=100, normalize="cosine") / SGD(lr=0.3)
    optimizer, before = Hyperoptimizer([p], tower), 1e-3
    for size in (1.0, 1.0, 1e-23, 1e-30, 1.0):
        p.grad = torch.full_like(p, size)
        optimizer.step()
        after = optimizer.hyperparameters()[0]["lr"]
        assert abs(math.log(after / before)) < 0.3001
        before = after


@pytest.mark.parametrize("name", ["momentum", "weight_decay", "dampening"])
def test_what_starts_at_zero_can_be_learned(name):
    rule = SGD(lr=0.1, momentum=0.5 if name == "dampening" else 0.0, tune=name)
    mine = parameters()
    optimizer = Hyperoptimizer(mine, rule / SGD(lr=10.0))
    seen = set()
    for t in range(20):
        train(optimizer, mine, 1, t)
        seen.add(optimizer.hyperparameters()[0][name])
    assert len(seen) > 2, "held by its constraint now and then, but not for ever"


def test_a_zero_under_the_log_chart_stays_zero():
    mine = parameters()
    groups = [{"params": mine[:1]}, {"params": mine[1:], "weight_decay": 0.0}]
    tower = AdamW(lr=0.01, tune="weight_decay", charts={"weight_decay": POSITIVE}) / SGD(lr=10.0)
    optimizer = Hyperoptimizer(groups, tower)
    train(optimizer, mine, 10)
    assert optimizer.hyperparameters(0)[0]["weight_decay"] != 0.01
    assert optimizer.hyperparameters(1)[0]["weight_decay"] == 0.0


def test_a_learned_lr_is_projected_and_comes_back():
    p = torch.ones(4, requires_grad=True)
    optimizer, seen = Hyperoptimizer([p], SGD(lr=0.1) / SGD(lr=1.0)), []
    for sign in (1, -1, -1, 1, 1, 1):
        p.grad = torch.full((4,), float(sign))
        optimizer.step()
        seen.append(optimizer.hyperparameters()[0]["lr"])
    assert min(seen) == 0.0
    assert seen[-1] > 0


@pytest.mark.parametrize("above", [None, SGD(lr=1e-5)], ids=repr)
def test_a_value_that_rounds_out_of_its_constraint_is_held(above):
    mine = [p.detach().float().requires_grad_() for p in parameters()]
    rule = Adam(lr=0.01, beta2=1 - 1e-9)
    optimizer = Hyperoptimizer(mine, rule if above is None else rule / above)
    for _ in range(3):
        optimizer.zero_grad()
        loss([p.double() for p in mine]).backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in mine)
    assert optimizer.hyperparameters()[0]["beta2"] < 1


@pytest.mark.parametrize("beta2", [0.5, 0.6, 0.65, 0.9])
def test_radam_has_a_derivative_where_it_never_rectifies(beta2):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, hg.RAdam(lr=0.01, beta2=beta2) / SGD(lr=1e-3))
    train(optimizer, mine, 10)
    assert all(map(math.isfinite, optimizer.hypergradients()[0].values()))


FORGETFUL = {
    "a beta near 0": (Adam(lr=0.1, beta1=1e-8), {}),
    "a beta that a schedule takes to 0": (Adam(lr=0.1), {"beta1": 0.0}),
    "a decay of everything": (AdamW(lr=1.0, weight_decay=1.0, tune=("lr",)), {}),
}


@pytest.mark.parametrize(("rule", "said"), FORGETFUL.values(), ids=FORGETFUL.keys())
def test_what_cannot_be_recovered_does_not_stop_the_tuning(rule, said):
    (p,) = scalars(3)
    optimizer = Hyperoptimizer([p], rule / SGD(lr=1e-3))
    for _ in range(6):
        optimizer.step()
        optimizer.param_groups[0].update(said)
    assert all(map(math.isfinite, optimizer.hypergradients()[0].values()))


@pytest.mark.parametrize(("rule", "lost"), [(Adam, [0]), (AdamW, [0])])
def test_a_penalty_that_comes_and_goes_loses_a_reading_and_makes_none_up(rule, lost):
    """What a step has left behind is of no use to another kind of step."""

    def read(decays):
        p = torch.arange(1.0, 6.0).requires_grad_()
        optimizer = Hyperoptimizer([p], rule(lr=0.05, beta2=0.9, weight_decay=0.0) / Adam(lr=1e-3))
        found = []
        for t, decay in enumerate(decays):
            p.grad = (p.detach() - 3) * (10 if t < 3 else 1) + torch.sin(torch.arange(5.0) * t)
            optimizer.param_groups[0]["weight_decay"] = decay
            optimizer.step()
            found.append(optimizer.hypergradients()[0]["lr"])
        return found, optimizer.state[p].keys()

    plain, names = read([0.0] * 9)
    found, same = read([1e-12 if 3 <= t < 6 else 0.0 for t in range(9)])
    assert same == names
    assert [t for t, x in enumerate(found) if math.isnan(x)] == lost
    for x, y in zip(found, plain, strict=True):
        assert math.isnan(x) or x == pytest.approx(y, rel=1e-2)
