"""The default: what it is, what it keeps, how it follows schedules."""

import copy
import math
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from cases import RULES, counted, loss, parameters, train, weights
from helpers import EXACT, clones, compiler, crossed, everything, resumed
from torch.optim import lr_scheduler

import hypergradient as hg
from hypergradient import (
    POSITIVE,
    REAL,
    SGD,
    Adam,
    AdamW,
    AdamWScheduleFree,
    Age,
    Hyperoptimizer,
    Rule,
    auto,
    from_torch,
    hyperparameter,
    nonnegative,
)
from hypergradient.auto import around, start
from hypergradient.sample import ENOUGH, LINE, Sample

MOVING = [case for case in RULES if case.rule.multiplier]
"""Those whose lr multiplies all that moves a parameter."""
START = auto().rules[0].lr
"""Where the default begins."""


def lr(optimizer, group=0):
    return optimizer.hyperparameters(group)[0]["lr"]


def test_the_default_is_auto_and_prints_as_the_tower_it_is():
    optimizer = Hyperoptimizer(parameters())
    assert optimizer.tower == auto() == auto(AdamWScheduleFree())
    assert repr(optimizer) == "AdamWScheduleFree(lr=7.813e-05, r=4) / Tuner(lr=1.3)"
    assert eval(repr(auto()), vars(hg)) == auto()
    assert auto(weight_decay=0.1) == auto(AdamWScheduleFree(weight_decay=0.1))


@pytest.mark.parametrize("case", MOVING, ids=str)
def test_auto_goes_around_any_rule_and_takes_its_values(case):
    rule = auto(case.rule(lr=1e-7, weight_decay=0.1)).rules[0]
    assert type(rule) is case.rule
    assert (rule.lr, rule.weight_decay, rule.tuned()) == (1e-7, 0.1, ("lr",))
    usual = case.rule().lr
    assert auto(case.rule()).rules[0].lr == (usual / 32 if case.rule.preconditioner is not Rule.preconditioner else 1e-6)
    assert auto(case.rule(lr=2 * usual)) == auto(case.rule()), "a higher start is lowered"
    for given in (usual, 4000 * usual):
        assert (
            lr(Hyperoptimizer([{"params": parameters(case.matrix), "lr": given}], auto(case.rule())))
            == auto(case.rule()).rules[0].lr
        )
    params = parameters(case.matrix)
    optimizer = Hyperoptimizer(params, auto(case.rule()))
    before = loss(params).item()
    train(optimizer, params, 30)
    assert lr(optimizer) > max(1e-4, 3 * optimizer.tower.rules[0].lr)
    assert loss(params).item() < before


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match=r"rule=<class .*SGD'> is not allowed.*write auto\(SGD\(\)\)"):
        auto(SGD)
    with pytest.raises(TypeError, match="takes no more arguments: give weight_decay to SGD"):
        auto(SGD(), weight_decay=0.1)
    for rule in (Adam(tune="beta1"), Adam(horizon=5), Adam(normalize="cosine"), Adam(sample=4)):
        with pytest.raises(
            ValueError, match=r"auto has its own tune, horizon, normalize, sample: leave out \w+, or write a tower"
        ):
            auto(rule)
    with pytest.raises(ValueError, match="leave out horizon"):
        auto(horizon=5)
    with pytest.raises(TypeError, match="AdamWScheduleFree has no argument 'decay'"):
        auto(decay=0.1)

    @dataclass(frozen=True)
    class Other(Rule):
        rate: float = hyperparameter(0.1, nonnegative)

        def update(self, param, grad, state, c):
            return param - self.rate * grad, state

    with pytest.raises(ValueError, match="no hyperparameter lr"):
        auto(Other())
    with pytest.raises(ValueError, match="leave out charts, or write a tower"):
        auto(Adam(charts={"lr": REAL}))
    with pytest.raises(ValueError, match="leave out charts"):
        Hyperoptimizer([{"params": parameters(), "rule": Adam(charts={"lr": REAL})}])
    for make in (lambda: auto(lr=0.0), lambda: auto(SGD(lr=0.0))):
        with pytest.raises(ValueError, match=r"lr=0.0.* it would rest; leave out lr, or give a group its own, \{'lr': 0.0\}"):
            make()
    with pytest.raises(TypeError, match=r"got <function auto .*: write auto\(\)"):
        Hyperoptimizer(parameters(), auto)
    with pytest.raises(ValueError, match=r"Age: times=0 is not allowed"):
        Age(0)


def test_an_r_of_0_may_be_asked_for():
    assert [auto(**more).rules[0].r for more in ({}, {"r": 0.0}, {"r": 2.0})] == [4.0, 0.0, 2.0]


# ------------------------------------------------- its sensitivity is its movement


