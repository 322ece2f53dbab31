"""Parameters that are frozen, unused or sometimes without a gradient: they stay, and say nothing of what did not move them."""

import math

import pytest
import torch
from cases import loss, parameters
from helpers import TOWER, clones, compiler, everything, fit, network, scalars
from torch import nn

from hypergradient import SGD, Adagrad, Adam, Hyperoptimizer, RMSprop
from hypergradient.group import Group


def test_frozen_and_unused_parameters_are_not_touched():
    model = network()
    model[0].weight.requires_grad_(False)
    unused = nn.Parameter(torch.ones(3))
    before = [model[0].weight.clone(), unused.clone()]
    optimizer = Hyperoptimizer([*model.parameters(), unused], TOWER)
    fit(optimizer, model, 5)
    torch.testing.assert_close([model[0].weight.data, unused.data], [x.data for x in before], rtol=0, atol=0)
    optimizer.load_state_dict(optimizer.state_dict())
    fit(optimizer, model, 5)


@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize("tower", [None, TOWER])
def test_what_a_lazy_module_has_not_made_yet_waits(tower, per):
    """As in torch, from which each optimizer may be given parameters before the first batch."""
    torch.manual_seed(0)
    model, late = nn.LazyLinear(3), nn.LazyLinear(2)
    optimizer = Hyperoptimizer([*model.parameters(), *late.parameters()], tower, per=per)
    x = torch.randn(8, 4)
    for t in range(6):
        optimizer.zero_grad()
        y = model(x)
        (y if t < 3 else late(y)).square().sum().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert [optimizer.state[p]["step"] for p in (model.weight, late.weight)] == [6, 3]


@pytest.mark.parametrize("rule", [Adam(lr=0.01), SGD(lr=0.1, momentum=0.9)], ids=repr)
def test_parameters_that_come_and_go_count_their_own_steps(rule):
    mine, theirs = parameters(), parameters()
    optimizer, twin = Hyperoptimizer(mine, rule / SGD(lr=0.0)), getattr(torch.optim, type(rule).__name__)(theirs, lr=rule.lr)
    if isinstance(rule, SGD):
        twin.param_groups[0]["momentum"] = 0.9
    for t in range(30):
        for params, o in ((mine, optimizer), (theirs, twin)):
            o.zero_grad()
            loss(params, t).backward()
            for i, p in enumerate(params):
                if (t // 3 + i) % 3 == 0:
                    p.grad = None
            o.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_parameter_that_did_not_move_says_nothing_of_the_last_step():
    """With a horizon of 1, the gradient of a parameter that was not part of the last step adds nothing."""
    (p, *_), optimizer_of = parameters(), lambda ps: Hyperoptimizer(ps, SGD(lr=0.1) / SGD(lr=0.01))
    q = torch.ones(3, requires_grad=True)
    (p2,) = clones([p])
    both, alone = optimizer_of([p, q]), optimizer_of([p2])
    for t in range(4):
        p.grad, p2.grad = torch.full_like(p, 1.0 + t), torch.full_like(p, 1.0 + t)
        q.grad = None if t == 1 else torch.ones(3)
        before = q.detach().clone()
        both.step()
        alone.step()
        assert torch.equal(before, q) == (t == 1)
        if t == 2:
            assert both.hypergradients()[0]["lr"] == alone.hypergradients()[0]["lr"]
        if t == 3:
            assert both.hypergradients()[0]["lr"] == pytest.approx(alone.hypergradients()[0]["lr"] - 3)


@pytest.mark.parametrize("tower", [None, TOWER, SGD(lr=0.1, momentum=0.9, horizon=10) / SGD(lr=0.01)], ids=repr)
@pytest.mark.parametrize("per", ["group", "tensor"])
def test_a_step_without_any_gradient_is_none(tower, per):
    """As in torch.optim: what comes afterwards goes on as if nobody had asked for it."""
    model, twin = network(), network()
    optimizer, other = (Hyperoptimizer(m.parameters(), tower, per=per) for m in (model, twin))
    for t in range(6):
        for m, o in ((model, optimizer), (twin, other)):
            fit(o, m, 1, t)
        optimizer.zero_grad()
        optimizer.step()
        assert optimizer.made() == other.made() == t + 1
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=0, atol=0)
    assert optimizer.hyperparameters() == other.hyperparameters()
    assert optimizer.hypergradients() == other.hypergradients()


