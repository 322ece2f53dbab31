"""Checkpoints, copies and pickles go on to the last bit."""

import copy
import pickle

import pytest
import torch
from cases import loss, parameters, train
from helpers import TOWER, TOWERS, clones, crossed, fit, network, resumed, stored

import hypergradient as hg
from hypergradient import SGD, Adam, AdamW, Hyperoptimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("tower", TOWERS, ids=repr)
def test_resume_is_exact_to_the_last_bit(tower, per, dtype):
    mine = [p.detach().to(dtype).requires_grad_() for p in parameters()]

    def go(optimizer, params, start):
        for t in range(start, start + 4):
            optimizer.zero_grad()
            loss([p.double() for p in params], t).backward()
            optimizer.step()

    optimizer = Hyperoptimizer(mine, tower, per=per)
    go(optimizer, mine, 0)
    copies = clones(mine)
    twin = resumed(optimizer, copies)
    assert twin.hyperparameters() == optimizer.hyperparameters()
    assert twin.hypergradients() == optimizer.hypergradients()
    go(optimizer, mine, 4)
    go(twin, copies, 4)
    torch.testing.assert_close(copies, mine, rtol=0, atol=0)
    torch.testing.assert_close(twin.state_dict(), optimizer.state_dict(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("per", ["group", "tensor"])
def test_resume_is_exact_where_parameters_have_sat_out_steps(per):
    mine = [p.detach().float().requires_grad_() for p in parameters()]

    def go(optimizer, params, steps):
        for t in steps:
            optimizer.zero_grad()
            loss([p.double() for p in params], t).backward()
            for k, p in enumerate(params):
                if t == 3 + k or (k == 1 and t > 12):
                    p.grad = None
            optimizer.step()

    optimizer = Hyperoptimizer(mine, Adam(lr=0.01, horizon=5) / SGD(lr=1e-3), per=per)
    go(optimizer, mine, range(10))
    twin = resumed(optimizer, copies := clones(mine))
    go(optimizer, mine, range(10, 25))
    go(twin, copies, range(10, 25))
    torch.testing.assert_close(copies, mine, rtol=0, atol=0)
    assert twin.hyperparameters() == optimizer.hyperparameters()


def test_a_float64_group_in_mid_training_is_resumed_exactly():
    a = torch.ones(3, dtype=torch.float32, requires_grad=True)
    b = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = Hyperoptimizer([a], TOWER)

    def go(optimizer, params):
        for _ in range(5):
            for p in params:
                p.grad = p.detach().clone()
            optimizer.step()

    go(optimizer, [a])
    optimizer.add_param_group({"params": [b]})
    go(optimizer, [a, b])
    copies = clones([a, b])
    twin = Hyperoptimizer([{"params": [x]} for x in copies], TOWER)
    twin.load_state_dict(optimizer.state_dict())
    go(optimizer, [a, b])
    go(twin, copies)
    assert twin.hyperparameters() == optimizer.hyperparameters()
    torch.testing.assert_close(copies, [a, b], rtol=0, atol=0)


@pytest.mark.parametrize(("rule", "per"), crossed([Adam, AdamW], ["tensor", "group"]))
@pytest.mark.parametrize("how", ["load", "copy", "look"])
@pytest.mark.parametrize("when", [4, 5])
def test_a_penalty_that_comes_is_resumed_exactly(rule, per, how, when):
    """It comes before step 4, for one group before step 5; parameters sit out steps before and after."""

    def make():
        torch.manual_seed(0)
        mine = [torch.randn(n).requires_grad_() for n in (3, 4, 5)]
        tower = rule(lr=0.05, beta1=0.8, beta2=0.9, weight_decay=0.0) / Adam(lr=1e-3) / Adam(lr=1e-3)
        return mine, Hyperoptimizer([{"params": mine[:2]}, {"params": mine[2:]}], tower, per=per)

    def go(mine, optimizer, steps):
        for t in steps:
            for k, p in enumerate(mine):
                draw = torch.Generator().manual_seed(10 * t + k)
                p.grad = None if (t, k) in {(1, 1), (4, 0), (5, 0)} else p.detach() + torch.randn(p.shape, generator=draw)
            for k, group in enumerate(optimizer.param_groups):
                group["weight_decay"] = 0.1 * (t >= 4 + k)
                if how == "look" and t == when:
                    optimizer.hyperparameters()
            optimizer.step()

    mine, optimizer = make()
    go(mine, optimizer, range(9))
    theirs, other = make()
    go(theirs, other, range(when))
    if how == "load":
        saved = stored(other.state_dict())
        again, other = make()
        with torch.no_grad():
            for p, q in zip(again, theirs, strict=True):
                p.copy_(q)
        other.load_state_dict(saved)
        theirs = again
    elif how == "copy":
        theirs, other = copy.deepcopy((theirs, other))
    go(theirs, other, range(when, 9))
    torch.testing.assert_close(theirs, mine, rtol=0, atol=0)
    assert repr(other.hypergradients(1)) == repr(optimizer.hypergradients(1))


def test_freezing_the_first_parameter_loses_nothing():
    model = network()
    optimizer = Hyperoptimizer(model.parameters(), TOWER)
    fit(optimizer, model, 5)
    learned = optimizer.hyperparameters()
    for flag in (False, True):
        model[0].weight.requires_grad_(flag)
        assert copy.deepcopy(optimizer).hyperparameters() == learned
        assert resumed(optimizer, list(model.parameters())).hyperparameters() == learned


def test_two_loads_of_one_state_dict_are_independent():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    train(optimizer, mine, 5)
    saved = optimizer.state_dict()
    learned = optimizer.hyperparameters()
    twin = Hyperoptimizer(theirs := parameters(), TOWER)
    twin.load_state_dict(saved)
    train(twin, theirs, 5)
    assert optimizer.hyperparameters() == learned
    other = Hyperoptimizer(parameters(), TOWER)
    other.load_state_dict(saved)
    assert other.hyperparameters() == learned


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_deepcopy_and_pickle(duplicate):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    train(optimizer, mine, 4)
    twin = duplicate(optimizer)
    copies = twin.param_groups[0]["params"]
    assert copies[0] is not mine[0]
    assert train(twin, copies, 4, 4) == train(optimizer, mine, 4, 4)
    assert repr(twin) == repr(optimizer)


def scheduled_and_resumed(make, schedule, at, steps=60):
    """The gradient is that of a bowl, with noise; `at`: the steps after which all is saved and goes on elsewhere."""
    torch.manual_seed(0)
    optimizer, scheduler = (made := make()), schedule(made)
    for t in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = p.detach() + torch.randn(p.shape, dtype=p.dtype)
        optimizer.step()
        scheduler.step()
        if t in at:
            saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
            with torch.random.fork_rng():
                optimizer, scheduler = (made := make()), schedule(made)
            optimizer.load_state_dict(saved[0])
            scheduler.load_state_dict(saved[1])


@pytest.mark.parametrize(("steps", "lr"), [(50, 0.0025), (30, 1e-3), (50, 3e-4)])
def test_a_warm_up_is_resumed_exactly(steps, lr):
    """Of these, some go on from a factor that is no sum of powers of two."""

    def ends(at):
        p = torch.ones(50, dtype=torch.float64, requires_grad=True)
        rising = lambda t: min(1, (t + 1) / steps)  # noqa: E731
        scheduled_and_resumed(
            lambda: Hyperoptimizer([{"params": [p], "lr": lr}]), lambda o: torch.optim.lr_scheduler.LambdaLR(o, rising), at
        )
        return p.detach()

    expected = ends(())
    for k in (0, 13, 16, 17, 21, 22, 28, 29):
        torch.testing.assert_close(ends((k,)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["load", "copy"])
def test_a_layer_that_is_freed_after_a_resume_learns_from_where_it_would_have(how):
    """Its schedule is relative to what the group was given at first, not when it was loaded."""

    def learned(resume):
        torch.manual_seed(0)
        body, head = (torch.ones(50, requires_grad=True) for _ in range(2))
        make = lambda: Hyperoptimizer([{"params": [body]}, {"params": [head]}])  # noqa: E731
        cycle = lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=2.5e-3, total_steps=100)  # noqa: E731
        optimizer, scheduler = (made := make()), cycle(made)
        for t in range(40):
            body.requires_grad_(t >= 30)
            for p in (body, head):
                p.grad = p.detach() + torch.randn(50) if p.requires_grad else None
            optimizer.step()
            scheduler.step()
            if resume and t == 25 and how == "load":
                saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
                optimizer, scheduler = (made := make()), cycle(made)
                optimizer.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
            elif resume and t == 25:
                body, head, optimizer, scheduler = copy.deepcopy((body, head, optimizer, scheduler))
        return [optimizer.hyperparameters(i) for i in (0, 1)]

    assert learned(True) == learned(False)


@pytest.mark.parametrize("rule", [None, SGD(), Adam()], ids=repr)
def test_a_warm_up_from_0_by_hand_is_resumed_exactly(rule):
    def learned(resume):
        p = torch.ones(4, requires_grad=True)
        make = lambda: Hyperoptimizer([p], rule and hg.auto(rule))  # noqa: E731
        optimizer, found = make(), []
        for t in range(8):
            optimizer.param_groups[0]["lr"] = 0.01 * t / 8
            p.grad = torch.ones(4)
            optimizer.step()
            found.append(optimizer.hyperparameters())
            if resume and t == 0:
                saved = stored(optimizer.state_dict())
                optimizer = make()
                optimizer.load_state_dict(saved)
        return found

    assert learned(True) == learned(False)


def test_values_of_groups_are_not_taken_for_those_of_all():
    def make(per):
        mine = parameters()
        return mine, Hyperoptimizer([{"params": mine[:1]}, {"params": mine[1:]}], Adam(lr=0.01) / SGD(lr=1e-3), per=per)

    mine, optimizer = make("group")
    train(optimizer, mine, 5)
    with pytest.raises(ValueError, match="another `per`: group 1 has learned other values"):
        make("all")[1].load_state_dict(optimizer.state_dict())
