"""Hyperoptimizer is an optimizer of torch: what scripts do with theirs works with it."""

import copy
import io
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
from cases import loss, parameters, train
from torch import nn
from torch.distributions.transforms import PowerTransform

import hypergradient as hg
from hypergradient import (
    POSITIVE,
    SGD,
    UNIT,
    Adam,
    AdamW,
    Hyperoptimizer,
    Lion,
    Muon,
    Rule,
    from_torch,
    hyperparameter,
    nonnegative,
)
from hypergradient.level import COUNT, READ

TOWER = Adam(lr=0.01) / Adam(lr=1e-3) / SGD(lr=1e-5)


def forward(model, seed):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    return (model(x) - x[:, :2].sin()).square().mean()


def fit(optimizer, model, steps, start=0):
    for t in range(start, start + steps):
        optimizer.zero_grad()
        forward(model, t).backward()
        optimizer.step()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def test_is_an_optimizer_that_trains():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    assert isinstance(optimizer, torch.optim.Optimizer)
    losses = train(optimizer, mine, 300)
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    assert optimizer.defaults["lr"] == 0.01


def test_parameters_stay_the_same_leaves_updated_in_place():
    mine = parameters()
    pointers = [p.data_ptr() for p in mine]
    train(Hyperoptimizer(mine, TOWER), mine, 3)
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in mine)
    assert [p.data_ptr() for p in mine] == pointers


def test_no_graph_is_kept_and_gradients_are_left_alone():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    train(optimizer, mine, 3)
    before = [p.grad.clone() for p in mine]
    optimizer.step()
    torch.testing.assert_close([p.grad for p in mine], before, rtol=0, atol=0)
    tensors = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    assert tensors
    assert not any(t.requires_grad for t in tensors)


def test_closure_is_called_with_gradients_and_its_loss_returned():
    mine, twin = parameters(), parameters()
    one, other = Hyperoptimizer(mine, TOWER), Hyperoptimizer(twin, TOWER)

    def closure():
        one.zero_grad()
        value = loss(mine)
        value.backward()
        return value

    with torch.no_grad():
        assert one.step(closure).item() == loss(twin).item()
    train(other, twin, 1)
    torch.testing.assert_close(mine, twin, rtol=0, atol=0)
    assert torch.is_grad_enabled()


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
    both, alone = optimizer_of([p, q]), optimizer_of([p2 := p.detach().clone().requires_grad_()])
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


def test_tied_weights():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    fit(Hyperoptimizer(model.parameters(), TOWER), model, 5)
    assert model[2].weight is model[0].weight


def test_models_can_be_copied_in_mid_training():
    model = network()
    optimizer = Hyperoptimizer(model.parameters(), TOWER)
    fit(optimizer, model, 3)
    copied, average = copy.deepcopy(model), torch.optim.swa_utils.AveragedModel(model)
    before = [p.clone() for p in copied.parameters()]
    fit(optimizer, model, 3)
    average.update_parameters(model)
    torch.testing.assert_close(list(copied.parameters()), before, rtol=0, atol=0)


