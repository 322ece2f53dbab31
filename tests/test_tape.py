"""Tapes: what is played is what the operations do, one by one; and which steps are played at all."""

import math
from dataclasses import dataclass

import pytest
import torch
from cases import RULES, loss, parameters, train
from helpers import EVERY, HEIGHT_3, crossed

from hypergradient import SGD, Adam, Adamax, Hyperoptimizer, auto, tape
from hypergradient.engine import Engine
from hypergradient.numerics import totals

CPU = torch.device("cpu")
TUNED = {"exact": {}, "followed": {"horizon": 9}, "cosine": {"horizon": 9, "normalize": "cosine"}}
TOWERS = {
    **{f"{case} {o}": (case.rule(**{"lr": 0.1, **o}), case) for case in RULES for o in case.variants},
    **{f"{c} {n}": (c.rule(**c.lively, **o) / Adam(lr=1e-3) / SGD(lr=1e-4), c) for c in RULES for n, o in TUNED.items()},
    **{f"{c} metric": (c.rule(**c.lively, horizon=9, normalize="metric cosine") / SGD(lr=1e-2), c) for c in RULES},
    "a decay of Adamax": (Adamax(lr=0.1, weight_decay=0.1, tune=("lr", "weight_decay")) / SGD(lr=1e-3), RULES[0]),
    **{f"auto of {case}": (auto(case.rule(**case.lively)), case) for case in RULES if "lr" in case.rule.tunable()},
}


@pytest.fixture
def tapes(monkeypatch):
    """What is recorded, and why something is not."""
    found, record = [], tape.record

    def noted(function, tensors, elements):
        try:
            made = record(function, tensors, elements)
        except tape.Unrecordable as error:
            found.append(error)
            raise
        found.append(made)
        return made

    monkeypatch.setattr(tape, "record", noted)
    return found


def trained(tower, case, groups=False, steps=6):
    mine = parameters(matrix=case.matrix)
    optimizer = Hyperoptimizer([{"params": [p]} for p in mine] if groups else mine, tower)
    train(optimizer, mine, steps)
    state = [[x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)] for p in mine]
    return mine, state, optimizer.hyperparameters(), optimizer.hypergradients()