def test_an_idle_group_says_nothing_of_the_last_step_to_higher_levels():
    """The step size of the group that sat out was not moved, so its gradient is none of the level above's business."""
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = Hyperoptimizer([{"params": [a]}, {"params": [b]}], SGD(lr=0.1, horizon=10) / SGD(lr=0.01) / SGD(lr=0.0))
    before = 0.0
    for t in range(6):
        a.grad, b.grad = torch.full_like(a, 1.0 + t), None if t == 4 else torch.full_like(b, 2.0 + t)
        if t == 5:
            before = optimizer.hypergradients(0)[0]["lr"]  # along it the level above has moved the lr of a, in step 4
        optimizer.step()
        assert math.isnan(optimizer.hypergradients(1)[0]["lr"]) == (t in (0, 4))
    assert optimizer.hypergradients()[1]["lr"] == pytest.approx(-before * optimizer.hypergradients(0)[0]["lr"])


@compiler
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=everything)])
def test_a_parameter_without_a_gradient_is_not_tuned_by_the_others(compile):
    """As a group per tensor does, for which it was written."""
    runs = []
    for split in (lambda ps: ps, lambda ps: [{"params": [p]} for p in ps]):
        a, b = scalars(2, 2)
        per = "tensor" if split([a])[0] is a else "group"
        optimizer = Hyperoptimizer(split([a, b]), SGD(lr=0.1) / Adam(lr=1e-2) / SGD(lr=1e-3), per=per, compile=compile)
        for t in range(7):
            b.grad = None if t in (1, 2, 5) else torch.ones_like(b)
            optimizer.step()
        last = (
            optimizer.hyperparameters()[0]["lr"] if per == "tensor" else [optimizer.hyperparameters(i)[0]["lr"] for i in (0, 1)]
        )
        runs.append((last, a.detach(), b.detach()))
    torch.testing.assert_close(*runs, rtol=1e-10, atol=0)


def test_after_a_step_in_which_all_rest_nothing_is_read_of_what_was_kept():
    """An Adam above would go on by its momentum."""
    p, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = Hyperoptimizer([{"params": [p]}, {"params": [other]}], SGD(lr=0.1) / Adam(lr=1e-3))
    for t in range(4):
        before = optimizer.hyperparameters()
        p.grad, other.grad = (None if t == 2 else p.detach().clone()), torch.ones(2)
        optimizer.step()
    assert math.isnan(optimizer.hypergradients()[0]["lr"])
    assert optimizer.hyperparameters()[0]["lr"] == before[0]["lr"]


def unfrozen(body, head, per="group", groups=False, stop=False, tower=None, edit=lambda optimizer, p: None):
    """The learned step size before and after a frozen body of so many elements joins a head of so many.

    Args:
        edit: what is done to the head just before.
    """
    torch.manual_seed(0)
    first, last = nn.Parameter(torch.randn(body)), nn.Parameter(torch.randn(head))
    params = [{"params": [first]}, {"params": [last]}] if groups else [first, last]
    optimizer = Hyperoptimizer(params, tower, per=per)
    first.requires_grad_(False)
    found = []
    for t in range(60):
        if t == 40:
            first.requires_grad_(True)
            edit(optimizer, last)
            if stop:
                mine, optimizer = optimizer, Hyperoptimizer(params, tower, per=per)
                optimizer.load_state_dict(mine.state_dict())
        for p in (first, last):
            p.grad = p.detach() - 3 + torch.randn_like(p) if p.requires_grad else None
        optimizer.step()
        found.append(optimizer.hyperparameters(len(optimizer.param_groups) - 1)[0]["lr"])
    return found, [p.tolist() for p in (first, last)]


@pytest.mark.parametrize("per", ["group", "all"])
@pytest.mark.parametrize("groups", [False, True])
def test_a_body_that_was_frozen_does_not_move_as_its_head_has_learned_to(per, groups):
    """What a pretrained body can bear is not known when it begins to move; a tower that starts low finds it anew."""
    found, _ = unfrozen(1000, 20, per, groups)
    assert found[39] > 20 * found[0]
    if groups and per == "group":  # which have found it apart
        assert found[40] > found[39] / 2
    else:
        assert found[40] == found[0]
        assert found[59] > 20 * found[40]