@pytest.mark.parametrize("case", MOVING, ids=str)
def test_the_lr_multiplies_all_that_moves_a_parameter(case):
    """Along the same gradients, the derivative of the whole run with respect to the logarithm of a common factor."""
    options = {**case.lively, "weight_decay": 0.0}
    rule = case.rule(**options)
    assert rule.multiplier == "lr"
    gradients = [weights(case.matrix, seed) for seed in range(1, 6)]

    def run(factor):
        values = {n: torch.tensor(getattr(rule, n)) for n in rule.hyperparameters()}
        at, after = rule.at({**values, "lr": values["lr"] * factor}), []
        for w, *grads in zip(weights(case.matrix), *gradients, strict=True):
            state, sums = rule.init(w), {}
            for t, g in enumerate(grads, 1):
                here, sums = counted(at, t, sums)
                w, state = here.update(w, g, state, here.coefficients(torch.tensor(float(t))))
            after.append(w)
        return torch.cat([w.flatten() for w in after])

    slope = torch.autograd.functional.jacobian(run, torch.tensor(1.0))
    start = torch.cat([w.flatten() for w in weights(case.matrix)])
    torch.testing.assert_close(slope, run(torch.tensor(1.0)) - start, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in MOVING if "ScheduleFree" not in str(c)], ids=str)
def test_decay_is_part_of_it(case):
    rule = case.rule(**case.lively)
    (w, *_), (g, *_) = weights(case.matrix), weights(case.matrix, 1)
    values = {n: torch.tensor(getattr(rule, n)) for n in rule.hyperparameters()}

    def step(log):
        at = rule.at({**values, "lr": values["lr"] * log.exp()})
        return at.update(w, g, rule.init(w), at.coefficients(torch.tensor(1.0)))[0]

    slope = torch.autograd.functional.jacobian(step, torch.tensor(0.0))
    torch.testing.assert_close(slope, step(torch.tensor(0.0)) - w, rtol=1e-9, atol=1e-12)


def tall():
    """Two large tensors, one of them twice as large, and small ones."""
    torch.manual_seed(3)
    return [torch.nn.Parameter(torch.randn(n, 64) / 9) for n in (2, 32, 1, 64, 3)]


def pulled(params, t):
    """A loss that is different in each step and for each parameter."""
    targets = [torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel() + t)) for p in params]
    return sum(((p - y / 3).tanh() ** 2).mean() * len(p) for p, y in zip(params, targets, strict=True))


def cosine(rule, step, optimizer, pairs, usual=0.0, following=None):
    """Of the gradient and the path of the parameters in `pairs`, as if they were one tensor: the formula of the page.

    Args:
        usual: the usual square of gradients, where the rule has no metric.
        following: by parameter, the gradients that the weights follow, if others than those in `grad`.
    """
    sums = [torch.zeros(())] * 3
    for p, path in pairs:
        values, t = rule.at({n: torch.tensor(getattr(rule, n)) for n in rule.hyperparameters()}), torch.tensor(float(step))
        c = counted(values, float(step))[0].coefficients(t)
        grad = p.grad if following is None else following[p]
        metric = values.preconditioner(grad, {n: optimizer.state[p][n] for n in rule.init(p.detach())}, t, c)
        size = torch.ones(()) if metric is None else metric
        square = p.grad**2 / 2 if metric is None else (p.grad**2 / size + size) / 2
        sums = [x + y.sum() for x, y in zip(sums, (p.grad * path, square, path * path * size), strict=True)]
    return (sums[0] / ((sums[1] + usual / 2) * sums[2]).sqrt()).clamp(-1, 1).item()


@pytest.mark.parametrize(("case", "how"), crossed(MOVING, [*product([math.inf, Age(2), Age(0.5)], [False, True])]), ids=str)
def test_the_step_size_is_moved_by_the_formula(case, how):
    horizon, large = how
    options = {**case.lively, "tune": "lr", "charts": {"lr": POSITIVE}, "horizon": horizon}
    rule = case.rule(**options, normalize="metric cosine")
    params = tall() if large else parameters(case.matrix)
    optimizer = Hyperoptimizer(params, rule / SGD(lr=0.5))
    path, logarithm, usual = [torch.zeros_like(p) for p in params], math.log(rule.lr), 0.0
    mean, metric = 0.0, case.rule.preconditioner is not Rule.preconditioner
    for t in range(1, 8):
        optimizer.zero_grad()
        (pulled if large else loss)(params, t).backward()
        if t > 1:
            pairs = [*zip(params, path, strict=True)]
            readings = [[x] for x in pairs if x[0].numel() >= 2048] + [[x for x in pairs if x[0].numel() < 2048]]
            counts = [math.sqrt(sum(p.numel() for p, _ in mine)) for mine in readings]
            found = [cosine(rule, t, optimizer, mine) for mine in readings]
            first = sum(n * x for n, x in zip(counts, found, strict=True)) / sum(counts)
            early = 100 / (100 + t - 2) if metric else 0
            if not metric:
                own = sum(p.grad.square().sum() for p in params).item()
                mean += 4 / (t - 2 + 4) * (min(own, 100 * mean or own) - mean)
                usual = own + (t - 2) / (600 + t - 2) * (mean - own)
            logarithm -= 0.5 * (early * first + (1 - early) * cosine(rule, t, optimizer, pairs, usual))
            natural = sum((p.grad * s).sum() for p, s in pairs).item() / lr(optimizer)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        assert lr(optimizer) == pytest.approx(math.exp(logarithm), rel=1e-9)
        if t > 1:
            assert optimizer.hypergradients()[0]["lr"] == pytest.approx(natural, rel=1e-9)
        fading = 1.0 if horizon == math.inf else max(0.0, 1 - 1 / (horizon.times * t))
        path = [s * fading + (p.detach() - q) for s, p, q in zip(path, params, before, strict=True)]


