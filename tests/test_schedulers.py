"""Every scheduler of torch multiplies what is learned; averages of weights (swa_utils) take no notice."""

import copy
from dataclasses import replace

import pytest
import torch
from cases import parameters, train
from helpers import TOWER, fit, network
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from hypergradient import SGD, Adam, AdamW, Hyperoptimizer

LR = 0.02


def sequence(o):
    schedulers = [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(o, 20)]
    return lr_scheduler.SequentialLR(o, schedulers, milestones=[5])


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(t / 10, 1.0)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 7),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 9]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.01),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": sequence,
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 15, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)], o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, LR / 10, LR, step_size_up=4, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [LR, LR / 10], total_steps=30, cycle_momentum=False),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=LR / 4, anneal_epochs=5),
}
CYCLING = {
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, LR / 10, LR, step_size_up=4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [LR, LR / 10], total_steps=30),
}


def test_every_scheduler_class_is_covered():
    """A class that torch adds fails here until it is in the table."""
    found = {n for n in lr_scheduler.__all__ if n != "LRScheduler"} | {"SWALR"}
    found |= {
        c.__name__ for c in vars(lr_scheduler).values() if isinstance(c, type) and issubclass(c, lr_scheduler.LRScheduler)
    }
    assert found - {"LRScheduler", "_LRScheduler"} == SCHEDULERS.keys()


def groups(model):
    return [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": LR / 10}]


def go(optimizer, model, schedule, steps, start=0):
    """What the schedule says over the steps."""
    said = []
    for t in range(start, start + steps):
        fit(optimizer, model, 1, t)
        schedule.step(*([1.0] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))
        said.append([group["lr"] for group in optimizer.param_groups])
    return said


RULES = [(SGD(lr=LR, momentum=0.9), torch.optim.SGD), (AdamW(lr=LR), torch.optim.AdamW)]


def same_as_torch(rule, kind, make):
    """A tower that learns nothing moves the weights as torch.optim under the same schedule."""
    runs = []
    for build in (lambda ps: Hyperoptimizer(ps, rule / SGD(lr=0.0)), lambda ps: kind(ps, lr=LR, **momentum(rule))):
        model = network()
        optimizer = build(groups(model))
        said = go(optimizer, model, make(optimizer), 25)
        runs.append([said, list(model.parameters())])
    assert runs[0][0] == runs[1][0]
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-8, atol=1e-11)


def momentum(rule):
    return {n: getattr(rule, n) for n in rule.hyperparameters() if n == "momentum"}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize(("rule", "kind"), RULES, ids=lambda x: type(x).__name__)
def test_scheduler_moves_the_weights_as_in_torch(rule, kind, make):
    same_as_torch(rule, kind, make)


@pytest.mark.parametrize("make", CYCLING.values(), ids=CYCLING.keys())
def test_scheduler_that_cycles_momentum(make):
    same_as_torch(*RULES[0], make)


def test_betas_in_a_list_may_change_in_place():
    optimizer = Hyperoptimizer(mine := parameters(), Adam(lr=0.01, tune="lr") / SGD(lr=1e-9))
    optimizer.param_groups[0]["betas"] = said = [0.9, 0.999]
    train(optimizer, mine, 2)
    said[0] = 0.5
    train(optimizer, mine, 1)
    assert optimizer.hyperparameters()[0]["beta1"] == 0.5


def test_an_lr_in_a_tensor_may_change_in_place():
    optimizer = Hyperoptimizer(mine := parameters(), Adam(lr=0.01, tune="lr") / SGD(lr=1e-9))
    optimizer.param_groups[0]["lr"] = said = torch.tensor(0.01)
    train(optimizer, mine, 2)
    said.mul_(0.5)
    train(optimizer, mine, 1)
    assert optimizer.hyperparameters()[0]["lr"] == pytest.approx(0.005, rel=1e-4)


