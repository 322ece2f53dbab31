"""from_torch: an optimizer of torch goes on as a tower."""

import copy
import gc
import math
import weakref

import pytest
import torch
from cases import TWINS, parameters, train
from helpers import scalars

from hypergradient import POSITIVE, SGD, Adam, AdamW, Hyperoptimizer, RMSprop, from_torch


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_from_torch_goes_on_where_the_torch_optimizer_was(case, exact_muon):
    kind, options = getattr(torch.optim, str(case)), {n: case.lively[n] for n in case.lively if n == "momentum"}
    mine, theirs = (parameters(case.matrix) for _ in range(2))
    (one, twin) = (kind([{"params": p[:1], "lr": 0.02}, {"params": p[1:]}], lr=0.01, **options) for p in (mine, theirs))
    train(one, mine, 5)
    train(twin, theirs, 5)
    optimizer = from_torch(one, above=SGD(lr=0.0))
    assert [optimizer.hyperparameters(g)[0]["lr"] for g in (0, 1)] == [0.02, 0.01]
    train(optimizer, mine, 5, 5)
    train(twin, theirs, 5, 5)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_from_torch_takes_options_and_keeps_flags():
    groups = [{"params": parameters()[:1], "amsgrad": True}, {"params": parameters()[1:]}]
    optimizer = from_torch(torch.optim.AdamW(groups, lr=0.1), SGD(lr=0.1), tune=("lr",), charts={"lr": POSITIVE}, per="tensor")
    assert [rule.amsgrad for rule in optimizer.rules] == [True, False]
    assert repr(optimizer.rules[0]) == "AdamW(lr=0.1, amsgrad=True, tune=('lr',), charts={'lr': POSITIVE})"
    assert isinstance(from_torch(torch.optim.Adam(parameters(), decoupled_weight_decay=True)).rules[0], AdamW)
    assert from_torch(torch.optim.SGD(parameters(), maximize=True)).param_groups[0]["maximize"]


def test_from_torch_takes_our_rules_whatever_else_has_their_name():
    type("Adam", (Adam,), {})
    assert type(from_torch(torch.optim.Adam(parameters())).rules[0]) is Adam


def test_from_torch_tunes_what_each_group_has():
    a, b, *_ = parameters()
    for momenta in ((0.9, 0.0), (0.0, 0.9)):
        groups = [{"params": [p], "momentum": m} for p, m in zip((a, b), momenta, strict=True)]
        optimizer = from_torch(torch.optim.SGD(groups, lr=0.1), SGD(lr=1e-3))
        assert [("momentum" in optimizer.hypergradients(g)[0]) for g in (0, 1)] == [m > 0 for m in momenta]


def test_from_torch_of_a_complex_nadam():
    z, w = (torch.tensor([1 + 2j, 3 - 1j], requires_grad=True) for _ in range(2))
    one, twin = torch.optim.NAdam([z], lr=0.1), torch.optim.NAdam([w], lr=0.1)
    for t in range(10):
        for x, o in ((z, one), (w, twin)):
            o.zero_grad()
            (x.abs() - 1).square().sum().backward()
            o.step()
        if t == 4:
            one = from_torch(one, above=None)
    torch.testing.assert_close(z, w)


def test_from_torch_in_mid_training_tunes_like_a_tower_that_begins():
    """Nothing is read in the first step, and no level takes a step for it."""
    moved = []
    for made in (0, 5):
        (p,) = scalars(3)
        one = torch.optim.Adam([p], lr=1e-2)
        for _ in range(made):
            one.step()
        optimizer = from_torch(one, above=Adam(lr=1e-3) / Adam(lr=1e-4))
        assert optimizer.made() == made
        rows = []
        for _ in range(4):
            optimizer.step()
            rows.append([math.isnan(level["lr"]) for level in optimizer.hypergradients()[:-1]])
        moved.append((rows, optimizer.state[p]["step"].item() - made))
        state = copy.deepcopy(optimizer.state_dict())
        (q,) = scalars(3)
        again = from_torch(torch.optim.Adam([q], lr=1e-2), above=Adam(lr=1e-3) / Adam(lr=1e-4))
        again.load_state_dict(state)
        assert repr(again.hypergradients()) == repr(optimizer.hypergradients())
    assert moved[0] == moved[1]
    assert moved[0][0] == [[True, True], [False, True], [False, False], [False, False]]


def test_from_torch_of_groups_that_decay_differently():
    mine, theirs = parameters(), parameters()

    def adam(params):
        groups = [{"params": params[:2]}, {"params": params[2:], "decoupled_weight_decay": True}]
        return torch.optim.Adam(groups, lr=0.1, weight_decay=0.5)

    optimizer, twin = from_torch(adam(mine), above=None), adam(theirs)
    assert [type(rule) for rule in optimizer.rules] == [Adam, AdamW]
    torch.testing.assert_close(train(optimizer, mine, 10), train(twin, theirs, 10), rtol=1e-10, atol=1e-10)


def test_a_step_of_the_optimizer_that_was_replaced_says_what_to_use():
    params = parameters()
    old = torch.optim.AdamW(params, lr=1e-3)
    before = torch.optim.lr_scheduler.StepLR(old, 1)
    new = from_torch(old)
    after = torch.optim.lr_scheduler.StepLR(old, 1)
    train(new, params, 1)
    before.step(), after.step()
    with pytest.raises(RuntimeError, match="this AdamW was given to from_torch: use the optimizer that it returned"):
        old.step()


