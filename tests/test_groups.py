"""Groups, and values by name: each has its own, may be added, may have another rule, and may lose its parameters."""

import copy
from dataclasses import dataclass

import pytest
import torch
from cases import parameters, train
from helpers import TOWER, fit, forward, network, resumed, scalars

import hypergradient as hg
from hypergradient import SGD, Adam, AdamW, Age, Hyperoptimizer, Muon


def test_a_group_may_be_given_a_tower_under_the_same():
    """Of which the leftmost rule is its own."""
    found = []
    for given in (hg.auto(AdamW(lr=1e-3)), hg.auto(AdamW(lr=1e-3)).rules[0]):
        params = parameters()
        groups = [{"params": params[:1]}, {"params": params[1:], "rule": given}]
        optimizer = Hyperoptimizer(groups, hg.auto(SGD(momentum=0.9)))
        train(optimizer, params, 5)
        found.append(([optimizer.hyperparameters(i) for i in (0, 1)], optimizer.rules))
    assert found[0] == found[1]


@pytest.mark.parametrize("first", [hg.auto(), hg.auto(Muon())], ids=str)
def test_a_rule_beside_auto_is_tuned_as_that_does(first):
    """From the lr that it is given; one that says itself how it is tuned is left as it is."""
    found = []
    for given in (AdamW(lr=3e-4), hg.auto(AdamW(lr=3e-4))):
        params = parameters(matrix=True)
        optimizer = Hyperoptimizer([{"params": params[:1]}, {"params": params[1:], "rule": given}], first)
        found.append((train(optimizer, params, 8), optimizer.hyperparameters(1), optimizer.rules))
    assert found[0] == found[1]
    assert found[0][1][0]["lr"] != 3e-4
    own = AdamW(lr=3e-4, normalize="cosine")
    assert Hyperoptimizer([{"params": parameters(), "rule": own}], first).rules == [own]


def test_a_rule_beside_a_tower_of_ones_own_stays_as_it_is():
    """Also where the tower has a horizon such as `auto` has."""
    rules = Adam(lr=1e-3, tune=("lr", "beta1"), horizon=Age(4)), AdamW(lr=3e-2)
    groups = [{"params": [torch.ones(3, requires_grad=True)], "rule": rule} for rule in rules]
    optimizer = Hyperoptimizer(groups, rules[0] / SGD(lr=0.0))
    assert optimizer.rules == [*rules]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 3e-2]


def test_groups_learn_their_own_values():
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    optimizer = Hyperoptimizer(groups, SGD(lr=0.01) / SGD(lr=0.1))
    assert [optimizer.hyperparameters(g)[0]["lr"] for g in (0, 1)] == [0.1, 0.01]
    fit(optimizer, model, 5)
    values = [optimizer.hyperparameters(g)[0]["lr"] for g in (0, 1)]
    assert values[0] != 0.1
    assert values[1] != 0.01
    assert values[0] - 0.1 != pytest.approx(values[1] - 0.01)
    assert repr(optimizer).startswith("group 0: SGD(lr=")


@pytest.mark.parametrize("names", [("lr",), ("lr", "beta1")], ids=str)
def test_a_value_per_hyperparameter_is_told_as_it_is_given(names):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, Adam(lr=0.01, tune=names) / SGD(lr=dict.fromkeys(names, 1e-3)) / SGD(lr=1e-5))
    assert optimizer.hyperparameters()[1]["lr"] == dict.fromkeys(names, 1e-3)
    train(optimizer, mine, 5)
    assert optimizer.hypergradients()[1]["lr"].keys() == set(names)


def test_per_all_keeps_the_ratio_of_the_groups():
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.02}]
    optimizer = Hyperoptimizer(groups, SGD(lr=0.01) / SGD(lr=0.1), per="all")
    fit(optimizer, model, 5)
    one, other = (optimizer.hyperparameters(g)[0]["lr"] for g in (0, 1))
    assert one != 0.01
    assert other == pytest.approx(2 * one)


