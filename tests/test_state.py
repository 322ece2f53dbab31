"""Whose the state is: what scripts do to `state`, `param_groups` and `state_dict()` does what it does with torch.optim."""

import copy
import io
import pickle
import random
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from cases import RULES, parameters, train
from helpers import crossed, refusal, stored
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map

import hypergradient as hg
from hypergradient import POSITIVE, SGD, Adam, AdamW, Hyperoptimizer, Muon, RMSprop, from_torch
from hypergradient.bucket import Bucket
from hypergradient.probe import sums

SMALL, LARGE = [(4, 3), (3, 5)], [(363, 364), (3, 5)]  # a parameter of 131,072 elements is not gathered with others
RATE, SECOND = 1e-4, 0.02  # the step size of the level above; lr of a second group
PAIRS = {
    "SGD": (SGD(lr=0.01, momentum=0.9), torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "Adam": (Adam(lr=0.01), torch.optim.Adam, {"lr": 0.01}),
    "AdamW": (AdamW(lr=0.01, amsgrad=True), torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    "RMSprop": (RMSprop(lr=0.01, momentum=0.5), torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5}),
    "Muon": (Muon(lr=0.01), torch.optim.Muon, {"lr": 0.01}),
}
KINDS = [(rule, 1, "tensor", 2, SMALL) for rule in PAIRS]  # rule, horizon (None: no level above), per, groups, shapes
WAYS = [
    ("Adam", 1, "group", 1, SMALL),
    ("Adam", 1, "all", 2, SMALL),
    ("Adam", 8, "group", 2, SMALL),
    ("SGD", 8, "group", 1, SMALL),
    ("Adam", 1, "group", 1, LARGE),
    ("SGD", 8, "tensor", 2, LARGE),
]
ALONE = [("Adam", None, "group", 1, SMALL), ("SGD", None, "group", 1, LARGE)]
COMBINATIONS = [*KINDS, *WAYS, *ALONE]
TOWERS = [("Adam", 1, "tensor", 2, SMALL), ("SGD", 1, "tensor", 2, SMALL), *WAYS]
"""Of what is learned, and saved, the rule says nothing."""


pytestmark = pytest.mark.usefixtures("exact_muon")


def name_of(x):
    if not isinstance(x, tuple):
        return None
    rule, horizon, per, count, shapes = x
    above = "alone" if horizon is None else f"horizon {horizon}"
    return f"{rule}, {above}, per {per}, {count} groups, {'large' if shapes is LARGE else 'small'}"


def make_params(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def make_groups(params, count):
    return [{"params": params}] if count == 1 else [{"params": params[:1]}, {"params": params[1:], "lr": SECOND}]


def make_tower(name, horizon, rate):
    rule = PAIRS[name][0]
    return rule if horizon is None else replace(rule, tune=("lr",), horizon=horizon) / SGD(lr=rate)


def make(combination, rate=0.0):
    """An optimizer; with the `rate` 0 what is tuned never moves."""
    name, horizon, per, count, shapes = combination
    return Hyperoptimizer(make_groups(make_params(shapes), count), make_tower(name, horizon, rate), per=per)


def make_twin(combination):
    name, _, _, count, shapes = combination
    _, kind, options = PAIRS[name]
    return kind(make_groups(make_params(shapes), count), **options)


def everything(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def go(optimizer, steps, start=0):
    """So many steps, along gradients that follow from weights and time: a larger step size is always the better one."""
    for t in range(start, start + steps):
        for p in everything(optimizer):
            p.grad = 2 + torch.cos(3 * p.detach() + t)
        optimizer.step()


def same_as_torch(optimizer, twin):
    """Weights, and of the state what torch has, too."""
    torch.testing.assert_close(everything(optimizer), everything(twin), rtol=1e-9, atol=1e-12)
    for p, q in zip(everything(optimizer), everything(twin), strict=True):
        expected = {n: x for n, x in twin.state.get(q, {}).items() if isinstance(x, torch.Tensor)}
        found = {n: optimizer.state[p][n].to(x.dtype) for n, x in expected.items()}
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def resumed(optimizer, combination, rate):
    """An optimizer of copies of the weights, that has loaded the checkpoint of another."""
    name, horizon, per, _, _ = combination
    groups = [
        {"params": [p.detach().clone().requires_grad_() for p in g["params"]], "lr": g.get("initial_lr", g["lr"])}
        for g in optimizer.param_groups
    ]
    twin = Hyperoptimizer(groups, make_tower(name, horizon, rate), per=per)
    twin.load_state_dict(stored(optimizer.state_dict()))
    return twin


def values(optimizer):
    return [optimizer.hyperparameters(i) for i in range(len(optimizer.param_groups))]


def rates(optimizer):
    """Of each group, the step sizes in force."""
    found = [optimizer.hyperparameters(i)[0]["lr"] for i in range(len(optimizer.param_groups))]
    return [x if isinstance(x, list) else [x] for x in found]


def slopes(optimizer):
    """Of each group, their hypergradients."""
    found = [optimizer.hypergradients(i)[0]["lr"] for i in range(len(optimizer.param_groups))]
    return [x if isinstance(x, list) else [x] for x in found]


def goes_on_as_torch(edit, combination):
    """After an edit, the next step and those that follow are those of torch."""
    optimizer, twin = make(combination), make_twin(combination)
    for o in (optimizer, twin):
        go(o, 4)
        edit(o)
        go(o, 1, 4)
    same_as_torch(optimizer, twin)
    for o in (optimizer, twin):
        go(o, 2, 5)
    same_as_torch(optimizer, twin)


def saved_and_resumed(edit, combination, later):
    """What is resumed from a checkpoint after an edit goes on as what was edited does."""
    optimizer = make(combination, RATE)
    go(optimizer, 4)
    edit(optimizer)
    drop_what_is_gone(optimizer)
    go(optimizer, later, 4)
    twin = resumed(optimizer, combination, RATE)
    assert values(twin) == values(optimizer)
    for o in (optimizer, twin):
        go(o, 3, 5)
    torch.testing.assert_close(everything(twin), everything(optimizer), rtol=0, atol=0)
    assert values(twin) == values(optimizer)


# ------------------------------------------------------------------------------------- edits of the state of a parameter


def moments(memory):
    return {n: x for n, x in memory.items() if n != "step" and isinstance(x, torch.Tensor)}


def first(optimizer):
    return optimizer.param_groups[0]["params"][0]


def the_entry_is_deleted(o):
    del o.state[first(o)]


def the_entry_is_popped_and_given_back(o):
    o.state[first(o)] = o.state.pop(first(o))


def the_entry_is_replaced_by_an_empty_one(o):
    o.state[first(o)] = {}


def the_entry_is_emptied(o):
    o.state[first(o)].clear()


def all_entries_are_deleted(o):
    o.state.clear()


def the_state_is_set_anew(o):
    o.__setstate__({"state": defaultdict(dict)})


def the_state_is_set_anew_with_the_groups(o):
    o.__setstate__({"state": defaultdict(dict), "param_groups": o.param_groups})


def tensors_are_zeroed(o):
    for x in moments(o.state[first(o)]).values():
        x.zero_()


def tensors_are_zeroed_by_data(o):
    for x in moments(o.state[first(o)]).values():
        x.data.zero_()


def tensors_are_replaced_by_zeros(o):
    for n in moments(o.state[first(o)]):
        o.state[first(o)][n] = torch.zeros_like(first(o))


def a_row_is_zeroed(o):
    for x in moments(o.state[first(o)]).values():
        x[0].zero_()


def columns_are_zeroed_by_a_mask(o):
    mask = torch.arange(first(o).shape[1]) % 2 == 0
    for x in moments(o.state[first(o)]).values():
        x[:, mask] = 0


def tensors_are_scaled_through_views(o):
    for x in moments(o.state[first(o)]).values():
        x.view(-1)[1:].mul_(0.5)


def the_step_is_zeroed(o):
    if "step" in o.state[first(o)]:  # torch's SGD has none
        o.state[first(o)]["step"].zero_()


def the_step_is_set_by_data(o):
    if "step" in o.state[first(o)]:
        o.state[first(o)]["step"].data.fill_(2)


def the_step_is_replaced(o):
    if "step" in o.state[first(o)]:
        o.state[first(o)]["step"] = torch.tensor(1.0)


def all_is_zeroed(o):
    for x in o.state[first(o)].values():
        if isinstance(x, torch.Tensor):
            x.zero_()


def tensors_get_another_storage(o):
    for memory in o.state.values():
        for x in memory.values():
            if isinstance(x, torch.Tensor):
                x.data = x.data.clone()


def tensors_are_replaced_by_copies(o):
    for memory in o.state.values():
        for n, x in memory.items():
            memory[n] = x.clone() if isinstance(x, torch.Tensor) else x


def tensors_go_to_another_dtype_and_back(o):
    for memory in o.state.values():
        for n, x in memory.items():
            memory[n] = x.to(torch.float32).to(x.dtype) if isinstance(x, torch.Tensor) else x


def entries_are_replaced_by_dicts_like_them(o):
    for p in list(o.state):
        o.state[p] = dict(o.state[p])


def tensors_of_the_state_dict_are_zeroed(o):
    for x in moments(o.state_dict()["state"][0]).values():
        x.zero_()


def the_step_of_the_state_dict_is_zeroed(o):
    if "step" in o.state_dict()["state"][0]:
        o.state_dict()["state"][0]["step"].zero_()


EDITS = [
    the_entry_is_deleted,
    the_entry_is_popped_and_given_back,
    the_entry_is_replaced_by_an_empty_one,
    the_entry_is_emptied,
    all_entries_are_deleted,
    the_state_is_set_anew,
    the_state_is_set_anew_with_the_groups,
    tensors_are_zeroed,
    tensors_are_zeroed_by_data,
    tensors_are_replaced_by_zeros,
    a_row_is_zeroed,
    columns_are_zeroed_by_a_mask,
    tensors_are_scaled_through_views,
    the_step_is_zeroed,
    the_step_is_set_by_data,
    the_step_is_replaced,
    all_is_zeroed,
    tensors_get_another_storage,
    tensors_are_replaced_by_copies,
    tensors_go_to_another_dtype_and_back,
    entries_are_replaced_by_dicts_like_them,
    tensors_of_the_state_dict_are_zeroed,
    the_step_of_the_state_dict_is_zeroed,
]


# ------------------------------------------------------------------------------------- another parameter in its place


def put(o, data):
    """Another parameter in the place of the first. Returns the old one and the new one."""
    p, q = first(o), torch.nn.Parameter(data)
    o.param_groups[0]["params"][0] = q
    return p, q


def another_with_an_empty_entry(o):
    p, q = put(o, 2 * first(o).detach())
    del o.state[p]
    o.state[q] = {}


def another_with_an_empty_entry_and_the_old_one_left(o):
    _, q = put(o, 2 * first(o).detach())
    o.state[q] = {}


def another_with_none(o):
    p, _ = put(o, 2 * first(o).detach())
    del o.state[p]


def another_with_none_and_the_old_one_left(o):
    put(o, 2 * first(o).detach())


def another_with_the_old_entry(o):
    p, q = put(o, 2 * first(o).detach())
    o.state[q] = o.state.pop(p)


def another_with_copies_of_the_old_entry(o):
    p, q = put(o, 2 * first(o).detach())
    o.state[q] = copy.deepcopy(o.state.pop(p))


def another_in_a_new_list_with_the_old_entry(o):
    p, q = first(o), torch.nn.Parameter(2 * first(o).detach())
    o.param_groups[0]["params"] = [q, *o.param_groups[0]["params"][1:]]
    o.state[q] = o.state.pop(p)


def a_smaller_one_with_an_empty_entry(o):
    p, q = put(o, first(o).detach()[1:].clone())
    del o.state[p]
    o.state[q] = {}


def a_smaller_one_with_none(o):
    p, _ = put(o, first(o).detach()[1:].clone())
    del o.state[p]


def a_smaller_one_with_slices_of_the_old_entry(o):
    p, q = put(o, first(o).detach()[1:].clone())
    memory = o.state.pop(p)
    o.state[q] = {n: x if n == "step" or x is None else x[1:] for n, x in memory.items()}


def a_larger_one_with_zeros_for_what_is_new(o):
    more = torch.ones(2, first(o).shape[1])
    p, q = put(o, torch.cat([first(o).detach(), more]))
    memory = o.state.pop(p)
    for n, x in moments(memory).items():
        memory[n] = torch.cat([x, torch.zeros_like(more)])
    o.state[q] = memory


REPLACEMENTS = [
    another_with_an_empty_entry,
    another_with_an_empty_entry_and_the_old_one_left,
    another_with_none,
    another_with_none_and_the_old_one_left,
    another_with_the_old_entry,
    another_with_copies_of_the_old_entry,
    another_in_a_new_list_with_the_old_entry,
    a_smaller_one_with_an_empty_entry,
    a_smaller_one_with_none,
    a_smaller_one_with_slices_of_the_old_entry,
    a_larger_one_with_zeros_for_what_is_new,
]


# ------------------------------------------------------------------------------------- groups assigned, added, taken away


def groups_are_replaced_by_dicts_like_them(o):
    o.param_groups = [dict(group) for group in o.param_groups]


def groups_are_set_anew(o):
    o.__setstate__({"state": o.state, "param_groups": [dict(group) for group in o.param_groups]})


def groups_change_places(o):
    o.param_groups = o.param_groups[::-1]


def groups_change_places_in_the_list(o):
    o.param_groups.reverse()


def a_group_is_appended(o):
    o.param_groups.append({**o.param_groups[0], "params": make_params([(3, 3)], seed=1)})


def a_group_is_put_first(o):
    o.param_groups = [{**o.param_groups[-1], "params": make_params([(3, 3)], seed=1)}, *o.param_groups]


def a_group_is_added_with_all_that_another_has(o):
    o.add_param_group({**o.param_groups[0], "params": make_params([(3, 3)], seed=1)})


def the_first_group_is_taken_away(o):
    for p in o.param_groups.pop(0)["params"]:
        del o.state[p]


def the_last_group_is_taken_away(o):
    for p in o.param_groups.pop()["params"]:
        del o.state[p]


def all_groups_but_one_are_taken_away_and_state_is_left(o):
    o.param_groups = o.param_groups[1:]


def a_parameter_goes_to_the_other_group(o):
    o.param_groups[1]["params"].append(o.param_groups[0]["params"].pop())


def two_groups_become_one(o):
    o.param_groups[0]["params"] += o.param_groups.pop()["params"]


GROUPS = [
    groups_are_replaced_by_dicts_like_them,
    groups_are_set_anew,
    groups_change_places,
    groups_change_places_in_the_list,
    a_group_is_appended,
    a_group_is_put_first,
    a_group_is_added_with_all_that_another_has,
    the_first_group_is_taken_away,
    the_last_group_is_taken_away,
    all_groups_but_one_are_taken_away_and_state_is_left,
    a_parameter_goes_to_the_other_group,
    two_groups_become_one,
]
TWO = [
    *(c for c in TOWERS if c[3] == 2),
    ("AdamW", None, "group", 2, SMALL),
    ("SGD", None, "group", 2, LARGE),
    ("SGD", 8, "tensor", 2, SMALL),
    ("Adam", 1, "group", 2, SMALL),
]


def drop_what_is_gone(o):
    """Entries of parameters that are in no group: torch.optim cannot save with them."""
    for p in [p for p in o.state if not any(p is q for q in everything(o))]:
        del o.state[p]


# ------------------------------------------------------------------------------------- what all of them have to do


@pytest.mark.parametrize(("edit", "combination"), crossed(EDITS + REPLACEMENTS, COMBINATIONS), ids=name_of)
def test_the_next_steps_are_those_of_torch(edit, combination):
    goes_on_as_torch(edit, combination)


@pytest.mark.parametrize(("edit", "combination"), crossed(GROUPS, TWO), ids=name_of)
def test_the_next_steps_are_those_of_torch_with_other_groups(edit, combination):
    goes_on_as_torch(edit, combination)


@pytest.mark.parametrize(("edit", "combination"), crossed(EDITS + REPLACEMENTS, TOWERS[:-1]), ids=name_of)
def test_it_is_in_the_next_checkpoint(edit, combination):
    saved_and_resumed(edit, combination, later=0)


@pytest.mark.parametrize("edit", EDITS + REPLACEMENTS)
def test_it_is_in_a_later_checkpoint(edit):
    saved_and_resumed(edit, TOWERS[0], later=1)


@pytest.mark.parametrize(
    ("edit", "combination"),
    crossed(EDITS + REPLACEMENTS + GROUPS, [c for c in TOWERS if c[3] == 2 and c[4] is SMALL]),
    ids=name_of,
)
def test_what_has_just_been_loaded_may_be_edited(edit, combination, monkeypatch):
    """Before its first step, too, a resumed optimizer goes on as the one that was saved."""
    monkeypatch.setattr("hypergradient.group.ALONE", 1)  # of what is gathered, nobody knows which part was written to
    optimizer = make(combination, RATE)
    go(optimizer, 4)
    twin = resumed(optimizer, combination, RATE)
    for o in (optimizer, twin):
        edit(o)
        go(o, 3, 5)
    torch.testing.assert_close(everything(twin), everything(optimizer), rtol=0, atol=0)
    assert values(twin) == values(optimizer)


@pytest.mark.parametrize("alone", [1 << 17, 1], ids=["gathered", "alone"])
@pytest.mark.parametrize("seed", range(30))
def test_any_sequence_of_edits_goes_on_as_torch(seed, alone, monkeypatch):
    monkeypatch.setattr("hypergradient.group.ALONE", alone)
    chance = random.Random(seed)
    combination = chance.choice([c for c in (*KINDS, *TWO) if c[4] is SMALL])
    edits = chance.sample([*EDITS, *REPLACEMENTS[:-4], *GROUPS[:-2]], 6)
    optimizer, twin = make(combination), make_twin(combination)
    for t, edit in enumerate(edits):
        for o in (optimizer, twin):
            go(o, 1, 2 * t)
            if all(len(group["params"]) for group in o.param_groups) and (len(o.param_groups) > 1 or edit not in GROUPS):
                edit(o)
            go(o, 1, 2 * t + 1)
        same_as_torch(optimizer, twin)


@pytest.mark.parametrize("later", [0, 1], ids=["saved at once", "saved a step later"])
@pytest.mark.parametrize(
    ("edit", "combination"), crossed(GROUPS, [c for c in TWO if c[1] is not None and c[0] == "Adam"]), ids=name_of
)
def test_it_is_in_the_next_checkpoint_with_other_groups(edit, combination, later):
    saved_and_resumed(edit, combination, later)


@pytest.mark.parametrize(("edit", "combination"), crossed(EDITS + REPLACEMENTS, TOWERS), ids=name_of)
def test_what_was_learned_stays(edit, combination):
    """SGD above moves what is tuned by its hypergradient times its step size, from where it was."""
    optimizer, per_tensor = make(combination, RATE), combination[2] == "tensor"
    begin = rates(optimizer)
    go(optimizer, 4)
    before = rates(optimizer)
    assert all(x > y for xs, ys in zip(before, begin, strict=True) for x, y in zip(xs, ys, strict=True))
    edit(optimizer)
    now = rates(optimizer)
    replaced = per_tensor and edit in REPLACEMENTS  # what was learned is of the parameter that is gone, or of its place
    known = [(g, i) for g, xs in enumerate(before) for i in range(len(xs)) if not (replaced and (g, i) == (0, 0))]
    assert [now[g][i] for g, i in known] == [before[g][i] for g, i in known]
    if replaced:
        assert now[0][0] in (before[0][0], begin[0][0])
    go(optimizer, 1, 4)
    factor = [SECOND / 0.01 if combination[2] == "all" and g else 1.0 for g in range(len(now))]  # one value, two factors
    for g, (old, new, slope) in enumerate(zip(now, rates(optimizer), slopes(optimizer), strict=True)):
        for x, y, s in zip(old, new, slope, strict=True):
            if not torch.tensor(s).isnan():  # nothing could be read
                x = x - RATE * s * factor[g]
            assert y == pytest.approx(x, rel=1e-9)


@pytest.mark.parametrize("combination", [c for c in TWO if c[1] is not None and c[2] == "group"], ids=name_of)
@pytest.mark.parametrize("edit", GROUPS[:-1])
def test_what_was_learned_goes_with_its_group(edit, combination):
    optimizer = make(combination, RATE)
    go(optimizer, 4)
    learned = {id(g["params"][-1]): optimizer.hyperparameters(i)[0]["lr"] for i, g in enumerate(optimizer.param_groups)}
    kept = {id(p) for p in everything(optimizer)}
    if edit is a_parameter_goes_to_the_other_group:  # then only the other one is left to learn anything
        learned.pop(id(optimizer.param_groups[0]["params"][-1]))
        learned = {id(optimizer.param_groups[0]["params"][-1]): next(iter(learned.values()))}
    edit(optimizer)
    for later in (False, True):
        for i, group in enumerate(optimizer.param_groups):
            if group["params"] and id(group["params"][-1]) in kept:
                before = learned[id(group["params"][-1])]
                found, slope = optimizer.hyperparameters(i)[0]["lr"], optimizer.hypergradients(i)[0]["lr"]
                moved = RATE * slope if later and slope == slope else 0.0
                assert found == pytest.approx(before - moved, rel=1e-9)
        go(optimizer, 0 if later else 1, 4)


@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("edit", [the_entry_is_deleted, the_entry_is_emptied, tensors_are_zeroed, another_with_none])
def test_a_parameter_that_starts_anew_says_nothing_of_the_last_step(edit, shapes):
    """The hypergradient of SGD is ``-<g, g'>`` over the others."""
    optimizer = Hyperoptimizer(make_params(shapes), SGD(lr=0.01) / SGD(lr=RATE))
    go(optimizer, 2)
    last = everything(optimizer)[1].grad.clone()
    edit(optimizer)
    go(optimizer, 1, 2)
    expected = -(last * everything(optimizer)[1].grad).sum().item()
    assert optimizer.hypergradients()[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
def test_what_was_learned_stays_when_all_state_goes(per):
    """The row of the issue: it was 1e-4 again, or 0 for good."""
    for edit in (the_entry_is_deleted, tensors_are_zeroed, all_is_zeroed, all_entries_are_deleted):
        mine = parameters()
        optimizer = Hyperoptimizer(mine, Adam(lr=1e-4) / SGD(lr=1e-3), per=per)
        train(optimizer, mine, 20)
        before = optimizer.hyperparameters()
        assert before[0]["lr"] != 1e-4
        edit(optimizer)
        assert optimizer.hyperparameters() == before
        train(optimizer, mine, 1, 20)
        lr, old = (torch.tensor(x[0]["lr"]) for x in (optimizer.hyperparameters(), before))
        assert ((lr - old).abs() < 0.5 * (old - 1e-4).abs() + 1e-5).all()


# ------------------------------------------------------------------------------------- pruning and growing


SPLATS = crossed([*product(["Adam", "SGD", "RMSprop"], ["group", "tensor"])], [*product([None, 1, 20], [False, True])])


@pytest.mark.parametrize(("rule", "per", "horizon", "large"), [(*x, *y) for x, y in SPLATS], ids=str)
def test_points_of_gaussian_splatting_come_and_go(rule, per, horizon, large):
    """One group per property of the points; every entry of the state but `step` is indexed by those that stay, and new
    points begin with zeros.
    """
    count = 45_000 if large else 12
    shapes = [(count, 3), (count, 1, 2), (count,)]

    def groups():
        return [{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(make_params(shapes))]

    def change(o, select, new):
        for group in o.param_groups:
            (p,) = group["params"]
            memory = o.state.pop(p, {})
            q = torch.nn.Parameter(torch.cat([p.detach()[select], torch.ones(new, *p.shape[1:])]))
            for n, x in moments(memory).items():
                memory[n] = torch.cat([x[select], torch.zeros(new, *p.shape[1:])])
            group["params"], o.state[q] = [q], memory

    _, kind, options = PAIRS[rule]
    twin = kind(groups(), **options)
    optimizer = Hyperoptimizer(groups(), make_tower(rule, horizon, 0.0), per=per)
    learner = Hyperoptimizer(groups(), make_tower(rule, horizon or 1, 1e-7 if large else 1e-4), per=per)
    for t in range(3):
        before = rates(learner)
        for o in (optimizer, twin, learner):
            go(o, 2, 2 * t)
            change(o, torch.arange(first(o).shape[0]) % 3 > 0, 2 * t)
        assert [x > y for (x,), (y,) in zip(rates(learner), before, strict=True)] == [True] * 3
        same_as_torch(optimizer, twin)


# ------------------------------------------------------------------------------------- what is in it


SIZES = [(SMALL, "all"), (SMALL, "tensor"), (LARGE, "tensor")]
HELD = [(c, *x) for c in RULES for x in (SIZES[:2] if c.matrix else SIZES)]


@pytest.mark.parametrize(("held", "horizon"), crossed(HELD, (None, 1, 8)), ids=str)
def test_it_holds_a_step_and_tensors_shaped_like_the_parameter(held, horizon):
    case, shapes, per = held
    rule = case.rule(**case.lively)
    names = [n for n, f in rule.hyperparameters().items() if f.metadata["tuned"] is not None]
    tower = rule if horizon is None else replace(rule, horizon=horizon, tune=tuple(names)) / Adam(lr=1e-4) / SGD(lr=1e-5)
    optimizer = Hyperoptimizer(make_params(shapes), tower, per=per)
    go(optimizer, 3)
    for p in everything(optimizer):
        memory = optimizer.state[p]
        assert all(isinstance(n, str) and isinstance(x, torch.Tensor) for n, x in memory.items())
        assert memory["step"].shape == ()
        assert memory["step"] == 3
        numbers = {"step", *sums(rule)}
        assert {memory[n].shape for n in numbers} == {torch.Size([])}
        assert {x.shape for n, x in memory.items() if n not in numbers} <= {p.shape}
        assert {x.dtype for n, x in memory.items() if n not in numbers} <= {p.dtype}
    numbers = [optimizer.state[p][n] for p in everything(optimizer) for n in numbers]
    assert len({x.data_ptr() for x in numbers}) == len(numbers)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=name_of)
def test_the_state_dict_holds_its_very_tensors(combination):
    optimizer = make(combination, RATE)
    go(optimizer, 3)
    found = optimizer.state_dict()["state"]
    for i, p in enumerate(everything(optimizer)):
        assert found[i].keys() == optimizer.state[p].keys()
        assert all(found[i][n].data_ptr() == x.data_ptr() for n, x in optimizer.state[p].items())


@pytest.mark.parametrize("above", [None, 0.0, 1e-4], ids=str)
@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("by", ["state", "state_dict"])
def test_a_step_that_is_zeroed_is_that_of_one_parameter(by, shapes, above):
    """The row of the issue: (0, 0), or no effect."""
    optimizer = Hyperoptimizer(make_params(shapes), make_tower("Adam", None if above is None else 1, above))
    go(optimizer, 5)
    one, other = (optimizer.state[p] for p in everything(optimizer))
    (one if by == "state" else optimizer.state_dict()["state"][0])["step"].zero_()
    assert (int(one["step"]), int(other["step"])) == (0, 5)
    saved = stored(optimizer.state_dict())["state"]
    assert (int(saved[0]["step"]), int(saved[1]["step"])) == (0, 5)
    go(optimizer, 1, 5)
    assert [int(optimizer.state[p]["step"]) for p in everything(optimizer)] == [1, 6]


@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
def test_a_checkpoint_has_the_state_that_was_given_another_storage(shapes):
    """The row of the issue: its `exp_avg` was that of step 1."""
    optimizer, twin = make(("Adam", 1, "group", 1, shapes), RATE), make(("Adam", 1, "group", 1, shapes), RATE)
    for o in (optimizer, twin):
        go(o, 1)
    tensors_get_another_storage(optimizer)
    for o in (optimizer, twin):
        go(o, 8, 1)
    found, expected = (stored(o.state_dict())["state"] for o in (optimizer, twin))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert values(optimizer) == values(twin)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("combination", TOWERS, ids=name_of)
def test_what_was_learned_survives_copies_though_no_state_holds_it(duplicate, combination):
    optimizer = make(combination, RATE)
    go(optimizer, 4)
    for memory in optimizer.state.values():
        memory.clear()
    twin = duplicate(optimizer)
    assert values(twin) == values(optimizer)
    for o in (optimizer, twin):
        go(o, 2, 4)
    torch.testing.assert_close(everything(twin), everything(optimizer), rtol=0, atol=0)
    assert values(twin) == values(optimizer)


# ------------------------------------------------------------------------------------- lr of a checkpoint


@pytest.mark.parametrize("per", ["all", "group"])
@pytest.mark.parametrize("rule", ["SGD", "Adam", "RMSprop"])
def test_the_lr_of_a_checkpoint_is_the_one_in_force(rule, per):
    optimizer = make((rule, 1, per, 2, SMALL), RATE)
    go(optimizer, 3)
    optimizer.param_groups[0]["lr"] *= 0.5
    go(optimizer, 2, 3)
    saved = stored(optimizer.state_dict())["param_groups"]
    assert [[group["lr"]] for group in saved] == [[pytest.approx(x, rel=1e-12)] for (x,) in rates(optimizer)]
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, SECOND]


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
def test_a_group_of_ones_own_checkpoint_has_the_lr_of_the_user_and_his_schedule(per):
    combination = "Adam", 1, per, 2, SMALL
    optimizer = make(combination, RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    go(optimizer, 3)
    schedule.step()
    go(optimizer, 2, 3)
    twin = resumed(optimizer, combination, RATE)
    assert [group["lr"] for group in twin.param_groups] == [0.005, SECOND / 2]
    other = torch.optim.lr_scheduler.LambdaLR(twin, lambda t: 0.5**t)
    other.load_state_dict(schedule.state_dict())
    for group, own in zip(twin.param_groups, optimizer.param_groups, strict=True):
        group["lr"] = own["lr"]  # a scheduler says its first value when it is made
    for o, s in ((optimizer, schedule), (twin, other)):
        go(o, 2, 5)
        s.step()
        go(o, 2, 7)
    torch.testing.assert_close(everything(twin), everything(optimizer), rtol=1e-12, atol=0)
    assert values(twin) == values(optimizer)


@pytest.mark.parametrize("above", [None, 1], ids=["alone", "tower"])
def test_an_lr_that_is_edited_in_a_checkpoint_is_in_force(above):
    combination = "Adam", above, "group", 2, SMALL
    optimizer = make(combination, RATE)
    go(optimizer, 4)
    learned = rates(optimizer)[1]
    saved = stored(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 0.123
    twin = make(combination, RATE)
    twin.load_state_dict(saved)
    assert rates(twin) == [[pytest.approx(0.123)], learned]


def test_a_checkpoint_goes_on_in_a_plain_optimizer_with_the_lr_in_force():
    optimizer = make(("AdamW", 1, "group", 2, SMALL), RATE)
    go(optimizer, 6)
    optimizer.param_groups[1]["lr"] *= 0.5
    (one,), (two,) = rates(optimizer)
    assert one > 0.0101
    twins = [
        torch.optim.AdamW(make_groups([p.detach().clone().requires_grad_() for p in everything(optimizer)], 2), amsgrad=True)
        for _ in range(2)
    ]
    twins[0].load_state_dict(stored(optimizer.state_dict()))
    for group, lr in zip(twins[1].param_groups, (one, two), strict=True):
        group["lr"] = lr
    for p, q in zip(everything(optimizer), everything(twins[1]), strict=True):
        names = "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
        twins[1].state[q] = {n: optimizer.state[p][n].detach().clone() for n in names}
    for twin in twins:
        go(twin, 3, 6)
    torch.testing.assert_close(everything(twins[0]), everything(twins[1]), rtol=1e-12, atol=0)


def test_a_plain_checkpoint_is_taken_over_by_what_from_torch_makes():
    plain = make_twin(("Adam", None, "group", 2, SMALL))
    go(plain, 4)
    params = [p.detach().clone().requires_grad_() for p in everything(plain)]
    optimizer = from_torch(torch.optim.Adam(make_groups(params, 2), lr=0.01), above=SGD(lr=0.0))
    optimizer.load_state_dict(stored(plain.state_dict()))
    for o in (plain, optimizer):
        go(o, 3, 4)
    same_as_torch(optimizer, plain)


@pytest.mark.parametrize("above", [None, SGD(lr=0.0), SGD(lr=RATE)], ids=repr)
def test_a_plain_checkpoint_with_other_values_counts(above):
    plain = torch.optim.Adam(make_params(SMALL), lr=0.03, betas=(0.8, 0.95), weight_decay=0.1, amsgrad=True)
    go(plain, 4)
    params = [p.detach().clone().requires_grad_() for p in everything(plain)]
    rule = Adam(lr=0.01, tune=("lr",))
    optimizer = Hyperoptimizer(params, rule if above is None else rule / above)
    if (said := refusal(lambda: optimizer.load_state_dict(stored(plain.state_dict())))) is not None:
        assert "amsgrad" in said
        return
    assert rates(optimizer) == [[pytest.approx(0.03)]]
    for o in (plain, optimizer):
        go(o, 1, 4)
    same_as_torch(optimizer, plain)


@pytest.mark.parametrize("rate", [0.0, RATE], ids=str)
def test_our_checkpoint_comes_back_whole_by_way_of_a_torch_optimizer_that_has_loaded_it(rate):
    optimizer = Hyperoptimizer(make_params(SMALL), Adam(lr=0.01) / SGD(lr=rate))
    go(optimizer, 5)
    params = [p.detach().clone().requires_grad_() for p in everything(optimizer)]
    plain = torch.optim.Adam(params, lr=0.5)
    plain.load_state_dict(stored(optimizer.state_dict()))
    twin = from_torch(plain, above=SGD(lr=rate))
    assert rates(twin) == [[pytest.approx(x, rel=1e-12) for x in rates(optimizer)[0]]]
    for o in (optimizer, twin):
        go(o, 1, 5)
    torch.testing.assert_close(everything(twin), everything(optimizer), rtol=1e-12, atol=5e-3 if rate else 0)
    torch.testing.assert_close(optimizer.state_dict()["state"][0]["exp_avg"], twin.state_dict()["state"][0]["exp_avg"])


# ------------------------------------------------------------------------------------- checkpoints of before

OLD = torch.load(Path(__file__).parent / "data" / "checkpoints-0.1.0.pt", weights_only=False)


@pytest.mark.parametrize("old", OLD.values(), ids=OLD)
def test_a_checkpoint_of_version_0_1_0_goes_on_as_it_did(old):
    mine = [w.clone().requires_grad_() for w in old["weights"]]
    groups = [{"params": mine[:2]}, {"params": mine[2:], "lr": old["second"]}]
    optimizer = Hyperoptimizer(groups, eval(old["tower"], {**vars(hg), "POSITIVE": POSITIVE}), per=old["per"])
    optimizer.load_state_dict(copy.deepcopy(old["state_dict"]))
    assert train(optimizer, mine, 6, 6) == pytest.approx(old["losses"], rel=1e-9)
    torch.testing.assert_close([p.detach() for p in mine], old["end"], rtol=1e-9, atol=1e-12)
    found = [optimizer.hyperparameters(i) for i in (0, 1)]
    torch.testing.assert_close(found, old["hyperparameters"], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("old", OLD.values(), ids=OLD)
def test_a_checkpoint_of_version_0_1_0_is_saved_in_the_present_form(old):
    """Right after it is loaded, before any step; and what is loaded from that goes on as well."""
    runs = []
    for again in (False, True):
        mine = [w.clone().requires_grad_() for w in old["weights"]]
        groups = [{"params": mine[:2]}, {"params": mine[2:], "lr": old["second"]}]
        optimizer = Hyperoptimizer(groups, eval(old["tower"], dict(vars(hg))), per=old["per"])
        optimizer.load_state_dict(stored(runs[0]) if again else copy.deepcopy(old["state_dict"]))
        runs.append(copy.deepcopy(optimizer.state_dict()))
        for p, memory in optimizer.state.items():
            assert {x.shape for n, x in memory.items() if n != "step"} <= {p.shape}
    assert train(optimizer, mine, 6, 6) == pytest.approx(old["losses"], rel=1e-9)


class Around(torch.optim.Optimizer):
    """As SAM is mostly written: with the groups and the state of the optimizer inside, saved and loaded as torch does."""

    def __init__(self, base):
        self.base = base
        super().__init__(base.param_groups, base.defaults)
        self.param_groups, self.state = base.param_groups, base.state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.base.param_groups, self.base.state = self.param_groups, self.state


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("by", ["wrapper", "optimizer"])
def test_a_checkpoint_without_what_was_learned_says_so(by, looked):
    """Also where it has what had been learned when somebody last looked at the optimizer inside."""

    def go(optimizer, p, steps):
        for _ in range(steps):
            p.grad = p.detach().clone()
            optimizer.step()
        return optimizer.hyperparameters()[0]["lr"]

    p = torch.ones(3, requires_grad=True)
    around = Around(Hyperoptimizer([p]))
    go(around.base, p, 10)
    if looked:
        around.base.state_dict()
    learned = go(around.base, p, 10)
    saved = stored((around if by == "wrapper" else around.base).state_dict())
    twin = Around(Hyperoptimizer([q := p.detach().clone().requires_grad_()]))
    if by == "optimizer":
        twin.base.load_state_dict(saved)
        assert go(twin.base, q, 0) == learned
    else:
        twin.load_state_dict(saved)
        with pytest.warns(RuntimeWarning, match="state of 20 steps, but without what was learned.*base_optimizer"):
            assert go(twin.base, q, 1) < learned / 10


@pytest.mark.parametrize("where", ["used", "fresh"])
@pytest.mark.parametrize("tower", [None, Adam(lr=0.01), Muon(lr=0.01) / SGD(lr=1e-5)], ids=str)
def test_a_checkpoint_of_another_width_is_refused_before_anything_has_changed(tower, where):
    def of(width):
        params = [torch.nn.Parameter(torch.ones(3, width)), torch.nn.Parameter(torch.ones(2, 2))]
        return params, Hyperoptimizer(params, tower)

    def go(params, optimizer):
        for p in params:
            p.grad = p.detach().clone()
        optimizer.step()

    for each in (one := of(4)), (other := of(5)):
        go(*each)
    params, optimizer = of(4) if where == "fresh" else one
    before, saved = stored(optimizer.state_dict()), stored(other[1].state_dict())
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"group 0 the state '\w+' of parameter 0 has shape \(3, 5\), the parameter \(3, 4\)"
        ):
            optimizer.load_state_dict(saved)
    torch.testing.assert_close(stored(optimizer.state_dict()), before, rtol=0, atol=0, equal_nan=True)
    go(params, optimizer)


def level(saved):
    """Of a state_dict, what the first group has kept of the level above."""
    return next(iter(saved["param_groups"][0]["learned"]["levels"].values()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: level(saved)["memory"][1].append(1.0),
        lambda saved: level(saved).update(memory="lost"),
        lambda saved: saved["param_groups"][0]["learned"].update(last=3),
        lambda saved: saved["param_groups"][0]["learned"].update(highest=[None, None]),
        lambda saved: saved["state"][1].update(step=[]),
    ],
    ids=["ragged", "no numbers", "last", "highest", "step"],
)
@pytest.mark.parametrize("whole", [False, True], ids=["from_torch", "alone"])
def test_after_a_checkpoint_that_is_damaged_all_is_as_before(damage, whole):
    def make():
        params = parameters()
        given = torch.optim.Adam(params, lr=0.01)
        return params, given, Hyperoptimizer(params) if whole else from_torch(given)

    (params, given, optimizer), (others, _, twin) = make(), make()
    for each, mine in ((optimizer, params), (twin, others)):
        train(each, mine, 4)
    damage(saved := copy.deepcopy(optimizer.state_dict()))
    with pytest.raises((TypeError, ValueError)):
        optimizer.load_state_dict(saved)
    if not whole:
        assert given.state is optimizer.state
        assert given.param_groups is optimizer.param_groups
    assert train(optimizer, params, 4, 4) == train(twin, others, 4, 4)
    assert optimizer.hyperparameters() == twin.hyperparameters()


@pytest.mark.parametrize("shape", [(4, 5), (200, 100)], ids=["small", "large"])
@pytest.mark.parametrize("name", ["last_movement", "exp_avg_sq"])
def test_to_save_and_load_twice_is_as_once(name, shape):
    """Of a state of which a part is lost, too."""

    def go(times):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(shape))
        optimizer = Hyperoptimizer([p])
        for t in range(6):
            if t == 4:
                del optimizer.state[p][name]
            for _ in range(times if t == 4 else 0):
                saved, optimizer = stored(optimizer.state_dict()), Hyperoptimizer([p])
                optimizer.load_state_dict(saved)
            p.grad = p.detach().clone()
            optimizer.step()
        return optimizer.hyperparameters(), optimizer.hypergradients(), p.tolist()

    assert repr(go(0)) == repr(go(1)) == repr(go(2)) == repr(go(3))


def test_to_see_whether_the_state_is_as_it_was_left_takes_as_long_as_there_are_parameters(monkeypatch):
    """And not, as once, the square of that: seconds for 600."""
    calls, views = [], Bucket.views
    monkeypatch.setattr(Bucket, "views", lambda self, flat: calls.append(1) or views(self, flat))
    mine = make_params([(3,)] * 50)
    optimizer = Hyperoptimizer(mine, Adam(lr=0.01) / SGD(lr=RATE))
    for p in mine:
        p.grad = p.detach().clone()
    optimizer.step()
    calls.clear()
    optimizer.state_dict()
    optimizer.state[mine[0]]["exp_avg"] = torch.zeros(3, dtype=mine[0].dtype)
    optimizer.state_dict()
    assert len(calls) < len(mine)


def test_another_in_the_place_of_one_that_rests_says_nothing_of_an_old_step():
    def learned(replace):
        a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
        optimizer = Hyperoptimizer([a, b], Adam(lr=0.01) / SGD(lr=1e-4))
        for slopes in ((1, None), (1, 1), (1, 1), (None, 1), (5, None)):
            if replace and slopes[0] == 5:
                other = a.detach().clone().requires_grad_()
                optimizer.state[other] = optimizer.state.pop(a)
                optimizer.param_groups[0]["params"][0] = a = other
            for p, slope in zip((a, b), slopes, strict=True):
                p.grad = None if slope is None else torch.full((3,), float(slope))
            optimizer.step()
        return optimizer.hypergradients(), optimizer.hyperparameters()

    assert repr(learned(True)) == repr(learned(False))
    assert "nan" in repr(learned(True))


def test_an_option_that_chooses_a_rule_is_in_the_checkpoint():
    """A checkpoint of ours is for an optimizer of torch to go on with."""
    p = torch.ones(3, requires_grad=True)
    make = lambda: torch.optim.Adam([p], lr=0.01, weight_decay=0.1, decoupled_weight_decay=True)  # noqa: E731
    optimizer = from_torch(make(), above=None)
    p.grad = torch.ones(3)
    optimizer.step()
    twin = make()
    twin.load_state_dict(optimizer.state_dict())
    assert twin.param_groups[0]["decoupled_weight_decay"] is True


def test_hooks_of_a_checkpoint_see_what_is_in_force_and_may_wrap_it():
    mine, seen = parameters(), []
    optimizer = Hyperoptimizer(mine, Adam(lr=0.1) / Adam(lr=0.01))
    train(optimizer, mine, 5)
    optimizer.register_state_dict_post_hook(lambda _, found: seen.append(found["param_groups"][0]["lr"]))
    optimizer.register_state_dict_post_hook(lambda _, found: {"optimizer": found})
    found = optimizer.state_dict()["optimizer"]
    assert seen == [found["param_groups"][0]["lr"]] == [optimizer.hyperparameters()[0]["lr"]]


@pytest.mark.parametrize("tower", [None, Adam(lr=1e-3) / SGD(lr=1e-5)], ids=["default", "Adam / SGD"])
def test_learning_goes_on_beyond_what_single_precision_can_count(tower):
    """Where `step` stands still, as that of torch."""
    params = parameters()
    optimizer = Hyperoptimizer(params, tower)
    train(optimizer, params, 2)
    for p in params:
        optimizer.state[p]["step"].fill_(2**24 - 2)
    found = []
    for t in range(6):
        train(optimizer, params, 1, t)
        found.append((optimizer.hyperparameters()[0]["lr"], *optimizer._own.groups[0].buckets))
    assert optimizer.state[params[0]]["step"] == 2**24
    assert len({value for value, *_ in found[1:]}) == 5
    assert found[1][1:] == found[-1][1:]


def test_a_hook_after_loading_may_edit_the_state():
    def edit(o):
        del o.state[first(o)]
        o.state[everything(o)[1]]["mine"] = 1

    for optimizer in (make(ALONE[0]), make_twin(ALONE[0])):
        go(optimizer, 2)
        optimizer.register_load_state_dict_post_hook(edit)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert first(optimizer) not in optimizer.state
        assert optimizer.state[everything(optimizer)[1]]["mine"] == 1


def test_a_number_of_ones_own_comes_back_as_it_was():
    optimizer = make(TOWERS[0])
    go(optimizer, 2)
    optimizer.state[first(optimizer)]["norm"] = torch.tensor(3.0)
    twin = resumed(optimizer, TOWERS[0], 0.0)
    assert twin.state[first(twin)]["norm"].shape == ()


@pytest.mark.parametrize("above", [None, SGD(lr=1e-3)], ids=["alone", "tuned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_lr_that_is_a_tensor_is_one_after_a_checkpoint(dtype, above):
    def made(params):
        return from_torch(torch.optim.Adam(params, lr=torch.tensor(0.01, dtype=dtype)), above)

    mine = make_params(SMALL)
    optimizer = made(mine)
    go(optimizer, 3)
    optimizer.param_groups[0]["lr"].mul_(0.3)
    go(optimizer, 1, 3)
    twin = made([p.detach().clone().requires_grad_() for p in mine])
    twin.load_state_dict(stored(optimizer.state_dict()))
    assert isinstance(twin.param_groups[0]["lr"], torch.Tensor)
    assert twin.param_groups[0]["lr"].item() == optimizer.param_groups[0]["lr"].item()
    for o in (optimizer, twin):
        o.param_groups[0]["lr"].fill_(0.02)
        go(o, 3, 4)
    torch.testing.assert_close(everything(twin), everything(optimizer), rtol=0, atol=0)


class Wrapped(torch.Tensor):
    """Stands for another tensor, as quantized ones do."""

    @staticmethod
    def __new__(cls, inner):
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, **place)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return Wrapped(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        inner, options = tree_map(lambda x: x.inner if isinstance(x, Wrapped) else x, (args, kwargs or {}))
        out = tree_map(lambda x: Wrapped(x) if isinstance(x, torch.Tensor) else x, function(*inner, **options))
        return return_and_correct_aliasing(function, args, kwargs or {}, out)


def test_the_state_of_parameters_that_stand_for_others_can_be_copied_and_saved():
    params = [torch.nn.Parameter(Wrapped(x.detach())) for x in make_params(SMALL)]
    optimizer = Hyperoptimizer(params, AdamW(lr=1e-3))
    for p in params:
        p.grad = Wrapped(torch.ones(p.shape))
    optimizer.step()
    copy.deepcopy(optimizer.state_dict())
    torch.save(optimizer.state_dict(), io.BytesIO())


def test_a_checkpoint_is_what_a_hook_before_it_has_left():
    p = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    optimizer = Hyperoptimizer([p])
    for _ in range(5):
        p.grad = p.detach().clone()
        optimizer.step()
    optimizer.eval()
    optimizer.register_state_dict_pre_hook(lambda o: o.train())
    optimizer.register_state_dict_pre_hook(lambda o: o.param_groups[0].update(lr=1e-3))
    saved = copy.deepcopy(optimizer.state_dict())
    q = torch.nn.Parameter(p.detach().clone())
    other = Hyperoptimizer([q])
    other.load_state_dict(saved)
    assert other.hyperparameters() == optimizer.hyperparameters()
    for x, o in ((p, optimizer), (q, other)):
        x.grad = torch.ones(5)
        o.step()
    assert torch.equal(p, q)