def test_hooks_go_on():
    """Of steps and of checkpoints; a handle takes its own away."""
    calls, mine = [], parameters()
    optimizer = torch.optim.SGD(mine, lr=0.1)
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    handle = optimizer.register_state_dict_post_hook(lambda *_: calls.append("state_dict"))
    ours = from_torch(optimizer)
    calls.clear()
    train(ours, mine, 1)
    ours.state_dict()
    assert calls == ["step", "state_dict"]
    handle.remove()
    ours.state_dict()
    assert calls == ["step", "state_dict"]


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")  # as of every copy of a scheduler
def test_a_copy_and_its_scheduler_go_on_after_a_load():
    mine = parameters()
    optimizer = torch.optim.SGD(mine, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    ours = from_torch(optimizer, above=None)
    train(ours, mine, 1)
    mine, ours, scheduler = copy.deepcopy((mine, ours, scheduler))
    ours.load_state_dict(ours.state_dict())
    scheduler.step()
    assert ours.param_groups[0]["lr"] == 0.05
    train(ours, mine, 1)


@pytest.mark.parametrize("above", [None, SGD(lr=1e-5), "auto"], ids=str)
def test_a_group_that_comes_later_has_the_defaults_of_the_optimizer(above):
    """Not those of its first group."""
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    groups = [{"params": [a], "lr": 1e-4, "weight_decay": 0.0}]
    options = {"lr": 0.01, "weight_decay": 0.3, "betas": (0.8, 0.9), "maximize": True}
    optimizer = from_torch(torch.optim.AdamW(groups, **options), above)
    optimizer.add_param_group({"params": [b]})
    group = optimizer.param_groups[1]
    assert {n: group[n] for n in options} == options
    b.grad = torch.ones(2)
    optimizer.step()
    assert (b > 1 - 0.3 * 0.01 - 1e-6).all()


OTHERS = {
    "momentum into AdamW": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, lambda p: from_torch(torch.optim.AdamW(p))),
    "AdamW into the default": (torch.optim.AdamW, {}, Hyperoptimizer),
    "Adam into RMSprop alone": (torch.optim.Adam, {}, lambda p: Hyperoptimizer(p, RMSprop())),
}


@pytest.mark.parametrize(("theirs", "options", "make"), OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_rule_is_refused(theirs, options, make):
    """Torch notices in the next step, or not at all."""
    mine = parameters()
    saved = theirs(mine, **options)
    train(saved, mine, 2)
    optimizer = make(mine)
    before = str(optimizer)
    with pytest.raises(ValueError, match=r"of another rule: in group 0 it has .* of a parameter, where .* has .*own rule"):
        optimizer.load_state_dict(saved.state_dict())
    assert str(optimizer) == before
    assert not optimizer.state
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    train(optimizer, mine, 1)


@pytest.mark.parametrize("moved", [False, True], ids=["before the first step", "of one that has not moved"])
def test_an_entry_of_ones_own_is_no_step_and_no_mark_of_another_rule(moved):
    """As in torch.optim: `state` is the user's."""
    weights, optimizers = [], []
    for make in (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), from_torch_alone):
        mine = parameters()
        optimizer = make(mine)
        mine[0].grad = torch.ones_like(mine[0])
        if moved:
            optimizer.step()
        optimizer.state[mine[1]]["ema"] = mine[1].detach().clone()
        again = make(mine)
        again.load_state_dict(optimizer.state_dict())
        train(again, mine, 3)
        weights.append(mine)
        optimizers.append(again)
    torch.testing.assert_close(*weights, rtol=1e-12, atol=1e-12)
    assert all("ema" in o.state[mine[1]] for o, mine in zip(optimizers, weights, strict=True))


def from_torch_alone(params):
    """SGD of torch, as a rule that nothing tunes."""
    return from_torch(torch.optim.SGD(params, lr=0.1, momentum=0.9, dampening=0.5), above=None)


def test_what_has_been_replaced_is_freed_at_once():
    """It does not refer to itself: nobody has to wait for the collector."""
    p = torch.nn.Parameter(torch.ones(3))
    old = torch.optim.Adam([p])
    optimizer, gone = from_torch(old), weakref.ref(old)
    gc.collect()
    gc.disable()
    try:
        del old, optimizer
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("theirs", "mine"), [("AdamW", "Adam"), ("Adam", "AdamW")])
def test_a_checkpoint_that_decays_in_another_way_is_refused(theirs, mine):
    """Torch takes from it which of the two an Adam is; here they are two rules."""
    params = parameters()
    given = getattr(torch.optim, theirs)(params, weight_decay=0.1)
    train(given, params, 2)
    saved = given.state_dict()
    if "decoupled_weight_decay" not in saved["param_groups"][0]:
        pytest.skip("this torch does not say it in its checkpoints")
    optimizer = from_torch(getattr(torch.optim, mine)(parameters()), above=None)
    with pytest.raises(ValueError, match=f"decoupled_weight_decay=.*unlike {mine}; load it into an optimizer of {theirs}"):
        optimizer.load_state_dict(saved)
    saved["param_groups"][0]["weight_decay"] = 0.0
    optimizer.load_state_dict(saved)
