"""Hypergradients: against finite differences of the loss, and against the paper drawn literally."""

import math
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from cases import ABOVE, RULES, counted, loss, parameters, train, weights
from helpers import STEPS, crossed, difference
from oracle import Oracle

from hypergradient import (
    POSITIVE,
    REAL,
    SGD,
    UNIT,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Averages,
    Hyperoptimizer,
    Lion,
    NAdam,
    RAdam,
    RMSprop,
)

BELOW = SGD(lr=0.5, momentum=0.5, charts={"momentum": REAL})
TOPS = SGD(lr=5e-3), SGD(lr=5e-3), SGD(lr=3.0)
"""By level: what moves values further than finite differences do, for a rule may have a kink where one has been."""


def tower_with(case, level):
    """A tower in which everything of the rule of `case`, at `level`, is tuned."""
    if level == 0:
        return case.rule(**case.lively, tune=case.rule.tunable()) / TOPS[0]
    above = case.rule(**{**case.lively, "lr": 2e-2}, tune=case.rule.tunable())
    far = {1: 1e3, 2: 1e2}[level] if case.rule.points else 1  # the highest lr is a kink of rules that average
    top = SGD(lr=far * TOPS[level].lr)
    return BELOW / above / top if level == 1 else BELOW / SGD(lr=0.5) / above / top


@pytest.mark.parametrize(
    ("case", "level"), [(c, 0) for c in RULES] + crossed([c for c in RULES if not c.matrix], (1, 2)), ids=str
)
def test_equals_finite_differences(case, level):
    tower, mine = tower_with(case, level), parameters(case.matrix)
    optimizer, oracle = Hyperoptimizer(mine, tower), Oracle(tower, weights(case.matrix))
    train(optimizer, mine, STEPS + 1)
    for t in range(STEPS - 1):
        oracle.step(loss(oracle.weights, t))
    for name, found in optimizer.hypergradients()[level].items():
        expected = difference(oracle, (level, name))
        if name in case.flat:
            assert found == 0, name
            assert expected == 0, name
        else:
            assert found == expected, name
            assert level > 0 or found != 0, name


BETAS = ("beta1", "beta2")
HEAVY = SGD(lr={"lr": 1e-2, "momentum": 2e-2}, momentum=0.5, dampening=0.2)
TOWERS = [
    Adam(lr=0.05, eps=0.1) / SGD(lr=0.01),
    SGD(lr=0.1, momentum=0.5, tune=("lr", "momentum", "weight_decay", "dampening")) / Adam(lr=0.01, eps=1e-3) / SGD(lr=1e-3),
    Adagrad(lr=0.1, initial_accumulator_value=0.1) / RMSprop(lr=0.01, eps=0.1) / AdamW(lr=0.01, eps=0.1) / SGD(lr=1e-3),
    Adam(lr=0.05, eps=0.1, charts={"lr": POSITIVE})
    / SGD(lr={"lr": 0.1, "beta1": 0.2, "beta2": 0.3}, momentum=0.5)
    / SGD(lr=0.01),
    Lion(lr=0.01) / SGD(lr=0.01) / Adagrad(lr=0.01) / SGD(lr=0.01, charts={"lr": POSITIVE}) / SGD(lr=0.01),
    SGD(lr=0.1, momentum=0.9, nesterov=True, charts={"lr": POSITIVE, "momentum": UNIT}) / SGD(lr=0.05),
    *(SGD(lr=0.5) / SGD(lr=0.05) / c.rule(**{**c.lively, "lr": 1e-3}) / SGD(lr=1e-4) for c in ABOVE),
    # levels that are alike, each with an origin, or a value for each name, of its own
    SGD(lr=0.5) / AdamW(lr=0.05, weight_decay=0.3, tune="lr") / AdamW(lr=0.05, weight_decay=0.3, tune="lr") / SGD(lr=0.05),
    SGD(lr=0.1, momentum=0.5) / HEAVY / HEAVY / SGD(lr=1e-3),
    # betas of 0, of which nothing moves: from an average after a step, none before it can be had then
    *(
        r(lr=0.05, beta1=0.0, beta2=b, eps=0.1, tune=("lr", *BETAS)) / SGD(lr=0.0)
        for r in (Adam, AdamW, RAdam)
        for b in (0.0, 0.9)
    ),
]