def test_a_spike_does_not_hold_the_step_size_of_sgd():
    """What is usual follows it by degrees."""

    def run(spike):
        slopes, p, found = torch.linspace(0.1, 3, 20), torch.full((20,), 30.0, requires_grad=True), []
        optimizer, noise = Hyperoptimizer([p], auto(SGD())), torch.Generator().manual_seed(1)
        for t in range(800):
            p.grad = slopes * p.detach() + 30 * torch.randn(20, generator=noise)
            optimizer.tune_on((slopes * p * p).sum() / 2 * (spike if t == 300 else 1))
            optimizer.step()
            found.append(lr(optimizer))
        return found

    for mine, theirs in zip(run(1e12)[400:], run(1.0)[400:], strict=True):
        assert mine == pytest.approx(theirs, rel=0.05)


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("pair", [(AdamWScheduleFree(), SGD()), (AdamW(), hg.Muon()), (SGD(), AdamW())], ids=str)
def test_groups_with_and_without_a_metric_come_and_go(pair, per):
    """What a level remembers has the same rows with both."""
    groups = [{"params": [torch.ones(4, 4, requires_grad=True)], "rule": rule} for rule in pair]
    optimizer = Hyperoptimizer(groups[:1], per=per)

    def step(optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.sin(p.detach())
        optimizer.step()
        return lr(optimizer)

    step(optimizer)
    optimizer.add_param_group(groups[1])
    assert step(optimizer) != step(optimizer)
    for gone in (0, 1):
        other = copy.deepcopy(optimizer)
        del other.param_groups[gone]
        assert step(other) != step(other)


def test_a_checkpoint_from_before_a_level_remembered_what_is_usual():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, auto(SGD(momentum=0.9)))
    train(optimizer, mine, 5)
    saved = optimizer.state_dict()
    for level in saved["param_groups"][0]["learned"]["levels"].values():
        del level["memory"][-1]
    theirs = clones(mine)
    other = Hyperoptimizer(theirs, auto(SGD(momentum=0.9)))
    other.load_state_dict(saved)
    assert lr(other) == lr(optimizer)
    train(other, theirs, 5, 5)
    assert lr(other) > lr(optimizer)


def test_the_metric_under_tune_on_is_that_of_the_step_to_come():
    """Which is made along the training gradient."""
    params = tall()
    optimizer = Hyperoptimizer(params, replace(auto().rules[0], sample=1) / SGD(lr=0.5))
    pulled(params, 0).backward()
    before = [p.detach().clone() for p in params]
    optimizer.step()
    path = [p.detach() - q for p, q in zip(params, before, strict=True)]
    optimizer.zero_grad()
    pulled(params, 1).backward()
    optimizer.tune_on(50 * pulled(params, 2))
    following = {p: p.grad for p in params}
    for p, g in zip(params, torch.autograd.grad(50 * pulled(params, 2), params), strict=True):
        p.grad = g
    pairs = [*zip(params, path, strict=True)]
    readings = [[x] for x in pairs if x[0].numel() >= 2048] + [[x for x in pairs if x[0].numel() < 2048]]
    counts = [math.sqrt(sum(p.numel() for p, _ in mine)) for mine in readings]
    found = [cosine(optimizer.rules[0], 2, optimizer, mine, following=following) for mine in readings]
    expected = sum(n * x for n, x in zip(counts, found, strict=True)) / sum(counts)
    for p, g in following.items():
        p.grad = g
    optimizer.step()
    assert math.log(lr(optimizer) / START) == pytest.approx(-0.5 * expected, rel=1e-6)


@compiler
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=everything)])
def test_what_the_large_tensors_say_is_the_same_however_they_are_held(compile):
    """In groups, under any order, with tensors that never move beside them, and from a checkpoint."""

    def run(make):
        torch.manual_seed(0)
        params = tall()
        optimizer = make(params)
        for t in range(12):
            if t == 6:
                old, optimizer = optimizer, make(params)
                optimizer.load_state_dict(old.state_dict())
            optimizer.zero_grad()
            pulled(params, t).backward()
            optimizer.step()
        return lr(optimizer), [p.detach().clone() for p in params]

    def made(params):
        return Hyperoptimizer(params, auto(), compile=compile)

    def grouped(params):
        return Hyperoptimizer([{"params": params[:4]}, {"params": params[4:]}], auto(), per="all", compile=compile)

    def beside(params):
        return Hyperoptimizer([torch.nn.Parameter(torch.zeros(50, 50)), *params], auto(), compile=compile)

    first, *others = (run(make) for make in (made, lambda params: made(params[::-1]), grouped, beside))
    for value, found in others:
        assert value == pytest.approx(first[0], rel=1e-9)
        torch.testing.assert_close(found, first[1], rtol=1e-9, atol=1e-12)