@pytest.mark.parametrize("make", CYCLING.values(), ids=CYCLING.keys())
def test_scheduler_that_cycles_the_betas_of_adam(make):
    same_as_torch(*RULES[1], make)


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_scheduler(make):
    """Under a tower that learns: in force is the learned value times what the schedule says over the value at the start."""
    model = network()
    optimizer = Hyperoptimizer(groups(model), Adam(lr=LR) / SGD(lr=1e-3))
    schedule = make(optimizer)
    for t in range(25):
        (said,) = go(optimizer, model, schedule, 1, t)
        for i, (group, base) in enumerate(zip(optimizer.param_groups, (LR, LR / 10), strict=True)):
            in_force = optimizer.hyperparameters(i)[0]["lr"]
            group["lr"] = base
            learned = optimizer.hyperparameters(i)[0]["lr"]
            group["lr"] = said[i]
            assert type(said[i]) is float
            assert in_force == pytest.approx(learned * said[i] / base, rel=1e-10, abs=1e-15)
    assert learned != base


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_scheduler_and_optimizer_resume_together(make):
    model = network()
    optimizer = Hyperoptimizer(groups(model), Adam(lr=LR) / Adam(lr=1e-4) / SGD(lr=1e-5))
    schedule = make(optimizer)
    go(optimizer, model, schedule, 7)
    twin = copy.deepcopy(model)
    saved = copy.deepcopy([optimizer.state_dict(), schedule.state_dict()])
    other = Hyperoptimizer(groups(twin), optimizer.tower)
    again = make(other)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert go(other, twin, again, 10, 7) == go(optimizer, model, schedule, 10, 7)
    torch.testing.assert_close(list(twin.parameters()), list(model.parameters()), rtol=0, atol=0)
    assert other.hyperparameters() == optimizer.hyperparameters()


def test_scheduler_made_after_a_resume_goes_on_from_last_epoch():
    """The other way to resume: last_epoch, with the initial_lr that the groups remember."""
    model = network()
    optimizer = Hyperoptimizer(groups(model), Adam(lr=LR) / SGD(lr=1e-4))
    schedule = lr_scheduler.StepLR(optimizer, 3)
    go(optimizer, model, schedule, 5)
    twin = copy.deepcopy(model)
    other = Hyperoptimizer(groups(twin), optimizer.tower)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again = lr_scheduler.StepLR(other, 3, last_epoch=schedule.last_epoch - 1)
    assert go(other, twin, again, 8, 5) == go(optimizer, model, schedule, 8, 5)
    assert other.hyperparameters() == optimizer.hyperparameters()


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_a_scheduler_under_per_tensor_and_per_all(make):
    for per in ("all", "tensor"):
        model = network()
        optimizer = Hyperoptimizer(groups(model), replace(Adam(lr=LR), horizon=5) / SGD(lr=1e-3), per=per)
        go(optimizer, model, make(optimizer), 15)
        assert all(p.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- what it means


def test_schedules_multiply_what_is_learned():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, SGD(lr=0.1) / SGD(lr=0.01))
    schedule = lr_scheduler.LambdaLR(optimizer, lambda t: min(t / 10, 1.0))
    for t in range(10):
        before = [p.detach().clone() for p in mine]
        train(optimizer, mine, 1, t)
        assert (t > 0) == (not torch.equal(before[0], mine[0]))
        schedule.step()
    learned = optimizer.hyperparameters()[0]["lr"]
    assert learned != 0.1
    optimizer.param_groups[0]["lr"] = 0.05
    assert optimizer.hyperparameters()[0]["lr"] == pytest.approx(learned / 2)
    assert isinstance(optimizer.param_groups[0]["lr"], float)


def test_a_schedule_that_says_nothing_changes_nothing():
    mine, twin = parameters(), parameters()
    one, other = Hyperoptimizer(mine, TOWER), Hyperoptimizer(twin, TOWER)
    schedule = lr_scheduler.ConstantLR(other, factor=1.0)
    for t in range(5):
        train(one, mine, 1, t)
        train(other, twin, 1, t)
        schedule.step()
    torch.testing.assert_close(mine, twin, rtol=0, atol=0)


def test_the_factor_of_a_schedule_is_part_of_the_derivative():
    """lr 0.1 under a factor of 1/2, tuned by k, is lr 0.05 tuned by k/4: the chain rule applies the factor twice."""
    mine, twin = parameters(), parameters()
    one, other = Hyperoptimizer(mine, SGD(lr=0.1) / SGD(lr=0.04)), Hyperoptimizer(twin, SGD(lr=0.05) / SGD(lr=0.01))
    one.param_groups[0]["lr"] = 0.05
    assert train(one, mine, 10) == pytest.approx(train(other, twin, 10), rel=1e-10)