def test_accumulation_and_clipping():
    """The hypergradient is that of the gradients which `step` finds."""
    results = []
    for parts in (1, 4):
        model = network()
        optimizer = Hyperoptimizer(model.parameters(), TOWER)
        for t in range(10):
            optimizer.zero_grad()
            for _ in range(parts):
                (forward(model, t) / parts).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        results.append([*model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


def test_the_built_in_lstm():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(3, 4, num_layers=2), torch.randn(7, 2, 3)
    optimizer, losses = Hyperoptimizer(lstm.parameters(), TOWER), []
    for _ in range(60):
        optimizer.zero_grad()
        value = (lstm(x)[0][..., :3] - 0.3 * x).square().mean()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]


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


def resumed(optimizer, params):
    """What a new process would go on with: through torch.save and torch.load(weights_only=True)."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = Hyperoptimizer(params, optimizer.tower, per=optimizer.per)
    twin.load_state_dict(torch.load(file, weights_only=True))
    return twin


TOWERS = [
    Adam(lr=0.01, amsgrad=True),
    TOWER,
    Adam(lr=1e-3, tune="lr", charts={"lr": POSITIVE}, horizon=20, normalize="cosine") / SGD(lr=0.2),
    SGD(lr=0.1, momentum=0.9, charts={"momentum": UNIT}) / SGD(lr={"lr": 1e-3, "momentum": 1e-2}) / SGD(lr=1e-5),
    Lion(lr=1e-3) / hg.RMSprop(lr=1e-5) / hg.Adagrad(lr=1e-7),
]


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
    copies = [p.detach().clone().requires_grad_() for p in mine]
    twin = resumed(optimizer, copies)
    assert twin.hyperparameters() == optimizer.hyperparameters()
    assert twin.hypergradients() == optimizer.hypergradients()
    go(optimizer, mine, 4)
    go(twin, copies, 4)
    torch.testing.assert_close(copies, mine, rtol=0, atol=0)
    torch.testing.assert_close(twin.state_dict(), optimizer.state_dict(), rtol=0, atol=0, equal_nan=True)


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


def test_schedules_multiply_what_is_learned():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, SGD(lr=0.1) / SGD(lr=0.01))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(t / 10, 1.0))
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
    schedule = torch.optim.lr_scheduler.ConstantLR(other, factor=1.0)
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


def test_values_of_the_user_that_are_not_tuned_are_in_force():
    mine, theirs = parameters(), parameters()
    optimizer, twin = Hyperoptimizer(mine, AdamW(lr=0.01)), torch.optim.AdamW(theirs, lr=0.01)
    for t, decay in enumerate([0.1, 0.0, 0.3]):
        optimizer.param_groups[0]["weight_decay"] = twin.param_groups[0]["weight_decay"] = decay
        train(optimizer, mine, 2, t)
        train(twin, theirs, 2, t)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


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


def test_repr_of_a_chart_stays_as_it_is_used():
    """`PowerTransform` keeps its sign as an attribute when it is first asked for."""
    tower = SGD(lr=0.01, charts={"lr": PowerTransform(2.0)}) / SGD(lr=1e-3)
    before = repr(tower)
    model = nn.Linear(3, 2)
    optimizer = Hyperoptimizer(model.parameters(), tower)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    assert repr(tower) == before
    Hyperoptimizer(model.parameters(), eval(before)).load_state_dict(optimizer.state_dict())


def test_repr_is_in_the_notation_of_the_paper():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, Adam(lr=1e-3) / SGD(lr=1e-5))
    assert repr(optimizer) == "Adam(lr=0.001, beta1=0.9, beta2=0.999) / SGD(lr=1e-05)"
    tower = SGD(lr=0.1, tune=("lr",), charts={"lr": POSITIVE}, horizon=9) / SGD(lr={"lr": 0.1}) / Adam(lr=1e-3, amsgrad=True)
    assert eval(repr(tower), vars(hg)) == tower


@pytest.mark.parametrize("count", [1, 2])
def test_complex_parameters(count):
    mine, theirs = ([torch.tensor([1 + 2j, 3 - 1j], requires_grad=True) for _ in range(count)] for _ in range(2))
    optimizer, twin = Hyperoptimizer(mine, Adam(lr=0.1) / SGD(lr=0.0)), torch.optim.Adam(theirs, lr=0.1)
    for _ in range(10):
        for params, o in ((mine, optimizer), (theirs, twin)):
            o.zero_grad()
            sum((i + 1) * (x.abs() - 1).square().sum() for i, x in enumerate(params)).backward()
            o.step()
    torch.testing.assert_close(mine, theirs)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()


@pytest.mark.parametrize("tower", [Adam(lr=0.1) / SGD(lr=0.01), SGD(lr=0.1, horizon=3) / SGD(lr=0.01)], ids=repr)
def test_several_complex_parameters_move_as_their_parts_do(tower):
    z = [torch.tensor([1 + 2j, 3 - 1j]).requires_grad_(), torch.tensor([[0.5j], [2.0], [1 - 1j]]).requires_grad_()]
    parts = [torch.view_as_real(x.detach()).clone().requires_grad_() for x in z]
    optimizer, twin = Hyperoptimizer(z, tower), Hyperoptimizer(parts, tower)
    for _ in range(10):
        for x, o in ((z, optimizer), ([torch.view_as_complex(p) for p in parts], twin)):
            o.zero_grad()
            sum((y.abs() - 1).square().sum() for y in x).backward()
            o.step()
    torch.testing.assert_close([torch.view_as_real(x) for x in z], parts)
    assert optimizer.hyperparameters() == twin.hyperparameters()


def test_bfloat16_parameters_have_float32_hyperparameters_and_state():
    mine = [p.detach().to(torch.bfloat16).requires_grad_() for p in parameters()]
    optimizer = Hyperoptimizer(mine, Adam(lr=1e-3) / SGD(lr=1e-6))
    for _ in range(2):
        for _ in range(3):
            optimizer.zero_grad()
            loss([p.double() for p in mine]).backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        tensors = [t for t in optimizer.state[mine[0]].values() if isinstance(t, torch.Tensor)]
        assert {t.dtype for t in tensors} == {torch.float32}
    assert mine[0].dtype == torch.bfloat16


def levels(optimizer):
    """What is remembered of each level above the weights."""
    memory = [(n, t) for of in optimizer.state.values() for n, t in of.items() if n.startswith("level")]
    assert len(memory) == optimizer.tower.height
    return {n: t.clone() for n, t in memory}


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
    second = list(before)[1]
    next(of[second] for of in optimizer.state.values() if second in of)[-1].fill_(torch.inf)  # dU/dlr: the third's gradient
    optimizer.step()
    made = [(rows[COUNT] - before[name][COUNT]).unique().tolist() for name, rows in levels(optimizer).items()]
    assert made == [[1], [1], [0], [0]]
    now = optimizer.hyperparameters()
    assert [a != b for a, b in zip(now, values, strict=True)] == [True, True, False, False, False]


def twins():
    for kind in (c for c in vars(hg).values() if isinstance(c, type) and issubclass(c, Rule) and c is not Rule):
        if hasattr(torch.optim, kind.__name__):
            yield getattr(torch.optim, kind.__name__)


@pytest.mark.parametrize("kind", list(twins()), ids=lambda k: k.__name__)
def test_from_torch_goes_on_where_the_torch_optimizer_was(kind, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    mine, theirs = (parameters(kind is torch.optim.Muon) for _ in range(2))
    options = {"momentum": 0.9} if kind in (torch.optim.SGD, torch.optim.RMSprop) else {}
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
            one = from_torch(one)
    torch.testing.assert_close(z, w)


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
    twin = resumed(optimizer, copies := [p.detach().clone().requires_grad_() for p in mine])
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
    copies = [x.detach().clone().requires_grad_() for x in (a, b)]
    twin = Hyperoptimizer([{"params": [x]} for x in copies], TOWER)
    twin.load_state_dict(optimizer.state_dict())
    go(optimizer, [a, b])
    go(twin, copies)
    assert twin.hyperparameters() == optimizer.hyperparameters()
    torch.testing.assert_close(copies, [a, b], rtol=0, atol=0)


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


@pytest.mark.parametrize("read_first", [False, True])
def test_parameters_may_be_replaced_after_construction(read_first):
    mine, theirs = parameters(), parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    if read_first:
        optimizer.hyperparameters()
    optimizer.param_groups[0]["params"] = theirs
    train(optimizer, theirs, 3)
    assert resumed(optimizer, parameters()).hyperparameters() == optimizer.hyperparameters()


def test_a_scheduler_that_keeps_its_own_base_values_multiplies_too():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, SGD(lr=1e-3, momentum=0.9) / SGD(lr=0.0))
    optimizer.hyperparameters()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=20)
    for t in range(10):
        assert optimizer.hyperparameters()[0]["momentum"] == pytest.approx(optimizer.param_groups[0]["momentum"])
        train(optimizer, mine, 1, t)
        schedule.step()
    twin = Hyperoptimizer(parameters(), SGD(lr=1e-3, momentum=0.9) / SGD(lr=0.0))
    torch.optim.lr_scheduler.OneCycleLR(twin, 1e-3, total_steps=20)
    twin.load_state_dict(optimizer.state_dict())
    plain = Hyperoptimizer(parameters(), SGD(lr=1e-3, momentum=0.9) / SGD(lr=0.0))
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=20)
    optimizer.load_state_dict(plain.state_dict())


def test_a_rule_may_hand_on_what_it_is_given():
    @dataclass(frozen=True)
    class Previous(Rule):
        """Heavy ball by the iterate before, and two states that change places."""

        lr: float = hg.hyperparameter(0.1, hg.nonnegative)

        def init(self, param):
            zero = torch.zeros_like(param)
            return {"before": param, "a": zero, "b": zero}

        def update(self, param, grad, state, c):
            new = param - self.lr * grad + 0.5 * (param - state["before"])
            return new, {"before": param, "a": state["b"] + 1, "b": state["a"]}

    for extra in (0, 1):
        p, *others = (torch.ones(2, requires_grad=True) for _ in range(1 + extra))
        optimizer = Hyperoptimizer([p, *others], Previous(lr=0.1) / SGD(lr=0.0))
        x = before = a = b = 1.0
        a = b = 0.0
        for _ in range(4):
            for q in (p, *others):
                q.grad = q.detach().clone()
            optimizer.step()
            x, before, a, b = x - 0.1 * x + 0.5 * (x - before), x, b + 1, a
        assert p.tolist() == pytest.approx([x, x])
        assert [optimizer.state[p][n][0].item() for n in "ab"] == [a, b]


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


@pytest.mark.parametrize("beta2", [0.5, 0.6, 0.65, 0.9])
def test_radam_has_a_derivative_where_it_never_rectifies(beta2):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, hg.RAdam(lr=0.01, beta2=beta2) / SGD(lr=1e-3))
    train(optimizer, mine, 10)
    assert all(map(math.isfinite, optimizer.hypergradients()[0].values()))


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


def test_named_parameters_keep_their_names():
    model = network()
    optimizer = Hyperoptimizer(model.named_parameters(), TOWER)
    assert optimizer.param_groups[0]["param_names"] == [n for n, _ in model.named_parameters()]
    fit(optimizer, model, 2)


def scalars(*sizes, **options):
    """Parameters of ones with gradients of ones."""
    params = [torch.ones(n, requires_grad=True, **options) for n in sizes]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("compile", [False, True])
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


def test_who_looks_at_state_early_loses_nothing():
    (p,) = scalars(3)
    optimizer = Hyperoptimizer([p], SGD(lr=0.1) / SGD(lr=1e-2))
    assert optimizer.hyperparameters()
    assert optimizer.state[p] == {}
    for _ in range(3):
        optimizer.step()
    assert levels(optimizer)


def test_rules_of_groups_start_their_own_way():
    a, b = scalars(3, 3)
    other = hg.Adagrad(lr=0.1, initial_accumulator_value=5.0)
    groups = [{"params": [a]}, {"params": [b], "rule": other}]
    optimizer = Hyperoptimizer(groups, hg.Adagrad(lr=0.1, initial_accumulator_value=1.0) / SGD(lr=1e-3))
    optimizer.step()
    assert [optimizer.state[p]["sum"][0].item() for p in (a, b)] == [2.0, 6.0]


def test_parameters_that_leave_a_group_take_only_their_own_state():
    a, b, c = scalars(3, 3, 3)
    b.grad, c.grad = 2 * b.grad, 3 * c.grad
    optimizer = Hyperoptimizer([a, b, c], Adam(lr=0.1) / SGD(lr=1e-3))
    optimizer.step()
    before = [optimizer.state[p]["exp_avg"].clone() for p in (b, c)]
    optimizer.param_groups[0]["params"] = [c, b]
    assert optimizer.hyperparameters()
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


def test_groups_that_come_or_go_by_hand_are_refused():
    a, b = scalars(3, 3)
    for change in (lambda groups: groups.pop(0), lambda groups: groups.append(dict(groups[0], params=[]))):
        optimizer = Hyperoptimizer([{"params": [a]}, {"params": [b]}], SGD(lr=0.1) / SGD(lr=1e-3))
        optimizer.step()
        change(optimizer.param_groups)
        with pytest.raises(ValueError, match=r"param_groups has (1|3) groups, of which 2 were added; .*add_param_group"):
            optimizer.step()
    optimizer = Hyperoptimizer([a, b], SGD(lr=0.1) / SGD(lr=1e-3), per="tensor")
    optimizer.step()
    optimizer.param_groups[0]["params"] = [b]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"shape \(5, 2\), and \(5, 1\) is needed; under per='tensor' no parameter"):
            optimizer.step()


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


def test_what_is_asked_in_inference_mode_can_be_trained_with():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    with torch.inference_mode():
        assert optimizer.hyperparameters()
    train(optimizer, mine, 3)


def test_an_overflow_is_no_step():
    (p,) = scalars(3, dtype=torch.float32)
    optimizer = Hyperoptimizer([p], SGD(lr=0.1) / SGD(lr=1e30))
    for _ in range(3):
        p.grad = torch.full_like(p, 1e6)
        optimizer.step()
    assert optimizer.hyperparameters()[0]["lr"] == pytest.approx(0.1)


def test_a_bucket_of_one_element_and_none():
    optimizer = Hyperoptimizer(scalars(1, 0), Adam(lr=0.1) / SGD(lr=1e-3), per="tensor")
    for _ in range(3):
        optimizer.step()
    assert optimizer.hyperparameters()[0]["lr"][0] != 0.1


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


@dataclass(frozen=True)
class Ratio(Rule):
    """A rule of averages that has no weight decay, and one weight that is a number."""

    lr: float = hyperparameter(0.1, nonnegative)
    beta: float = hyperparameter(0.5, hg.unit_interval)

    def init(self, param):
        return {"m": torch.zeros_like(param), "v": torch.zeros_like(param)}

    def coefficients(self, step):
        return 1 - self.beta, 0.25

    def averages(self, grad, c):
        return {"m": (grad, c[0]), "v": (grad * grad, c[1])}

    def displacement(self, state, c):
        return self.lr * state["m"] / (state["v"] + 1)


@dataclass(frozen=True)
class Clipped(Ratio):
    """Remembers something else than the average."""

    def advance(self, grad, state, c):
        new = super().advance(grad, state, c)
        return {**new, "m": new["m"].clamp(-0.1, 0.1)}


@pytest.mark.parametrize(("rule", "kept"), [(Ratio, {"last_gradient", "numbers"}), (Clipped, {"last_lr", "last_beta"})])
def test_a_rule_of_averages_of_ones_own(rule, kept):
    def after(lr, beta):
        """The weight after the first step."""
        m = (1 - beta) * 3.0
        return 1.0 - lr * (min(m, 0.1) if rule is Clipped else m) / (0.25 * 9.0 + 1)

    p = torch.ones(1, requires_grad=True)
    optimizer = Hyperoptimizer([p], rule(lr=0.1) / SGD(lr=0.0))
    p.grad = torch.full((1,), 3.0)
    optimizer.step()
    assert p.item() == pytest.approx(after(0.1, 0.5))
    assert kept < optimizer.state[p].keys()
    p.grad = torch.full((1,), 2.0)
    optimizer.step()
    h = 1e-6
    slopes = [(after(0.1 + h, 0.5) - after(0.1 - h, 0.5)) / (2 * h), (after(0.1, 0.5 + h) - after(0.1, 0.5 - h)) / (2 * h)]
    assert list(optimizer.hypergradients()[0].values()) == pytest.approx([2 * x for x in slopes], rel=1e-6)


@pytest.mark.parametrize(("rule", "lost"), [(Adam, [0, 3, 6]), (AdamW, [0])])
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


@pytest.mark.parametrize("rule", [Adam, AdamW, hg.RAdam])
@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize("how", ["load", "copy", "look"])
@pytest.mark.parametrize("when", [3, 4, 5])
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
        state = io.BytesIO()
        torch.save(other.state_dict(), state)
        state.seek(0)
        again, other = make()
        with torch.no_grad():
            for p, q in zip(again, theirs, strict=True):
                p.copy_(q)
        other.load_state_dict(torch.load(state, weights_only=True))
        theirs = again
    elif how == "copy":
        theirs, other = copy.deepcopy((theirs, other))
    go(theirs, other, range(when, 9))
    torch.testing.assert_close(theirs, mine, rtol=0, atol=0)
    assert repr(other.hypergradients(1)) == repr(optimizer.hypergradients(1))


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

    optimizer, twin = from_torch(adam(mine)), adam(theirs)
    assert [type(rule) for rule in optimizer.rules] == [Adam, AdamW]
    torch.testing.assert_close(train(optimizer, mine, 10), train(twin, theirs, 10), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("per", ["group", "tensor"])
def test_an_optimizer_of_nothing(per):
    optimizer = Hyperoptimizer([{"params": []}], SGD(lr=0.1) / SGD(lr=0.1), per=per)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert repr(optimizer).endswith(" / SGD(lr=0.1)")