@pytest.mark.parametrize("tower", [None, Adam(lr=0.01) / SGD(lr=1e-4)], ids=["default", "paper"])
def test_what_joins_later_and_is_little_or_moves_by_a_tower_of_ones_own_changes_nothing_at_once(tower):
    found, _ = unfrozen(20, 1000, tower=tower) if tower is None else unfrozen(1000, 20, tower=tower)
    assert found[40] == pytest.approx(found[39], rel=0.3)


@pytest.mark.parametrize("per", ["group", "all"])
def test_a_body_joins_in_the_same_way_where_a_step_raises_at_first(per, monkeypatch):
    """There is no memory for its state, say; the step is made again."""
    fill, fails = Group.fill, []

    def fails_once(self, *given):
        fill(self, *given)
        if fails:
            fails.clear()
            raise MemoryError

    expected = unfrozen(1000, 20, per, per == "all")
    monkeypatch.setattr(Group, "fill", fails_once)
    step = Hyperoptimizer.step

    def again(self):
        try:
            return step(self)
        except MemoryError:
            return step(self)

    monkeypatch.setattr(Hyperoptimizer, "step", again)
    assert unfrozen(1000, 20, per, per == "all", edit=lambda *_: fails.append(True)) == expected
    assert not fails


def forget(optimizer, p):
    del optimizer.state[p]


def copy(optimizer, p):
    optimizer.state[p] = {n: x.clone() for n, x in optimizer.state[p].items()}


def scale(optimizer, p):
    optimizer.state[p]["exp_avg_sq"] *= 4


@pytest.mark.parametrize("edit", [lambda optimizer, p: None, forget, copy, scale], ids=["none", "forget", "copy", "scale"])
@pytest.mark.parametrize("per", ["group", "all"])
def test_a_body_joins_in_the_same_way_after_a_checkpoint(edit, per):
    """Whatever is done to the state of its head, the step size begins where it began at first."""
    one, other = (unfrozen(1000, 20, per, stop=stop, edit=edit) for stop in (False, True))
    assert one == other
    assert one[0][40] == one[0][0]