def test_a_group_can_have_a_rule_of_its_own():
    model = network()
    matrices, vectors = ([p for p in model.parameters() if p.ndim == n] for n in (2, 1))
    groups = [{"params": matrices}, {"params": vectors, "rule": AdamW(lr=1e-3)}]
    optimizer = Hyperoptimizer(groups, Muon(lr=0.02) / SGD(lr=1e-4))
    first = forward(model, 0).item()
    fit(optimizer, model, 100)
    assert forward(model, 0).item() < 0.7 * first
    assert repr(optimizer).startswith("group 0: Muon(lr=")
    assert "group 1: AdamW(lr=" in repr(optimizer)
    other = Hyperoptimizer([{"params": matrices}, {"params": vectors, "rule": AdamW(lr=1e-3)}], Muon(lr=0.02) / SGD(lr=1e-4))
    other.load_state_dict(optimizer.state_dict())
    assert other.hyperparameters(1) == optimizer.hyperparameters(1)


def test_add_param_group_in_mid_training():
    model = network()
    optimizer = Hyperoptimizer(model[0].parameters(), TOWER)
    fit(optimizer, model, 5)
    learned = optimizer.hyperparameters()
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.05})
    assert optimizer.hyperparameters(1)[0]["lr"] == 0.05
    assert optimizer.hyperparameters(0) == learned
    assert optimizer.hyperparameters(1)[1:] == learned[1:]
    fit(optimizer, model, 1)
    assert optimizer.hyperparameters(1)[0]["lr"] == 0.05  # nothing is known of its first step yet
    fit(optimizer, model, 2)
    assert optimizer.hyperparameters(1)[0]["lr"] != 0.05


def test_rules_of_groups_start_their_own_way():
    a, b = scalars(3, 3)
    other = hg.Adagrad(lr=0.1, initial_accumulator_value=5.0)
    groups = [{"params": [a]}, {"params": [b], "rule": other}]
    optimizer = Hyperoptimizer(groups, hg.Adagrad(lr=0.1, initial_accumulator_value=1.0) / SGD(lr=1e-3))
    optimizer.step()
    assert [optimizer.state[p]["sum"][0].item() for p in (a, b)] == [2.0, 6.0]


def test_rules_of_one_name_are_two_rules():
    @dataclass(frozen=True)
    class SGD(hg.SGD):
        def update(self, param, grad, state, c):
            return super().update(param, -grad, state, c)

    a, b = scalars(1, 1)
    optimizer = Hyperoptimizer([{"params": [a]}, {"params": [b], "rule": SGD(lr=0.1)}], hg.SGD(lr=0.1) / hg.SGD(lr=0.0))
    before = a.item()
    optimizer.step()
    assert a.item() - before == pytest.approx(before - b.item())


def test_a_value_by_name_goes_to_that_name_in_whatever_order():
    (p,) = scalars(3)
    rule = SGD(lr=0.1, momentum=0.5, tune=("momentum", "lr"))
    tower = SGD(lr=0.1, momentum=0.5, tune=("lr", "momentum")) / SGD(lr={"lr": 1e-3, "momentum": 0.0})
    optimizer = Hyperoptimizer([{"params": [p], "rule": rule}], tower)
    for _ in range(3):
        optimizer.step()
    values = optimizer.hyperparameters()[0]
    assert values["lr"] != 0.1
    assert values["momentum"] == pytest.approx(0.5, rel=1e-12)


def test_a_value_by_name_goes_to_that_name_in_rules_of_another_order():
    tune = ("lr", "momentum", "weight_decay")
    muon = Muon(lr=0.1, momentum=0.9, weight_decay=0.01, tune=tune)
    each = {"lr": 0.0, "momentum": 0.0, "weight_decay": 1e-2}
    w, b = torch.ones(2, 2, requires_grad=True), torch.ones(2, requires_grad=True)
    tower = SGD(lr=0.1, momentum=0.9, weight_decay=0.01, tune=tune) / SGD(lr=each) / SGD(lr=0.0)
    optimizer = Hyperoptimizer([{"params": [w], "rule": muon}, {"params": [b]}], tower)
    for _ in range(3):
        w.grad, b.grad = torch.eye(2), torch.ones(2)
        optimizer.step()
    for group in (0, 1):
        values, above, _ = optimizer.hyperparameters(group)
        assert values["momentum"] == pytest.approx(0.9, rel=1e-12)
        assert values["weight_decay"] != 0.01
        assert above["lr"] == each


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("first", [False, True])
def test_a_group_may_be_empty(per, first):
    (p,) = scalars(3)
    groups = [{"params": [p]}, {"params": []}]
    optimizer = Hyperoptimizer(groups[::-1] if first else groups, Adam(lr=0.1) / SGD(lr=1e-3), per=per)
    for _ in range(3):
        optimizer.step()
    learned = optimizer.hyperparameters(int(first))[0]["lr"]
    assert learned != [0.1] if per == "tensor" else learned != 0.1
    again = Hyperoptimizer(groups[::-1] if first else groups, Adam(lr=0.1) / SGD(lr=1e-3), per=per)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one in (again, copy.deepcopy(optimizer)):
        assert repr(one) == repr(optimizer)
        one.add_param_group({"params": scalars(2)})
        assert one.hyperparameters(int(first))[0]["lr"] == learned