@pytest.mark.parametrize(("name", "groups"), crossed([*TOWERS][:: min(EVERY, 2)], (False, True)), ids=str)
def test_what_is_played_is_what_the_operations_do(name, groups, tapes, monkeypatch):
    tower, case = TOWERS[name]
    played = trained(tower, case, groups)
    assert not [x for x in tapes if isinstance(x, Exception)]
    assert tapes
    monkeypatch.setattr(Engine, "_may_play", lambda *_: False)
    torch.testing.assert_close(played, trained(tower, case, groups), rtol=1e-9, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_elements_of_less_precision_are_played_likewise(per, dtype, monkeypatch):
    def found():
        torch.manual_seed(0)
        mine = [torch.nn.Parameter(torch.randn(n, dtype=dtype)) for n in (3, 300, 7)]
        optimizer = Hyperoptimizer(mine, auto() / SGD(lr=1e-3), per=per)
        for _ in range(20):
            for p in mine:
                p.grad = 0.1 * p.detach() + 0.01
            optimizer.step()
        return [p.detach() for p in mine], optimizer.hyperparameters()[0]["lr"]

    played = found()
    monkeypatch.setattr(Engine, "_may_play", lambda *_: False)
    tolerance = {"rtol": 1e-2 if dtype == torch.bfloat16 else 1e-4, "atol": 1e-5}  # elements of size 1 are rounded twenty times
    torch.testing.assert_close(played, found(), **tolerance)


NUMBERS = [0.0, -0.0, 1.0, -1.5, 0.3, 800.0, -800.0, 1e-310, 1e300, math.inf, -math.inf, math.nan]
OPERATIONS = {
    "one": [
        torch.neg, torch.abs, torch.sqrt, torch.exp, torch.expm1, torch.log, torch.sigmoid, torch.sign,
        torch.reciprocal, lambda x: torch.nan_to_num(x, 1.0, 2.0, 3.0), lambda x: x.clamp(-1, 1),
        lambda x: x.clamp_min(0.5), lambda x: 2 - x, torch.zeros_like,
        lambda x: torch.nn.functional.threshold(x, 0.5, 7.0), lambda x: x.sum(), lambda x: (x > 0).all(),
        lambda x: x.view(3, 4).sum(0), lambda x: x.view(3, 4).sum(-1, keepdim=True), lambda x: x.view(3, 2, 2).sum((0, 2)),
        lambda x: (x.view(3, 4) > 0).all(1), lambda x: x.view(3, 4).t().flatten(), lambda x: torch.cat([x[3:], x[:3]]),
        lambda x: torch.stack(x.unbind()[::-1]), lambda x: x.index_select(0, torch.tensor([2, 2, 0])),
        lambda x: x.to(torch.bool),
        lambda x: (x > 0).to(torch.float64) + 1, lambda x: x.masked_fill(x > 0, 5.0),
    ],
    "two": [
        torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.maximum, torch.eq, torch.lt,
        torch.le, torch.gt, torch.ge, lambda x, y: torch.add(x, y, alpha=3), lambda x, y: torch.sub(x, y, alpha=0.5),
        lambda x, y: torch.where(x > y, x, y), lambda x, y: (x > 0) & (y > 0), lambda x, y: (x > 0) | (y > 0),
        lambda x, y: torch.lerp(x, y, 0.25), lambda x, y: torch.addcmul(x, x, y, value=2),
        lambda x, y: x.clamp_min(y), lambda x, y: x * y.sum(),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("function", "takes"), [(f, n) for n, fs in OPERATIONS.items() for f in fs])
def test_numbers_are_what_torch_says(function, takes):
    one = torch.tensor(NUMBERS)
    given = [one] if takes == "one" else [one.repeat_interleave(len(one)), one.repeat(len(one))]
    found, expected = tape.record(function, given, [False] * len(given))(*given), function(*given)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-320, equal_nan=True)


def test_what_is_written_is_written_to_what_is_given_and_known():
    known = torch.zeros(2, 3)

    def function(p, q, n):
        known[1] += n[0]
        old = p.clone()
        p.copy_(q), q.copy_(old), n.mul_(2)
        return known.sum()

    p, q, n = torch.randn(5), torch.randn(5), torch.ones(3)
    played, before = tape.record(function, [p, q, n], [True, True, False]), (p.clone(), q.clone())
    assert known.sum() == 0
    assert (played(p, q, n), played(p, q, n)) == (3, 9)
    assert known[1].tolist() == [3] * 3
    assert n.tolist() == [4] * 3
    torch.testing.assert_close((p, q), before)


def test_a_tall_tower_is_played_and_a_wide_one_is_not(tapes, monkeypatch):
    """A tape does one number after the other; what torch does to many at once it does in less time."""
    tall = Adam(lr=1e-3)
    for _ in range(20):
        tall = tall / Adam(lr=1e-4)
    case = RULES[0]
    played = trained(tall, case)
    assert tapes
    assert not [x for x in tapes if isinstance(x, Exception)]
    tapes.clear()
    mine = [torch.nn.Parameter(torch.ones(2)) for _ in range(100)]
    optimizer = Hyperoptimizer(mine, Adam(lr=1e-3) / SGD(lr=1e-5), per="tensor")
    for p in mine:
        p.grad = torch.ones(2)
    for _ in range(3):
        optimizer.step()
    assert [x for x in tapes if isinstance(x, tape.Unrecordable)]
    assert optimizer.hyperparameters()[0]["lr"] != [1e-3] * 100
    monkeypatch.setattr(Engine, "_may_play", lambda *_: False)
    torch.testing.assert_close(played, trained(tall, case), rtol=1e-9, atol=1e-13, equal_nan=True)


def test_a_rule_of_ones_own_is_not_played_for_nobody_knows_what_else_it_does(tapes):
    seen = []

    @dataclass(frozen=True)
    class Counting(SGD):
        def update(self, param, grad, state, c):
            seen.append(1)
            return super().update(param, grad, state, c)

    mine = parameters()
    optimizer = Hyperoptimizer(mine, Counting(lr=0.1) / SGD(lr=1e-3))
    train(optimizer, mine, 1)
    once = len(seen)
    train(optimizer, mine, 1)
    assert len(seen) > once
    assert not tapes


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: x.sort().values.sum(),
        lambda x, n: torch.fft.fft(n).real,
        lambda x, n: x * n.repeat(tape.LENGTH // 3 + 1)[: tape.LENGTH],
        lambda x, n: x.mul_(2) if n.sum() > 0 else n,
        lambda x, n: x * 2,
        lambda x, n: torch.div(n, 2, rounding_mode="floor"),
        lambda x, n: n.expand(tape.LENGTH, 3).sum(0),
        lambda x, n: (x[0].expand(tape.LENGTH) * x).sum(),
        lambda x, n: x.float().sum(dtype=torch.float64),
    ],
)
def test_what_a_tape_cannot_hold_is_refused(function):
    with pytest.raises(tape.Unrecordable):
        tape.record(function, [torch.ones(5), torch.ones(3)], [True, False])