def test_a_scheduler_that_keeps_its_own_base_values_multiplies_too():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, SGD(lr=1e-3, momentum=0.9) / SGD(lr=0.0))
    optimizer.hyperparameters()
    schedule = lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=20)
    for t in range(10):
        assert optimizer.hyperparameters()[0]["momentum"] == pytest.approx(optimizer.param_groups[0]["momentum"])
        train(optimizer, mine, 1, t)
        schedule.step()
    plain = copy.deepcopy(Hyperoptimizer(parameters(), optimizer.tower).state_dict())  # of no schedule
    twin = Hyperoptimizer(parameters(), optimizer.tower)
    lr_scheduler.OneCycleLR(twin, 1e-3, total_steps=20)
    twin.load_state_dict(optimizer.state_dict())
    assert twin.hyperparameters() == optimizer.hyperparameters()
    optimizer.load_state_dict(plain)
    assert optimizer.hyperparameters()[0]["momentum"] == pytest.approx(0.9)


# -------------------------------------------------------------- swa_utils

AVERAGES = {  # options, and what is kept of the average when the n-th of the weights comes in
    "mean": ({}, lambda n: n / (n + 1)),
    "ema": ({"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)}, lambda n: 0.9),
    "ema of each": ({"avg_fn": swa_utils.get_ema_avg_fn(0.9)}, lambda n: 0.9),
    "swa": ({"multi_avg_fn": swa_utils.get_swa_multi_avg_fn(), "use_buffers": True}, lambda n: n / (n + 1)),
}


@pytest.mark.parametrize(("options", "kept"), AVERAGES.values(), ids=AVERAGES.keys())
def test_swa_averages_the_weights_as_they_are(options, kept):
    """The average is that of the path; and the path is the same as without it."""
    model, twin = network(), network()
    optimizer, other = (Hyperoptimizer(m.parameters(), Adam(lr=LR) / SGD(lr=1e-3)) for m in (model, twin))
    average, path = swa_utils.AveragedModel(model, **options), []
    for t in range(8):
        fit(optimizer, model, 1, t)
        average.update_parameters(model)
        path.append(model[0].weight.detach().clone())
    fit(other, twin, 8)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=0, atol=0)
    expected = path[0]
    for n, w in enumerate(path[1:], 1):
        expected = kept(n) * expected + (1 - kept(n)) * w
    torch.testing.assert_close(average.module[0].weight.detach(), expected)


def test_swa_with_its_schedule_and_batch_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    optimizer = Hyperoptimizer(groups(model), SGD(lr=LR, momentum=0.9) / SGD(lr=1e-4))
    cosine, swa = lr_scheduler.CosineAnnealingLR(optimizer, 20), swa_utils.SWALR(optimizer, swa_lr=LR / 2, anneal_epochs=3)
    average = swa_utils.AveragedModel(model)
    for t in range(20):
        fit(optimizer, model, 1, t)
        if t < 10:
            cosine.step()
        else:
            swa.step()
            average.update_parameters(model)
    batches = [torch.randn(8, 6, generator=torch.Generator().manual_seed(t)) for t in range(5)]
    swa_utils.update_bn(batches, average)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(LR / 2)
    assert average.module[1].running_mean.isfinite().all()
    assert int(average.n_averaged) == 10


@pytest.mark.parametrize("length", [4, 105])
def test_linear_lr_ends_at_0_also_where_it_rounds_below(length):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = Hyperoptimizer([p])
    scheduler = lr_scheduler.LinearLR(optimizer, 1 / 3 if length == 4 else 1e-3, 0.0, length)
    for _ in range(length):
        p.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
    assert -1e-15 < optimizer.param_groups[0]["lr"] < 0
    before = p.detach().clone()
    optimizer.step()
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=0)


def test_a_tensor_that_a_scheduler_fills_is_as_good_as_a_float():
    def learned(lr):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(50))
        optimizer = Hyperoptimizer([{"params": [p], "lr": lr}])
        scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 1e-5 if t < 12 else 1.0)
        for _ in range(16):
            p.grad = p.detach() - torch.linspace(-1, 1, 50)
            optimizer.step()
            scheduler.step()
        return optimizer.hyperparameters()[0]["lr"]

    assert learned(torch.tensor(2.5e-3, dtype=torch.float64)) == learned(2.5e-3)