@pytest.mark.parametrize("read_first", [False, True])
def test_parameters_may_be_replaced_after_construction(read_first):
    mine, theirs = parameters(), parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    if read_first:
        optimizer.hyperparameters()
    optimizer.param_groups[0]["params"] = theirs
    train(optimizer, theirs, 3)
    assert resumed(optimizer, parameters()).hyperparameters() == optimizer.hyperparameters()


def test_parameters_that_leave_a_group_take_only_their_own_state():
    a, b, c = scalars(3, 3, 3)
    b.grad, c.grad = 2 * b.grad, 3 * c.grad
    optimizer = Hyperoptimizer([a, b, c], Adam(lr=0.1) / SGD(lr=1e-3))
    optimizer.step()
    before, values = [optimizer.state[p]["exp_avg"].clone() for p in (b, c)], optimizer.hyperparameters()
    optimizer.param_groups[0]["params"] = [c, b]
    assert optimizer.hyperparameters() == values
    torch.testing.assert_close([optimizer.state[p]["exp_avg"] for p in (b, c)], before, rtol=0, atol=0)


@pytest.mark.parametrize("per", ["all", "group"])
@pytest.mark.parametrize("left", [1, 0])
def test_what_was_learned_stays_when_the_parameter_that_remembers_it_goes(per, left):
    """Also when nobody is left in its group: the levels above go on with the others. And when it comes back."""
    a, b, c = scalars(3, 3, 3)
    groups = [{"params": [a, b]}, {"params": [c]}]
    optimizer = Hyperoptimizer(groups, SGD(lr=0.1) / SGD(lr=1e-3) / SGD(lr=1e-4), per=per)
    for _ in range(3):
        optimizer.step()
    before = [optimizer.hyperparameters(i) for i in (0, 1)]
    assert before[0][0]["lr"] != 0.1
    assert before[0][1]["lr"] != 1e-3
    optimizer.param_groups[0]["params"] = [b] * left
    if left:
        assert optimizer.hyperparameters(0) == before[0]
    assert optimizer.hyperparameters(1) == before[1]
    optimizer.step()
    assert optimizer.hyperparameters(1)[1]["lr"] != before[1][1]["lr"]
    now = [optimizer.hyperparameters(i) for i in (0, 1)]
    optimizer.param_groups[0]["params"] = [a, b]
    assert [optimizer.hyperparameters(i) for i in (0, 1)][1 - left :] == now[1 - left :]


def test_a_value_that_starts_at_zero_begins_anew_where_it_is_set():
    """No multiple of 0 is 0.9: from there it is learned."""
    a, b = scalars(3, 3)
    groups = [{"params": [a]}, {"params": [b]}]
    optimizer = Hyperoptimizer(groups, SGD(lr=0.1, momentum=0.0, tune=("lr", "momentum")) / SGD(lr=1e-5))
    for _ in range(3):
        optimizer.step()
    before = optimizer.hyperparameters(0)[0]
    optimizer.param_groups[0]["momentum"] = 0.9
    assert optimizer.hyperparameters(0)[0] == {**before, "momentum": 0.9}
    optimizer.step()
    assert optimizer.hyperparameters(0)[0]["momentum"] == pytest.approx(0.9, abs=1e-3)
    assert optimizer.hyperparameters(1)[0]["momentum"] < 0.1