@pytest.mark.parametrize("tower", TOWERS, ids=repr)
def test_equals_the_paper_drawn_literally(tower):
    mine, oracle = parameters(), Oracle(tower, weights())
    optimizer = Hyperoptimizer(mine, tower)
    for t in range(20):
        value = loss(oracle.weights, t)
        assert train(optimizer, mine, 1, t)[0] == pytest.approx(value.item(), rel=1e-10)
        oracle.step(value)
        for k, raw in enumerate(oracle.raw):
            for e in raw:
                value, slope = (of()[k][e.name] for of in (optimizer.hyperparameters, optimizer.hypergradients))
                value, slope = (value, slope) if e.column is None else (value[e.column], slope[e.column])
                assert value == pytest.approx(oracle.value(k, e).item(), rel=1e-10)
                assert t <= k or slope == pytest.approx(oracle.gradients[k][e], rel=1e-9, abs=1e-13)
    torch.testing.assert_close(mine, [w.detach() for w in oracle.weights], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "how"), crossed([c for c in RULES if not c.matrix], [*product([1, 1.5, 10], [None, "cosine"])]), ids=str
)
def test_horizon_and_cosine_are_what_they_say(case, how):
    """``T_t = (1 - 1/horizon) T_{t-1} + dU_t/dh`` with dU_t/dh by finite differences, ``<g, T>`` and its cosine."""
    horizon, normalize = how
    names, size, flat = {"lr", "weight_decay"} & {*case.rule.tunable()}, 1e-6, torch.nn.utils.parameters_to_vector
    rule = case.rule(**case.lively, tune=tuple(names), charts={"lr": POSITIVE}, horizon=horizon, normalize=normalize)
    mine = parameters()
    optimizer = Hyperoptimizer(mine, rule / SGD(lr=1e-2))
    trace = {n: torch.zeros_like(flat(mine)) for n in names}
    state, sums = rule.init(flat(mine)), {}
    for t in range(5):
        optimizer.zero_grad()
        loss(mine, t).backward()
        w, g, old = flat(mine).detach(), flat([p.grad for p in mine]), optimizer.hyperparameters()[0]
        optimizer.step()
        values = optimizer.hyperparameters()[0]
        for n in names if t > 0 else ():
            slope = (g @ trace[n]).item()
            assert optimizer.hypergradients()[0][n] == pytest.approx(slope, rel=1e-6, abs=1e-12)
            raw = slope * (old[n] if n == "lr" else 1.0)
            raw = slope / (g.norm() * trace[n].norm()).item() if normalize else raw
            moved = old[n] * math.exp(-1e-2 * raw) if n == "lr" else old[n] - 1e-2 * raw
            assert values[n] == pytest.approx(moved, rel=1e-8)

        def update(change, w=w, g=g, state=state, t=t, values=values, sums=sums):
            at, now = counted(rule.at({n: torch.tensor(v + change.get(n, 0.0)) for n, v in values.items()}), t + 1, sums)
            return *at.update(w, g, state, at.coefficients(torch.tensor(t + 1.0))), now

        for n in names:
            slope = (update({n: size})[0] - update({n: -size})[0]) / (2 * size)
            trace[n] = (1 - 1 / horizon) * trace[n] + slope
        w, state, sums = update({})
        torch.testing.assert_close(flat(mine).detach(), w, rtol=1e-10, atol=1e-12)


@dataclass(frozen=True)
class Inline(Adam):
    """Adam with weights that are not coefficients."""

    def averages(self, grad, c):
        return {"exp_avg": (grad, 1 - self.beta1), "exp_avg_sq": (grad, 1 - self.beta2, grad)}


@pytest.mark.parametrize("tune", [("lr",), ("beta2",), ("lr", "beta1", "beta2"), ("beta1", "weight_decay")], ids=str)
def test_a_step_that_cannot_be_replayed_is_followed(tune):
    """The replay against derivatives that are kept."""
    first, second = (parameters() for _ in range(2))
    towers = [rule(lr=0.01, weight_decay=0.1, tune=tune) / SGD(lr=1e-3) for rule in (Adam, Inline)]
    replayed, kept = Hyperoptimizer(first, towers[0]), Hyperoptimizer(second, towers[1])
    train(replayed, first, 5), train(kept, second, 5)
    sensitivities = {n for n in kept.state[second[0]] if n.startswith("last_")}
    assert sensitivities == (set() if tune == ("lr",) else {f"last_{n}" for n in tune})
    for name, found in replayed.hypergradients()[0].items():
        assert found == pytest.approx(kept.hypergradients()[0][name], rel=1e-9), name
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