def test_its_hypergradient_is_told_in_natural_units():
    params = parameters()
    optimizer = Hyperoptimizer(params, auto(Adam()))
    start = lr(optimizer)
    loss(params).backward()
    before = [p.detach().clone() for p in params]
    optimizer.step()
    optimizer.zero_grad()
    loss(params, 1).backward()
    expected = sum((p.grad * (p.detach() - q)).sum().item() for p, q in zip(params, before, strict=True)) / start
    optimizer.step()
    assert optimizer.hypergradients()[0]["lr"] == pytest.approx(expected, rel=1e-9)


def test_the_tuner_falls_by_its_span_and_then_with_the_root_of_the_number_of_steps():
    p = torch.zeros(1, requires_grad=True)
    optimizer, total, expected, highest = Hyperoptimizer([p], hg.Tuner(lr=1.0, span=2.0)), 0.0, 0.0, 0.0
    for t, slope in enumerate([-1.0] * 5 + [1.0] * 20 + [-1.0] * 3, 1):
        p.grad = torch.full_like(p, slope)
        optimizer.step()
        total = t / (t + 0.5) * total + 1
        moved = expected - slope / (2 + total) ** 0.5
        highest = max(highest - math.log(1 + 1 / t) / 2, moved)
        expected = max(moved, highest - 2)
        assert p.item() == pytest.approx(expected, rel=1e-12)


def test_it_can_stand_under_another_tower():
    params = parameters()
    optimizer = Hyperoptimizer(params, auto() / SGD(lr=1e-2))
    train(optimizer, params, 30)
    start = auto().rules[1].lr
    assert optimizer.hyperparameters()[1]["lr"] != start
    assert math.isfinite(optimizer.hyperparameters()[1]["lr"])


# -------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("rule", [AdamWScheduleFree(), SGD(momentum=0.9), hg.Muon()], ids=str)
def test_resume_is_exact(rule, per):
    matrix = isinstance(rule, hg.Muon)
    mine = [*parameters(matrix), torch.randn(*((700, 300) if matrix else (300_000,))).requires_grad_()]

    def fit(optimizer, params, start):
        for t in range(start, start + 4):
            optimizer.zero_grad()
            (loss(params[:-1], t) + (params[-1] - 1).square().mean()).backward()
            optimizer.step()

    optimizer = Hyperoptimizer(mine, auto(rule), per=per)
    fit(optimizer, mine, 0)
    theirs = clones(mine)
    twin, other = resumed(optimizer, theirs), copy.deepcopy((optimizer, mine))
    for one, params in ((optimizer, mine), (twin, theirs), other):
        fit(one, params, 4)
    torch.testing.assert_close(mine, theirs, **EXACT)
    torch.testing.assert_close(mine, other[1], **EXACT)
    assert optimizer.hyperparameters() == twin.hyperparameters()


def test_of_a_large_parameter_a_sample_is_read():
    p = torch.randn(2000, 256, dtype=torch.float32).requires_grad_()
    q = torch.randn(2_000_000, dtype=torch.float32).requires_grad_()
    optimizer = Hyperoptimizer([p, q])
    for x in (p, q):
        x.grad = x.detach().clone()
    optimizer.step()
    kept = optimizer.state[p]["last_movement"], optimizer.state[q]["last_movement"]
    assert [x.numel() for x in kept] == [2000 * LINE, ENOUGH]
    assert kept[0][::3].all()  # of a row in three
    assert not kept[0][1::3].any()
    for x in (p, q):
        x.grad = x.detach().clone()
    optimizer.step()
    assert lr(optimizer) == pytest.approx(START * math.exp(0.75), rel=0.1)  # a gradient along the path: nearly all of it


@pytest.mark.parametrize(("shape", "kept"), [((50_000, 8), 50_000), ((50_001, 3), 50_001), ((200_000, 1), 200_000)])
def test_of_narrow_rows_an_element_is_read(shape, kept):
    p = torch.randn(shape).requires_grad_()
    optimizer = Hyperoptimizer([p])
    p.grad = p.detach().clone()
    optimizer.step()
    assert optimizer.state[p]["last_movement"].numel() == kept