def test_parameters_that_leave_or_join_a_group_take_their_own_set_with_them():
    a, b, c = scalars(3, 3, 3)
    b.grad = 2 * b.grad
    optimizer = Hyperoptimizer([a, b], SGD(lr=0.1) / SGD(lr=1e-3), per="tensor")
    for _ in range(3):
        optimizer.step()
    before = optimizer.hyperparameters()[0]["lr"]
    optimizer.param_groups[0]["params"] = [b, c, a]
    assert optimizer.hyperparameters()[0]["lr"] == [before[1], 0.1, before[0]]
    optimizer.step()
    optimizer.param_groups[0]["params"] = [c]
    optimizer.step()
    assert len(optimizer.hyperparameters()[0]["lr"]) == 1


@pytest.mark.parametrize("shape", [(4, 3), (400, 400)], ids=["small", "large"])
def test_a_parameter_that_is_a_conjugate_moves(shape):
    p = torch.randn(shape, dtype=torch.complex128).conj().requires_grad_()
    assert p.is_conj()
    twin = p.detach().clone().requires_grad_()
    for q, optimizer in ((p, hg.Hyperoptimizer([p], hg.SGD(lr=0.1))), (twin, torch.optim.SGD([twin], lr=0.1))):
        q.grad = torch.ones_like(q)
        optimizer.step()
    torch.testing.assert_close(p.detach().resolve_conj(), twin.detach().resolve_conj())


def laid_out(shape, order):
    """A tensor whose dimensions lie in memory in another order."""
    x = torch.randn([shape[d] for d in order])
    return x.permute([order.index(d) for d in range(len(shape))])


LAYOUTS = [((8, 6, 3, 3), (0, 2, 3, 1)), ((8, 6, 3, 3), (1, 0, 2, 3)), ((64, 256, 3, 3), (0, 2, 3, 1)), ((400, 400), (1, 0))]


@pytest.mark.parametrize(("shape", "order"), LAYOUTS, ids=str)
@pytest.mark.parametrize("theirs", [True, False], ids=["gradient in order", "parameter in order"])
def test_a_gradient_need_not_lie_in_memory_as_its_parameter_does(shape, order, theirs):
    turned, straight = laid_out(shape, order), torch.randn(shape)
    start, grad = (turned, straight) if theirs else (straight, turned)
    found = []
    for make in (lambda p: hg.Hyperoptimizer([p], AdamW(lr=0.1)), lambda p: torch.optim.AdamW([p], lr=0.1)):
        p = start.clone().requires_grad_()
        optimizer = make(p)
        for factor in (1.0, -3.0):
            p.grad = grad.clone() * factor
            optimizer.step()
        found.append(p.detach())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("shape", "order"), LAYOUTS, ids=str)
def test_a_checkpoint_goes_on_in_another_memory_format(shape, order):
    p = torch.randn(shape).requires_grad_()
    q = laid_out(shape, order).copy_(p.detach()).requires_grad_()
    optimizer = hg.Hyperoptimizer([p], AdamW(lr=0.1) / SGD(lr=1e-3))
    grads = torch.randn(4, *shape)
    for g in grads[:2]:
        p.grad = g.clone()
        optimizer.step()
    with torch.no_grad():
        q.copy_(p)
    twin = hg.Hyperoptimizer([q], AdamW(lr=0.1) / SGD(lr=1e-3))
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for g in grads[2:]:
        for x, one in ((p, optimizer), (q, twin)):
            x.grad = torch.empty_like(x).copy_(g)
            one.step()
    torch.testing.assert_close(p.detach(), q.detach())
    assert twin.hyperparameters()[0]["lr"] == pytest.approx(optimizer.hyperparameters()[0]["lr"])


def two_rules(*rules):
    mine = [torch.ones(4, requires_grad=True) for _ in range(3)]
    first, second = rules
    optimizer = Hyperoptimizer([{"params": mine[:1]}, {"params": mine[1:2], "rule": second}], first)
    return mine, optimizer