FIRST = {Adam: BETAS, AdamW: BETAS, Adamax: BETAS, NAdam: ("beta2",), RAdam: BETAS}
"""What the first step of a rule does not depend on: NAdam's looks ahead, by its first beta."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", FIRST, ids=lambda rule: rule.__name__)
def test_rounding_is_no_direction_for_a_cosine(rule, dtype):
    """Of what the first step does not depend on, only rounding is left."""
    torch.manual_seed(0)
    param = torch.randn(1000, dtype=dtype, requires_grad=True)
    optimizer = Hyperoptimizer([param], rule(lr=0.01, horizon=5, normalize="cosine") / SGD(lr=0.1))
    names, before = FIRST[rule], optimizer.hyperparameters()[0]
    for _ in range(2):
        param.grad = torch.randn(1000, dtype=dtype) * 10 ** torch.randn(1000, dtype=dtype)
        optimizer.step()
    assert [optimizer.hypergradients()[0][n] for n in names] == [0] * len(names)
    assert [optimizer.hyperparameters()[0][n] for n in names] == [before[n] for n in names]
    assert optimizer.hyperparameters()[0]["lr"] != before["lr"]


@pytest.mark.parametrize("rule", FIRST, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_rounding_is_no_direction_for_a_cosine_above(rule, seed):
    torch.manual_seed(seed)
    param, names = torch.randn(5, dtype=torch.float64, requires_grad=True), FIRST[rule]
    above = rule(lr=1e-3, tune=("lr", *names), normalize="cosine")
    optimizer = Hyperoptimizer([param], SGD(lr=0.1) / above / SGD(lr=0.01))
    before = optimizer.hyperparameters()[1]
    for _ in range(3):
        param.grad = param.detach() - 1
        optimizer.step()
    assert [optimizer.hypergradients()[1][n] for n in names] == [0] * len(names)
    assert [optimizer.hyperparameters()[1][n] for n in names] == [before[n] for n in names]
    assert optimizer.hyperparameters()[1]["lr"] != before["lr"]


@dataclass(frozen=True)
class Crossed(Adam):
    """Adam with the weights of its averages exchanged."""

    def averages(self, grad, c):
        return super().averages(grad, (*c[:2], c[3], c[2]))


@dataclass(frozen=True)
class Shared(Adam):
    """Adam with one weight for both averages."""

    def averages(self, grad, c):
        return super().averages(grad, (*c[:3], c[2]))


@dataclass(frozen=True)
class Watched(Adam):
    """Adam with an average that moves nothing."""

    def init(self, param):
        return {**super().init(param), "seen": torch.zeros_like(param)}

    def averages(self, grad, c):
        return {**super().averages(grad, c), "seen": (grad.abs(), c[2])}


@dataclass(frozen=True)
class Shrunk(Adam):
    """Adam with a decay by a coefficient that is used elsewhere too."""

    def decay(self, c):
        return c[2]


@dataclass(frozen=True)
class Clipped(Adam):
    """Adam with an average that is changed after all."""

    def follows(self, others, averages):
        return {**super().follows(others, averages), "exp_avg": averages["exp_avg"].clamp(-0.01, 0.01)}


def kept(rule):
    """`rule` without a replay."""
    return dataclass(frozen=True)(type(f"Kept{rule.__name__}", (rule,), {"update": lambda *args: Averages.update(*args)}))


OPTIONS = [
    {},
    {"tune": ("lr",), "amsgrad": True},
    {"horizon": 5},
    {"horizon": 5, "normalize": "cosine"},
    {"weight_decay": 0.1},
    {"tune": "beta2"},
]


@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize(("rule", "options"), crossed([Adam, AdamW, Crossed, Shared, Watched, Shrunk, Clipped], OPTIONS))
def test_who_redefines_averages_is_replayed_as_they_are_now(rule, options, per):
    found = []
    for kind in (rule, kept(rule)):
        mine = parameters()
        optimizer = Hyperoptimizer(mine, kind(lr=0.01, **options) / SGD(lr=1e-3), per=per)
        train(optimizer, mine, 8)
        found.append((*optimizer.hyperparameters(), *optimizer.hypergradients(), mine))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_over_the_whole_run_an_upper_level_reads_as_over_a_very_long_one():
    """What is followed as a movement is the weights alone."""
    found = []
    for horizon in (math.inf, 1e12):
        p = torch.tensor([2.0], requires_grad=True)
        middle = SGD(lr=0.01, charts={"lr": POSITIVE}, horizon=horizon)
        optimizer = Hyperoptimizer([p], SGD(lr=0.1) / middle / SGD(lr=1e-3))
        for _ in range(5):
            p.grad = 2 * p.detach()
            optimizer.step()
        found.append([optimizer.hyperparameters()[1]["lr"], optimizer.hypergradients()[1]["lr"]])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