@pytest.mark.parametrize("how", ["forgotten", "appended", "replaced"])
@pytest.mark.parametrize("stop", [False, True])
def test_what_begins_anew_or_is_new_keeps_the_step_size(how, stop):
    """It has moved under it, or stands for what has; also where a checkpoint lies between that and the next step."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(1000)), nn.Parameter(torch.randn(20))]
    optimizer = Hyperoptimizer(params)
    for t in range(41):
        if t == 40:
            learned, group = optimizer.hyperparameters()[0]["lr"], optimizer.param_groups[0]["params"]
            if how == "forgotten":
                del optimizer.state[params[0]]
            elif how == "appended":
                group.append(nn.Parameter(torch.randn(2000)))
            else:
                optimizer.state.pop(group[0])
                group[0] = nn.Parameter(torch.randn(1000))
            params = [*group]
        if t == 40 and stop:
            saved, optimizer = optimizer.state_dict(), Hyperoptimizer(params)
            optimizer.load_state_dict(saved)
        for p in params:
            p.grad = p.detach() - 3 + torch.randn_like(p)
        optimizer.step()
    assert optimizer.hyperparameters()[0]["lr"] > learned / 2 > 0.01


def moved(params, optimizer, *steps):
    """Steps, in each of which some of the parameters have a gradient."""
    for moving in steps:
        for n, p in zip("abc", params, strict=False):
            p.grad = 2 * (p.detach() - 1) if n in moving else None
        optimizer.step()


@pytest.mark.parametrize("tower", [None, Adam(lr=0.01) / SGD(lr=1e-3)], ids=repr)
def test_one_that_rests_is_its_own_after_moving_with_another(tower):
    """As in the run that goes on from its checkpoint, where nothing is left of how they were gathered."""
    found = []
    for resumed in (False, True):
        params = [torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        optimizer = Hyperoptimizer(params, tower)
        moved(params, optimizer, "ab", "ab", "ab", "b", "b")
        if resumed:
            saved, optimizer = optimizer.state_dict(), Hyperoptimizer(params, tower)
            optimizer.load_state_dict(saved)
        moved(params, optimizer, "bc", "abc", "abc")  # of many that join, all begin anew
        found.append([optimizer.hyperparameters(), *(p.tolist() for p in params)])
    assert found[0] == found[1]


def test_the_average_of_one_that_rests_follows_what_is_written_to_it():
    params = [torch.full((3,), 2.0, requires_grad=True) for _ in range(2)]
    optimizer = Hyperoptimizer(params)
    moved(params, optimizer, "ab", "ab", "ab", "b")
    params[0].data.zero_()
    optimizer.eval()
    assert params[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("tower", [None, Adam(), SGD(momentum=0.9) / SGD(lr=1e-9)], ids=repr)
def test_one_that_rests_is_not_taken_for_written_to_by_steps_of_another(tower):
    """With which it was gathered: all would be gathered anew, each time."""
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    optimizer = Hyperoptimizer(params, tower)
    moved(params, optimizer, "ab", "ab", "b", "b")
    buckets = optimizer._own.groups[0].buckets
    moved(params, optimizer, "b", "b")
    assert optimizer._own.groups[0].buckets is buckets


@pytest.mark.parametrize("above", [Adam(lr=1e-3, eps=0.0), RMSprop(lr=1e-3, eps=0.0), Adagrad(lr=1e-3, eps=0.0)], ids=repr)
def test_a_frozen_group_does_not_hold_the_others_where_the_rule_above_divides_by_0(above):
    found = []
    for frozen in ([], [torch.ones(5)]):
        p = torch.ones(5, requires_grad=True)
        optimizer = Hyperoptimizer([{"params": [x]} for x in (p, *frozen)], SGD(lr=0.1) / above)
        for _ in range(5):
            optimizer.zero_grad()
            (p - 2).square().sum().backward()
            optimizer.step()
        found.append(optimizer.hyperparameters()[0]["lr"])
    assert found[0] == found[1] != 0.1


@pytest.mark.parametrize("rests", [False, True], ids=["moves", "rests"])
def test_a_state_that_is_transposed_in_its_place_is_seen(rests):
    """Also in the step in which another parameter has no gradient."""

    def go(make):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(400, 500))]
        optimizer = make(params)
        for t in range(6):
            for p in params:
                p.grad = torch.randn_like(p)
            if t == 3:
                optimizer.state[params[0]]["exp_avg_sq"].t_()
                params[1].grad = None if rests else params[1].grad
            optimizer.step()
        return params

    for mine, theirs in zip(
        go(lambda ps: Hyperoptimizer(ps, Adam(lr=0.1))), go(lambda ps: torch.optim.Adam(ps, lr=0.1)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("size", [3, 400])
@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize("tower", [None, TOWER, SGD(lr=0.1, momentum=0.9, horizon=10) / SGD(lr=1e-9)], ids=repr)
def test_experts_that_take_turns_go_on_as_those_that_are_put_together_anew(tower, per, size, monkeypatch):
    """As long as nothing else changes, who has a gradient is all that the next step has to find out."""

    def run():
        torch.manual_seed(0)
        experts = [[nn.Parameter(torch.randn(size, size)), nn.Parameter(torch.randn(4))] for _ in range(6)]
        optimizer = Hyperoptimizer([p for expert in experts for p in expert], tower, per=per)
        for _ in range(20):
            here = torch.randperm(6)[:2].tolist()
            for i, expert in enumerate(experts):
                for p in expert:
                    p.grad = p.detach() + 0.1 * torch.randn_like(p) if i in here else None
            optimizer.step()
        return experts, optimizer.state_dict()

    kept, keeps = [], Group.keeps
    monkeypatch.setattr(Group, "keeps", lambda group, present: kept.append(keeps(group, present)) or kept[-1])
    mine = run()
    monkeypatch.setattr(Group, "keeps", lambda group, present: False)
    torch.testing.assert_close(mine, run(), rtol=0, atol=0, equal_nan=True)
    assert any(kept)