def step_all(optimizer):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones(4)
    optimizer.step()


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("meanwhile", [step_all, repr, lambda o: None], ids=["step", "repr", "nothing"])
@pytest.mark.parametrize(
    "rules",
    [(SGD(lr=0.1), AdamW(lr=0.01)), (Adam(lr=0.1) / SGD(lr=1e-5), Adam(lr=0.01, tune="beta1"))],
    ids=["alone", "tower"],
)
def test_a_group_that_comes_back_has_its_rule(rules, meanwhile, steps):
    mine, optimizer = two_rules(*rules)
    for _ in range(steps):
        step_all(optimizer)
    before = optimizer.rules
    group = optimizer.param_groups.pop()
    meanwhile(optimizer)
    optimizer.param_groups.append(group)
    step_all(optimizer)
    assert optimizer.rules == before
    assert set(optimizer.state[mine[1]]) >= {"exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("how", ["append", "add_param_group"])
def test_a_copy_of_a_group_has_its_rule(how, away):
    mine, optimizer = two_rules(SGD(lr=0.1), AdamW(lr=0.01))
    step_all(optimizer)
    group = optimizer.param_groups.pop() if away else optimizer.param_groups[1]
    if away:
        step_all(optimizer)
    copied = {**group, "params": mine[2:]}
    (optimizer.param_groups.append if how == "append" else optimizer.add_param_group)(copied)
    step_all(optimizer)
    assert optimizer.rules[-1] == AdamW(lr=0.01)


@pytest.mark.parametrize("away", [False, True])
def test_an_lr_that_is_edited_is_a_factor_also_while_the_group_is_away(away):
    mine, optimizer = two_rules(Adam(lr=0.01) / SGD(lr=1e-3), Adam(lr=0.01))
    for _ in range(5):
        step_all(optimizer)
    learned = optimizer.hyperparameters(1)[0]["lr"]
    group = optimizer.param_groups.pop() if away else optimizer.param_groups[1]
    mine[1].grad = None
    if away:
        step_all(optimizer)
    group["lr"] *= 0.1
    if away:
        optimizer.param_groups.append(group)
    assert learned > 0.02
    assert optimizer.hyperparameters(1)[0]["lr"] == pytest.approx(0.1 * learned)


def test_a_parameter_that_goes_after_a_load_takes_nothing_of_the_others():
    torch.manual_seed(0)
    mine = [torch.randn(5, requires_grad=True) for _ in range(3)]
    make = lambda: Hyperoptimizer(mine, Adam(lr=0.01) / SGD(lr=1e-3), per="tensor")  # noqa: E731
    optimizer = make()
    for _ in range(10):
        for i, p in enumerate(mine):
            p.grad = (-1) ** i * (p.detach() + 0.1 * torch.randn(5))
        optimizer.step()
    other = make()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    del other.param_groups[0]["params"][0]
    assert other.hyperparameters()[0]["lr"] == optimizer.hyperparameters()[0]["lr"][1:]


def test_a_group_of_another_optimizer_has_the_rule_of_this_one():
    """Also one that has been taken away from that."""
    a, b, c, twin = (torch.nn.Parameter(torch.ones(3)) for _ in range(4))
    other, mine = Hyperoptimizer([{"params": [a]}, {"params": [b]}], Adam() / SGD(lr=1e-5)), Hyperoptimizer([c], SGD(lr=0.1))
    expected = torch.optim.SGD([twin], lr=0.1)
    a.grad, twin.grad, c.grad = (torch.ones(3) for _ in range(3))
    other.step()
    taken = other.param_groups.pop()
    other.step()
    mine.add_param_group({"params": [b], "learned": taken["learned"]})
    b.grad = torch.ones(3)
    mine.step()
    expected.step()
    torch.testing.assert_close(b, twin)


@pytest.mark.parametrize("place", [0, 1])
def test_a_group_that_comes_first_shares_what_was_learned(place):
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Hyperoptimizer([p], per="all")
    for _ in range(20):
        p.grad = p.detach().clone()
        optimizer.step()
    learned = optimizer.hyperparameters()[0]["lr"]
    assert learned > 0.01
    optimizer.param_groups.insert(place, {"params": [q]})
    assert [optimizer.hyperparameters(i)[0]["lr"] for i in (0, 1)] == [learned, learned]


def test_a_step_that_fails_leaves_what_is_known_of_the_last_one():
    def learned(fails):
        params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 4, 5)]
        optimizer = Hyperoptimizer(params, Adam(lr=1e-2) / SGD(lr=1e-3))
        for t in range(8):
            for k, p in enumerate(params):
                p.grad = None if t == (2, 4, 5)[k] else p.detach() * (k + 1) + 0.1 * t
            if t == 6 and fails:
                mine = optimizer.state[params[0]]
                mine["exp_avg"], known = torch.zeros(9), mine["exp_avg"]
                with pytest.raises(ValueError, match="exp_avg"):
                    optimizer.step()
                mine["exp_avg"] = known
            optimizer.step()
        return optimizer.hyperparameters()[0]["lr"]

    assert learned(True) == learned(False)