def test_of_large_parameters_that_share_memory_the_samples_move_one_after_the_other():
    rule, kept = replace(auto().rules[0], weight_decay=0.5), {}
    for every in (1, 16):
        torch.manual_seed(0)
        p = torch.randn(600, 400).requires_grad_()
        params = p, torch.nn.Parameter(p.data)
        optimizer = Hyperoptimizer(params, replace(rule, sample=every) / SGD(lr=0.0))
        for _ in range(3):
            for x in params:
                x.grad = torch.randn(600, 400)
            optimizer.step()
        kept[every] = [optimizer.state[x]["last_movement"] for x in params]
    for mine, whole in zip(kept[16], kept[1], strict=True):
        sample = Sample.of(params[0], 16)
        torch.testing.assert_close(sample.kept(mine.view(-1)), sample.view(whole.view(-1)), **EXACT)


def test_a_sample_may_be_put_back_in_another_layout():
    def run(edit):
        p = torch.sin(torch.arange(1024.0 * 512)).view(1024, 512).requires_grad_()
        optimizer = Hyperoptimizer([p])
        for t in range(8):
            p.grad = p.detach() + torch.cos(p.detach() * t)
            if t == 4:
                optimizer.state[p].update({n: edit(x) for n, x in optimizer.state[p].items()})
            optimizer.step()
        return lr(optimizer), p.detach()

    mine, twin = run(lambda x: x.t().contiguous().t() if x.ndim else x), run(lambda x: x)
    assert mine[0] == twin[0] != START
    assert torch.equal(mine[1], twin[1])


@pytest.mark.parametrize("rule", [Adam(lr=1e-3), AdamW(lr=1e-3, horizon=5), SGD(lr=1e-3, momentum=0.5)], ids=str)
@pytest.mark.parametrize("shape", [(1000, 512), (140_000,), (1, 400_000), (64, 64, 9, 9)], ids=str)
def test_a_sample_of_any_tower_says_about_the_same(rule, shape):
    found = {}
    for every in (1, 4):
        torch.manual_seed(0)
        p = torch.randn(shape).requires_grad_()
        optimizer = Hyperoptimizer([p], replace(rule, sample=every) / SGD(lr=0.0))
        for _ in range(4):
            p.grad = p.detach().clone() + 0.1
            optimizer.step()
        found[every] = optimizer.hypergradients()[0]["lr"], p.detach().clone()
    assert found[4][0] == pytest.approx(found[1][0], rel=0.05)
    torch.testing.assert_close(found[1][1], found[4][1], rtol=1e-12, atol=1e-14)


# ----------------------------------------------------------------------- schedules


def warm_up(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 40))


SCHEDULES = {
    "warm-up from 0": warm_up,
    "constant warm-up": lambda o: lr_scheduler.LambdaLR(o, lambda t: 2e-4 if t < 40 else 1.0),
    "OneCycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=3e-3, total_steps=100, cycle_momentum=False),
    "OneCycle of SGD": lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=100, cycle_momentum=False),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 25),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 100),
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [40, 70]),
    "finder": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1e-3 * 1.2**t),
}


def follow(schedule, tower, steps=100):
    params, found = parameters(), []
    optimizer = Hyperoptimizer(params, tower)
    scheduler = schedule(optimizer) if schedule else None
    for t in range(steps):
        optimizer.zero_grad()
        loss(params, t % 7).backward()
        optimizer.step()
        found.append(lr(optimizer))
        if scheduler:
            scheduler.step()
    return found


@pytest.mark.parametrize(("name", "tower"), crossed(SCHEDULES, [auto(), auto(Adam()), auto(SGD(momentum=0.9))]), ids=str)
def test_no_schedule_makes_a_step_size_more_than_twice_what_it_would_be(name, tower):
    alone, with_it = follow(None, tower), follow(SCHEDULES[name], tower)
    assert max(with_it) <= 2 * max(alone)


def test_a_decay_acts_and_is_not_undone():
    cosine, steps = (follow(SCHEDULES[name], auto()) for name in ("cosine", "steps"))
    assert cosine[-1] < 0.01 * max(cosine)
    assert steps[-1] < 0.02 * max(steps)
    assert steps[39] > 3 * steps[41]


def test_a_warm_up_begins_where_it_says_and_is_left_to_the_optimizer():
    rising = follow(warm_up, auto())
    assert rising[0] == 0
    assert rising[1] == pytest.approx(START / 40)  # a step of 0 says nothing
    assert rising[60] > 1e-4  # it has found its step size by the time that the warm-up is over


@pytest.mark.parametrize("tower", [auto(), auto(SGD(momentum=0.9))], ids=["default", "SGD"])
def test_a_warm_up_from_next_to_nothing_is_one_from_0(tower):
    """As many write it for `LinearLR`, which takes no 0: it is not to be learned anew from there."""
    exact, *faint = (
        follow(lambda o, x=x: lr_scheduler.LambdaLR(o, lambda t: max(x, min(1.0, t / 40))), tower) for x in (0.0, 1e-10, 1e-6)
    )
    for found in faint:
        torch.testing.assert_close(found[5:], exact[5:], rtol=0.2, atol=0)