def test_a_tape_for_each_group_serves_whichever_of_them_move_and_is_dropped_with_its_levels(tapes):
    mine = [torch.nn.Parameter(torch.ones(3)) for _ in range(6)]
    optimizer = Hyperoptimizer([{"params": [p]} for p in mine])
    for t in range(40):
        for i, p in enumerate(mine):
            p.grad = p.detach() * 0.1 if t >> i & 1 else None
        optimizer.step()
    assert len(tapes) <= 5 * len(mine) + 2
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    optimizer.step()
    assert len(optimizer._own.engine.tapes) < len(tapes)


def test_a_chart_of_ones_own_is_not_played_either(tapes):
    class Own(torch.distributions.ExpTransform):
        pass

    mine = parameters()
    optimizer = Hyperoptimizer(mine, SGD(lr=0.1, charts={"lr": Own()}) / SGD(lr=1e-3))
    train(optimizer, mine, 2)
    assert not tapes


def test_elements_are_rounded_where_they_are_copied():
    def function(x, y):
        y.copy_(x), x.copy_(y)

    x, y = torch.rand(5), torch.rand(5, dtype=torch.float32)
    expected = x.float()
    tape.record(function, [x, y], [True, True])(x, y)
    torch.testing.assert_close((x, y), (expected.double(), expected), rtol=0, atol=0)


def test_a_step_that_a_tape_cannot_hold_is_made_without(monkeypatch):
    def refuse(*_):
        raise tape.Unrecordable

    expected = trained(HEIGHT_3, RULES[0])
    monkeypatch.setattr(tape, "record", refuse)
    torch.testing.assert_close(trained(HEIGHT_3, RULES[0]), expected, rtol=1e-9, atol=1e-13, equal_nan=True)
    assert loss(parameters()) > 0


CUTS = [(2048, 4096, 70), (64, 64, 96, 96, 96, 7), (2048, 2051, 3), (2048, 70), (2048, 0), (0, 64, 5), (0, 0, 5)]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_parts_are_added_up_each_by_itself(cuts):
    x, y = (torch.randn(sum(cuts), dtype=torch.float64) for _ in range(2))

    def sums(*of):
        return totals([of[0] * of[1], of[1]], cuts)

    played = tape.record(sums, [x, y], [True, True])
    expected = torch.stack([torch.stack([part.sum() for part in z.split(cuts)]) for z in (x * y, y)])
    torch.testing.assert_close(played(x, y), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.compile(sums, backend="eager")(x, y), expected, rtol=1e-12, atol=1e-12)