def test_a_sparse_tensor_of_the_users_in_the_state_is_no_matter():
    p = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = Hyperoptimizer([p])
    for _ in range(3):
        p.grad = p.detach().clone()
        optimizer.state[p]["mask"] = torch.eye(3).to_sparse()
        optimizer.step()
    assert optimizer.state[p]["step"] == 3


@pytest.mark.parametrize("steps", [0, 3])
def test_groups_that_are_written_anew_have_their_rules(steps):
    mine, optimizer = two_rules(Adam(lr=0.1) / SGD(lr=1e-5), AdamW(lr=0.01))
    for _ in range(steps):
        step_all(optimizer)
    before = optimizer.rules
    optimizer.param_groups = [{"params": group["params"], "lr": group["lr"]} for group in optimizer.param_groups]
    step_all(optimizer)
    assert optimizer.rules == before
    assert optimizer.state[mine[1]]["step"] == steps + 1


@pytest.mark.parametrize("above", [None, SGD(lr=1e-5)])
@pytest.mark.parametrize("how", ["append", "deepcopy", "add_param_group", "split", "again", "defaults", "new"])
def test_betas_that_a_copy_of_a_group_says_count(how, above):
    a, b = (torch.ones(4, requires_grad=True) for _ in range(2))
    tower, said = Adam(lr=0.1) if above is None else Adam(lr=0.1) / above, (0.5, 0.6)
    optimizer = Hyperoptimizer([a, b] if how == "split" else [a], tower)
    group = optimizer.param_groups[0]
    if how == "append":
        optimizer.param_groups.append({**group, "params": [b], "betas": said})
    elif how == "deepcopy":
        optimizer.param_groups.append({**copy.deepcopy(group), "params": [b], "betas": said})
    elif how == "add_param_group":
        optimizer.add_param_group({**group, "params": [b], "betas": said})
    elif how == "split":
        optimizer.param_groups[:] = [{**group, "params": [a]}, {**group, "params": [b], "betas": said}]
    elif how == "again":
        optimizer.add_param_group({**group, "params": [b]})
        optimizer.add_param_group({**optimizer.param_groups.pop(), "betas": said})
    elif how == "defaults":
        optimizer.defaults["betas"] = said
        optimizer.add_param_group({"params": [b]})
    else:
        optimizer = Hyperoptimizer([{**group}, {**group, "params": [b], "betas": said}], tower)
    step_all(optimizer)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.999), said]
    assert optimizer.hyperparameters(1)[0]["beta2"] == 0.6
    theirs = torch.ones(4, requires_grad=True)
    twin = torch.optim.Adam([theirs], lr=0.1, betas=said)
    step_all(twin)
    torch.testing.assert_close(b, theirs)


@pytest.mark.parametrize("above", [None, SGD(lr=1e-4)])
def test_a_momentum_of_0_goes_with_another_flag(above):
    """In torch, too; the coordinate in which a momentum is tuned has no 0."""
    rule = SGD(lr=0.1, momentum=0.9, nesterov=True)
    p, theirs = (torch.ones(4, requires_grad=True) for _ in range(2))
    optimizer = Hyperoptimizer([p], rule if above is None else rule / above)
    twin = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=True)
    for one in (optimizer, twin):
        step_all(one)
        one.param_groups[0].update({"nesterov": False, "momentum": 0.0})
        step_all(one)
    if above is None:
        torch.testing.assert_close(p, theirs)
    again = Hyperoptimizer([torch.ones(4, requires_grad=True)], optimizer.tower)
    again.load_state_dict(optimizer.state_dict())
    assert again.hyperparameters() == optimizer.hyperparameters()


def test_groups_of_torch_with_another_flag_and_a_momentum_of_0():
    for extra, rule in (
        ({"nesterov": False, "momentum": 0.0}, SGD(lr=0.1, momentum=0.9, nesterov=True)),
        ({"amsgrad": True, "betas": (0.0, 0.9)}, Adam()),
    ):
        both = [{"params": torch.ones(4, requires_grad=True), **more} for more in ({}, extra)]
        assert Hyperoptimizer(both, rule).param_groups[1].items() >= extra.items()