@pytest.mark.parametrize("tower", [auto(), auto(Adam()), auto(SGD(momentum=0.9))], ids=["default", "Adam", "SGD"])
@pytest.mark.parametrize("faint", [0.0, 1e-5])
def test_nothing_is_learned_from_what_counts_as_0(faint, tower):
    """Neither in these steps nor in the next, also of a run that is resumed in between; then it is, as without a warm-up."""
    params = parameters()
    optimizer = Hyperoptimizer(params, tower)
    start, full = lr(optimizer), optimizer.param_groups[0]["lr"]
    for t, factor in enumerate((faint, faint, 1.0)):
        optimizer.param_groups[0]["lr"] = factor * full
        train(optimizer, params, 1, t)
        assert lr(optimizer) == pytest.approx(factor * start)
        optimizer = resumed(optimizer, params)
    train(optimizer, params, 1, 3)
    assert lr(optimizer) > 1.2 * start


def test_a_warm_up_that_takes_its_time_from_next_to_nothing_is_not_taken_for_a_decay(recwarn):
    grown = follow(lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1.0, 1e-9 * 1.5**t)), auto())
    assert not recwarn
    assert grown[20] < 1e-5 * START * 10
    assert grown[90] > 1e-4


def test_an_absolute_lr_is_a_factor_of_its_own_highest():
    params = parameters()
    optimizer = Hyperoptimizer(params)
    train(optimizer, params, 20)
    before = lr(optimizer)
    optimizer.param_groups[0]["lr"] = 3e-3
    assert lr(optimizer) == pytest.approx(before)
    train(optimizer, params, 1, 20)
    now = lr(optimizer)
    optimizer.param_groups[0]["lr"] = 3e-4
    assert lr(optimizer) == pytest.approx(now / 10)
    theirs = clones(params)
    twin = resumed(optimizer, theirs)
    assert lr(twin) == pytest.approx(now / 10)
    for one, mine in ((optimizer, params), (twin, theirs)):
        one.param_groups[0]["lr"] = 3e-3
        train(one, mine, 2, 21)
    assert lr(twin) == lr(optimizer)
    torch.testing.assert_close(params, theirs, **EXACT)


def test_numbers_that_are_meant_for_usual_step_sizes_do_what_they_mean():
    """A floor of 1e-5 and timm's warm-up from there, which are near to the lr that is learned from."""
    params = parameters()
    optimizer = Hyperoptimizer([{"params": params[:1]}, {"params": params[1:], "lr": 1e-4}])
    assert [group["lr"] for group in optimizer.param_groups] == [AdamWScheduleFree().lr, 1e-4]
    assert (lr(optimizer), lr(optimizer, 1)) == pytest.approx((START, START * 1e-4 / AdamWScheduleFree().lr))
    optimizer = Hyperoptimizer(params)
    factors, steps = [1e-5 / AdamWScheduleFree().lr] * 20, 100
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda i: factors[i] if i < 20 else max(factors[0], 1 - i / steps))
    found = []
    for t in range(steps):
        train(optimizer, params, 1, t)
        scheduler.step()
        found.append(lr(optimizer))
    assert max(found) > 1e-4  # it has found its step size, from 3e-7
    assert found[-1] < max(found) / 50


def test_where_the_default_began_is_resumed():
    params = parameters()
    optimizer = Hyperoptimizer(params, per="tensor")
    train(optimizer, params, 3)
    twin = resumed(optimizer, clones(params))
    extra = torch.nn.Parameter(torch.ones(3))
    for one in (optimizer, twin):
        one.param_groups[0]["params"].append(extra)
        assert one.hyperparameters()[0]["lr"][-1] == pytest.approx(START)


def test_an_lr_of_0_does_not_stay_for_good():
    params = parameters()
    optimizer = Hyperoptimizer(params)
    for value in (0.0, 1e-3, 0.0, 1e-3):
        optimizer.param_groups[0]["lr"] = value
        before = [p.detach().clone() for p in params]
        train(optimizer, params, 10)
        same = all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        assert same == (value == 0)
        assert (lr(optimizer) == 0) == (value == 0)


@pytest.mark.parametrize("tower", [auto(), auto(SGD(momentum=0.9))], ids=["default", "SGD"])
@pytest.mark.parametrize("given", [1e-4, 1.0, 10.0])
def test_a_group_that_is_raised_from_0_begins_as_one_that_was_given_that(tower, given):
    params, twins = parameters(), parameters()
    optimizer = Hyperoptimizer([{"params": params, "lr": 0.0}], tower)
    train(optimizer, params, 3)
    optimizer.param_groups[0]["lr"] = given
    other = Hyperoptimizer([{"params": twins, "lr": given}], tower)
    assert lr(optimizer) == pytest.approx(lr(other))
    assert lr(optimizer) <= start(tower.rules[0]) * (1 + 1e-9)


@pytest.mark.parametrize("first", [0, 1])
def test_groups_that_share_keep_their_ratio_where_one_is_raised_from_0(first):
    params, lrs = parameters(), [2.5e-3, 2.5e-3]
    lrs[first] = 0.0
    optimizer = Hyperoptimizer([{"params": [p], "lr": x} for p, x in zip(params[:2], lrs, strict=True)], per="all")
    train(optimizer, params, 3)
    optimizer.param_groups[first]["lr"] = 2.5e-2
    assert lr(optimizer, first) == pytest.approx(10 * lr(optimizer, 1 - first))


def test_a_group_may_rest_with_a_rule_of_its_own():
    params = parameters()
    optimizer = Hyperoptimizer([{"params": params[:1]}, {"params": params[1:], "rule": AdamW(lr=0.0)}])
    before = params[1].detach().clone()
    train(optimizer, params, 3)
    torch.testing.assert_close(params[1].detach(), before, **EXACT)


# ----------------------------------------------------------------------- from_torch


def test_from_torch_alone_is_auto_from_the_lr_it_finds():
    params = parameters()
    theirs = torch.optim.AdamW(params, lr=3e-4, weight_decay=0.1)
    train(theirs, params, 3)
    optimizer = from_torch(theirs)
    assert optimizer.tower == around(AdamW(lr=3e-4, weight_decay=0.1))
    assert lr(optimizer) == 3e-4
    train(optimizer, params, 3, 3)
    assert lr(optimizer) != 3e-4


def test_from_torch_with_nothing_above_tunes_nothing():
    mine, theirs = parameters(), parameters()
    ours, twin = from_torch(torch.optim.Adam(mine, lr=0.01), above=None), torch.optim.Adam(theirs, lr=0.01)
    train(ours, mine, 10), train(twin, theirs, 10)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert ours.tower.height == 0


# ----------------------------------------------------- what was found by trying


def test_a_scheduler_made_before_goes_on_after_a_resume():
    params, found = parameters(), []
    for resume in (False, True):
        params = parameters()
        theirs = torch.optim.AdamW(params, lr=1e-3)
        scheduler = lr_scheduler.StepLR(theirs, 2, 0.1)
        optimizer = from_torch(theirs)
        for t in range(6):
            train(optimizer, params, 1, t)
            scheduler.step()
            if t == 2 and resume:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                scheduler.load_state_dict(scheduler.state_dict())
        found.append((lr(optimizer), optimizer.param_groups[0]["lr"]))
    assert found[0] == found[1]
    assert found[0][1] == pytest.approx(1e-6)  # of 1e-3, after three decays


def test_to_look_changes_nothing():
    found = []
    for looks in (False, True):
        params = parameters()
        optimizer = Hyperoptimizer(params)
        train(optimizer, params, 3)
        optimizer.param_groups[0]["lr"] = 1e-5
        if looks:
            assert repr(optimizer)
        optimizer.param_groups[0]["lr"] = 1e-6
        train(optimizer, params, 3, 3)
        found.append((lr(optimizer), [p.detach().clone() for p in params]))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], **EXACT)


@pytest.mark.parametrize("lrs", [(1e-3, 1e-2), (1e-2, 1e-3)], ids=str)
def test_groups_that_share_keep_their_ratio(lrs):
    params = parameters()
    groups = [{"params": params[:2], "lr": lrs[0]}, {"params": params[2:], "lr": lrs[1]}]
    optimizer = Hyperoptimizer(groups, per="all")
    for steps in (0, 5):
        train(optimizer, params, steps)
        assert lr(optimizer, 1) / lr(optimizer) == pytest.approx(lrs[1] / lrs[0])
    assert lr(resumed(optimizer, [{"params": params[:2]}, {"params": params[2:]}]), 1) == lr(optimizer, 1)


@pytest.mark.parametrize("edited", [1e-3, 0.1])
def test_an_lr_edited_in_a_checkpoint_is_in_force(edited):
    params = parameters()
    optimizer = Hyperoptimizer(params)
    train(optimizer, params, 20)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = edited
    optimizer.load_state_dict(saved)
    assert lr(optimizer) == pytest.approx(edited)
    train(optimizer, params, 1, 20)
    assert edited / 3 < lr(optimizer) < edited * 3


def test_a_level_above_knows_that_growth_was_held():
    params = parameters()
    optimizer = Hyperoptimizer(params, auto() / SGD(lr=0.1))
    train(optimizer, params, 20)
    optimizer.param_groups[0]["lr"] = 1e-7
    train(optimizer, params, 2, 20)
    before = optimizer.hyperparameters()[1]["lr"]
    train(optimizer, params, 3, 22)
    assert optimizer.hypergradients()[1]["lr"] == 0
    assert optimizer.hyperparameters()[1]["lr"] == before


@pytest.mark.parametrize("scale", [1e-12, 1e19])
def test_the_scale_of_the_loss_does_not_matter(scale):
    found = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1, dtype=torch.float32)
        optimizer = Hyperoptimizer(model.parameters(), auto(AdamWScheduleFree(eps=0.0)))
        for _ in range(40):
            optimizer.zero_grad()
            (model(torch.randn(16, 4, dtype=torch.float32)).square().mean() * factor).backward()
            optimizer.step()
        found.append(lr(optimizer))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_a_schedule_that_decays_before_anything_is_found_is_named():
    params = parameters()
    optimizer = Hyperoptimizer(params)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: (t + 1) ** -0.5)

    def follow():
        for t in range(15):
            train(optimizer, params, 1, t)
            scheduler.step()

    with pytest.warns(RuntimeWarning, match="group 0: its schedule has gone from lr=0.0025 to .* within 12 steps"):
        follow()
    optimizer = resumed(optimizer, params)  # long after its beginning, nothing is said of a decay
    follow()


NOTHING = {
    **{f"default, {x:g}": (auto(), x) for x in (0.0, 1e-30, 1e-15)},  # beside its eps
    "Adam": (auto(Adam()), 1e-15),
    "SGD": (auto(SGD(momentum=0.9)), 0.0),  # which knows no size of a gradient
}


@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize(("tower", "faint"), NOTHING.values(), ids=NOTHING)
def test_a_gradient_of_nothing_says_nothing(tower, faint, per):
    """As of a term of the loss whose weight is 0 at first: the step size waits."""
    p, q = (torch.ones(5, requires_grad=True) for _ in range(2))
    optimizer = Hyperoptimizer([{"params": [p]}, {"params": [q]}], tower, per=per)
    start = optimizer.hyperparameters(1)[0]["lr"]
    for _ in range(200):
        optimizer.zero_grad()
        (p.square().sum() + faint * q.sum()).backward()
        optimizer.step()
    assert torch.tensor(optimizer.hyperparameters(1)[0]["lr"]) <= 2 * torch.tensor(start)
    assert torch.tensor(optimizer.hyperparameters(0)[0]["lr"]) > 10 * torch.tensor(start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_too_small_for_the_numbers_grows(dtype):
    p = torch.full((5,), 300.0, dtype=dtype, requires_grad=True)
    optimizer = Hyperoptimizer([p], auto(AdamWScheduleFree(lr=1e-9)))
    for _ in range(400):
        optimizer.zero_grad()
        p.float().square().sum().backward()
        optimizer.step()
    optimizer.eval()
    assert p.abs().max() < 100


def test_under_a_decay_what_is_learned_stands_still():
    """Neither against the decay nor with it, which would multiply the two."""
    params = parameters()
    optimizer = Hyperoptimizer(params)
    train(optimizer, params, 30)
    optimizer.param_groups[0]["lr"] *= 0.4
    train(optimizer, params, 1, 30)
    before = lr(optimizer)
    train(optimizer, params, 30, 31)
    assert lr(optimizer) == before


@pytest.mark.parametrize("tower", [auto(), auto(Adam())], ids=["default", "Adam"])
def test_a_group_that_is_frozen_learns_nothing(tower):
    """A step size that is 0 by the user's will is not too small."""
    params = parameters()
    optimizer = Hyperoptimizer([{"params": params[:1]}, {"params": params[1:]}], tower)
    usual = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, params, 60)
    optimizer.param_groups[0]["lr"] = usual
    assert lr(optimizer) == pytest.approx(tower.rules[0].lr)
    train(optimizer, params, 20, 60)
    assert tower.rules[0].lr < lr(optimizer) < 1


def test_a_plateau_reduces_as_often_as_it_says():
    """torch leaves a step size alone that would change by less than 1e-8."""
    params = parameters()
    optimizer = Hyperoptimizer(params)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    train(optimizer, params, 30)
    before = lr(optimizer)
    for _ in range(5):
        scheduler.step(1.0)
    assert lr(optimizer) == pytest.approx(before * 1e-4)


def copied_to(params):
    """A copy of the first group, with others' parameters."""
    return lambda o, q: o.param_groups.append({**o.param_groups[0], "params": params(q)})


@pytest.mark.parametrize(
    ("add", "factor"),
    [
        (copied_to(lambda q: [q]), 1.0),
        (lambda o, q: o.add_param_group({**o.param_groups[0], "params": [q]}), 1.0),
        (lambda o, q: o.add_param_group({"params": [q]}), 1.0),
        (lambda o, q: o.add_param_group({"params": [q], "lr": o.param_groups[0]["lr"] / 10}), 0.1),
    ],
)
@pytest.mark.parametrize("per", ["group", "all"])
def test_a_group_that_comes_begins_where_the_default_does(add, factor, per):
    optimizer = Hyperoptimizer(parameters(), per=per)
    add(optimizer, torch.nn.Parameter(torch.ones(3)))
    assert lr(optimizer, 1) == pytest.approx(factor * START)
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    assert (lr(optimizer), lr(optimizer, 1)) == pytest.approx((START, factor * START))
