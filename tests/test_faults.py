"""Faults that were found by doing what public bug reports describe, each with its siblings; the twin is torch.optim."""

import copy
from dataclasses import dataclass, replace

import lightning.pytorch as pl
import pytest
import torch
from cases import RULES, TWINS, counted, loss, ours, parameters
from helpers import crossed, refusal, resumed, stored
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import hypergradient as hg
from hypergradient import (
    POSITIVE,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Hyperoptimizer,
    Muon,
    RMSprop,
    Rule,
    from_torch,
    hyperparameter,
    nonnegative,
    unit_interval,
)

ELEMENTWISE = [c for c in TWINS if not c.matrix]
PER = "all", "group", "tensor"
LARGE = (400, 400)  # so many elements are not gathered with others
ABOVE = [None, SGD(lr=0.0)]
ABOVE_IDS = ["alone", "tower"]
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


pytestmark = pytest.mark.usefixtures("exact_muon")


def under(rule, above, **options):
    """`rule` alone, or below a level whose step size of 0 moves nothing."""
    rule = replace(rule, **options)
    return rule if above is None else rule / above


def pair(case, above=None, **options):
    """Makers of our optimizer and of torch's, with the same options."""
    options = {"lr": 1e-2, **options}
    tower = under(case.rule(**ours(options)), above)
    return lambda ps: Hyperoptimizer(ps, tower), lambda ps: getattr(torch.optim, str(case))(ps, **options)


def named(name):
    return next(c for c in RULES if str(c) == name)


def make_params(*shapes, dtype=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def everything(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def go(optimizer, steps, start=0):
    """So many steps, along gradients that follow from weights and time."""
    for t in range(start, start + steps):
        for p in everything(optimizer):
            p.grad = 2 + torch.cos(3 * p.detach() + t) if p.requires_grad else None
        optimizer.step()


def copies(params):
    return [p.detach().clone() for p in params]


def snapshot(optimizer):
    """All that an optimizer knows."""
    groups = range(len(optimizer.param_groups))
    weights, state = copies(everything(optimizer)), copy.deepcopy(optimizer.state_dict()["state"])
    return [weights, state, [optimizer.hyperparameters(i) for i in groups]]


def same(one, other, **options):
    torch.testing.assert_close(one, other, **(options or {"rtol": 0, "atol": 0}), equal_nan=True)


def lr(optimizer, group=0):
    return optimizer.hyperparameters(group)[0]["lr"]


# ------------------------------------------------------------------------------------- parameters that share storage


def transposed(n):
    a, b = (torch.zeros(n, n).requires_grad_() for _ in range(2))
    a.data.copy_(torch.randn(n, n, generator=torch.Generator().manual_seed(0)))
    b.data = a.data.T
    return [a, b]


def overlapping(n):
    base = torch.randn(2 * n, n, generator=torch.Generator().manual_seed(0))
    return [nn.Parameter(base[: n + n // 2]), nn.Parameter(base[n // 2 :])]


def chunks(n):
    base = torch.randn(3 * n, n, generator=torch.Generator().manual_seed(0))
    return [nn.Parameter(c) for c in base.chunk(3)]


def detached_rows(n):
    base = torch.randn(4, n, n, generator=torch.Generator().manual_seed(0))
    return [x.detach().requires_grad_() for x in base.unbind()]


def the_same_twice_as_two_parameters(n):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    return [nn.Parameter(a), nn.Parameter(a.view(-1))]


SHARED = [transposed, overlapping, chunks, detached_rows, the_same_twice_as_two_parameters]


def test_a_parameter_and_its_transpose_both_move():
    """The row of the issue: a = -1."""
    a, b = (torch.zeros(3, 3, requires_grad=True) for _ in range(2))
    b.data = a.data.T
    a.grad, b.grad = torch.ones(3, 3), torch.ones(3, 3)
    Hyperoptimizer([a, b], SGD(lr=1.0)).step()
    assert (a == -2).all()


def test_chunks_of_one_tensor_move():
    """The row of the issue: an error of autograd after the first has moved."""
    mine = [nn.Parameter(c) for c in torch.zeros(1200, 400).chunk(3)]
    optimizer = Hyperoptimizer(mine, SGD(lr=0.1) / SGD(lr=1e-5))
    for p in mine:
        p.grad = torch.ones_like(p)
    optimizer.step()
    same(copies(mine), [torch.full((400, 400), -0.1)] * 3)


SHARING = [
    *((n, w, a, 4) for n in ("SGD", "AdamW", "RMSprop") for w in ("one group", "two groups", "per tensor") for a in ABOVE),
    ("SGD", "one group", SGD(lr=0.0), 400),
    ("AdamW", "one group", None, 400),
]


@pytest.mark.parametrize(("name", "where", "above", "n"), SHARING, ids=str)
@pytest.mark.parametrize("share", SHARED)
def test_parameters_that_share_storage_move_one_after_the_other(share, name, where, above, n):
    case = named(name)
    options = {"momentum": 0.9} if str(case) == "SGD" else {}
    _, kind = pair(case, **options, weight_decay=0.1)
    tower = under(case.rule(lr=1e-2, weight_decay=0.1, **options), above)
    mine, theirs = share(n), share(n)

    def groups(ps):
        return [{"params": ps[:1]}, {"params": ps[1:]}] if where == "two groups" else ps

    optimizer = Hyperoptimizer(groups(mine), tower, per="tensor" if where == "per tensor" else "group")
    twin = kind(groups(theirs))
    for t in range(3):
        for o in (optimizer, twin):
            for p in everything(o):
                p.grad = torch.cos(3 * p.detach() + t)
            o.step()
    same(copies(mine), copies(theirs), **CLOSE)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize(("case", "shape"), [*((c, (4, 3)) for c in TWINS), *((c, LARGE) for c in ELEMENTWISE[:4])], ids=str)
def test_one_parameter_twice_in_a_group_makes_two_moves(case, shape, above):
    make, kind = pair(case, above)
    (p, other), (q, another) = make_params(shape, (2, 3)), make_params(shape, (2, 3))
    optimizer, twin = make([p, other, p]), kind([q, another, q])
    for o in (optimizer, twin):
        go(o, 3)
    same(copies([p, other]), copies([q, another]), **CLOSE)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("shape", [(4, 3), LARGE], ids=["small", "large"])
def test_one_parameter_twice_can_be_tuned(shape):
    (p,) = make_params(shape)
    optimizer = Hyperoptimizer([p, p], SGD(lr=1e-2) / SGD(lr=1e-9))
    go(optimizer, 4)
    assert lr(optimizer) > 1e-2


# ------------------------------------------------------------------------------------- groups with a step size of 0


FROZEN_GROUPS = [(c, None, "group") for c in RULES]
FROZEN_GROUPS += [(named("Adam"), None, "all"), (named("Adam"), None, "tensor"), *((named("Adam"), POSITIVE, p) for p in PER)]


@pytest.mark.parametrize(("case", "chart", "per"), FROZEN_GROUPS, ids=str)
def test_a_group_with_a_step_size_of_0_is_frozen_until_it_is_raised(case, chart, per):
    shape = (4, 3)
    a, b, c = make_params(shape, shape, shape)
    rule = case.rule(lr=1e-2, charts={} if chart is None else {"lr": chart}, tune=("lr",))
    optimizer = Hyperoptimizer([{"params": [a], "lr": 0.0}, {"params": [b]}, {"params": [c]}], rule / SGD(lr=1e-4), per=per)
    before = copies([a, b])
    go(optimizer, 10)
    same(copies([a]), before[:1])
    assert not torch.equal(b, before[1])
    assert torch.tensor(lr(optimizer)).abs().max() == 0
    assert torch.tensor(lr(optimizer, 1)).min() > 0
    optimizer.param_groups[0]["lr"] = 0.02
    raised = torch.tensor(lr(optimizer)).max().item()
    assert raised == pytest.approx(0.02) or (per == "all" and raised == pytest.approx(2 * lr(optimizer, 1)))
    go(optimizer, 3, 10)
    assert not torch.equal(a, before[0])
    assert torch.tensor(lr(optimizer)).min() > 0.02
    assert torch.tensor([lr(optimizer, 1), lr(optimizer, 2)]).isfinite().all()


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize(("case", "per"), [*((c, "group") for c in TWINS), *((named("Adam"), p) for p in PER[::2])], ids=str)
def test_a_frozen_group_is_that_of_torch(case, per, first):
    _, kind = pair(case)
    runs = []
    for o in (lambda g: Hyperoptimizer(g, case.rule(lr=1e-2) / SGD(lr=0.0), per=per), kind):
        a, b = make_params((4, 3), (3, 5))
        groups = [{"params": [a], "lr": 0.0}, {"params": [b]}]
        optimizer = o(groups if first else groups[::-1])
        go(optimizer, 4)
        (group,) = (g for g in optimizer.param_groups if g["params"][0] is a)
        group["lr"] = 0.03
        go(optimizer, 4, 4)
        runs.append(copies([a, b]))
    same(*runs, **CLOSE)


@pytest.mark.parametrize("look", [repr, copy.deepcopy, Hyperoptimizer.state_dict, Hyperoptimizer.hyperparameters])
def test_to_look_at_a_group_that_is_still_frozen_changes_nothing(look):
    runs = []
    for looks in (True, False):
        a, b = make_params((4, 3), (3, 5))
        optimizer = Hyperoptimizer([{"params": [a], "lr": 0.0}, {"params": [b]}], SGD(lr=1e-2) / SGD(lr=1e-4), per="all")
        if looks:
            look(optimizer)
        optimizer.param_groups[0]["lr"] = 0.03
        go(optimizer, 4)
        runs.append([*copies([a, b]), torch.tensor(lr(optimizer))])
    same(*runs)


@pytest.mark.parametrize("chart", [None, POSITIVE], ids=str)
def test_to_look_at_a_group_between_two_raises_changes_nothing(chart):
    """What counts is what a step is made with."""
    runs = []
    for values in ([0.03], [1e-3, 0.03], [1e-3, 0.0, 0.03]):
        a, b = make_params((4, 3), (3, 5))
        rule = Adam(lr=1e-2, tune="lr", charts={"lr": chart} if chart else {})
        optimizer = Hyperoptimizer([{"params": [a]}, {"params": [b], "lr": 0.0}], rule / SGD(lr=1e-4))
        go(optimizer, 2)
        for value in values:
            optimizer.param_groups[1]["lr"] = value
            repr(optimizer)
        go(optimizer, 4, 2)
        runs.append([*copies([a, b]), torch.tensor([lr(optimizer), lr(optimizer, 1)])])
    same(runs[1], runs[0]), same(runs[2], runs[0])


@pytest.mark.parametrize("shape", [(6, 5), LARGE], ids=["small", "large"])
def test_the_weights_of_a_frozen_group_do_not_move_in_50_steps(shape):
    """The row of the issue: they moved by 14 %."""
    a, b = make_params(shape, (3, 3))
    before = a.detach().clone()
    optimizer = Hyperoptimizer([{"params": [a], "lr": 0.0}, {"params": [b]}], AdamW(lr=1e-3) / SGD(lr=1e-5))
    go(optimizer, 50 if shape != LARGE else 5)
    assert torch.equal(a, before)


# ------------------------------------------------------------------------------------- rules that mix elements


@dataclass(frozen=True)
class Normalized(Rule):
    """Of a test."""

    lr: float = hyperparameter(1e-2, nonnegative)

    def update(self, param, grad, state, c):
        return param - self.lr * grad / grad.norm(), {}


@dataclass(frozen=True)
class Centred(Rule):
    """Of a test."""

    lr: float = hyperparameter(1e-2, nonnegative)
    momentum: float = hyperparameter(0.5, unit_interval)

    def init(self, param):
        return {"m": torch.zeros_like(param)}

    def update(self, param, grad, state, c):
        m = self.momentum * state["m"] + grad - grad.mean()
        return param - self.lr * m, {"m": m}


@dataclass(frozen=True)
class Trust(Rule):
    """Of a test: in the manner of LARS."""

    lr: float = hyperparameter(1e-2, nonnegative)

    def update(self, param, grad, state, c):
        return param - self.lr * param.norm() / (grad.norm() + 1e-6) * grad, {}


@dataclass(frozen=True)
class Neighbours(Rule):
    """Of a test."""

    lr: float = hyperparameter(1e-2, nonnegative)

    def update(self, param, grad, state, c):
        return param - self.lr * (grad - 0.5 * grad.roll(1)), {}


@dataclass(frozen=True)
class Averaged(hg.Averages):
    """Of a test: a rule of averages."""

    lr: float = hyperparameter(1e-2, nonnegative)
    beta: float = hyperparameter(0.5, unit_interval)

    def init(self, param):
        return {"m": torch.zeros_like(param)}

    def coefficients(self, step):
        return (1 - self.beta,)

    def averages(self, grad, c):
        return {"m": (grad / grad.norm(), c[0])}

    def displacement(self, state, c):
        return self.lr * state["m"]


def literal(rule, params, steps):
    """The formula of `rule`, applied to each parameter in its own shape. Returns the weights."""
    at = rule.at({n: torch.tensor(getattr(rule, n)) for n in rule.hyperparameters()})
    weights, states, sums = copies(params), [rule.init(p.detach()) for p in params], None
    for t in range(steps):
        here, sums = counted(at, t + 1, sums)
        for i, w in enumerate(weights):
            c = here.coefficients(torch.tensor(t + 1.0))
            weights[i], states[i] = here.update(w, 2 + torch.cos(3 * w + t), states[i], c)
    return weights


MIXING = [Normalized(), Centred(), Trust(), Neighbours(), Averaged()]


@pytest.mark.parametrize(
    ("shapes", "per"), [([(4, 3), (5,), (2, 3)], p) for p in PER] + [([(600, 600), (5,)], "group")], ids=str
)
@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize("rule", MIXING, ids=lambda r: type(r).__name__)
def test_a_rule_that_mixes_elements_is_run_parameter_by_parameter(rule, shapes, above, per):
    mine = make_params(*shapes)
    expected = literal(rule, mine, 3)
    go(Hyperoptimizer(mine, under(rule, above), per=per), 3)
    same(copies(mine), expected, **CLOSE)


@pytest.mark.parametrize("rule", MIXING, ids=lambda r: type(r).__name__)
def test_above_another_rule_one_that_mixes_elements_is_refused(rule):
    mine = make_params((4, 3), (5,))
    before = copies(mine)
    with pytest.raises((ValueError, TypeError), match="elementwise"):
        go(Hyperoptimizer(mine, Adam(lr=1e-2) / rule), 3)
    same(copies(mine), before)


def test_the_hypergradient_of_a_rule_that_mixes_elements_is_that_of_its_formula():
    """``dL/dlr = -sum of <g, g' / |g'|>`` over the parameters."""
    mine = make_params((4, 3), (5,))
    optimizer = Hyperoptimizer(mine, Normalized(lr=0.1) / SGD(lr=0.0))
    go(optimizer, 2)
    last = [p.grad.clone() for p in mine]
    go(optimizer, 1, 2)
    expected = -sum(((g / g.norm()) * p.grad).sum() for g, p in zip(last, mine, strict=True)).item()
    assert optimizer.hypergradients()[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("case", [c for c in RULES if not c.matrix], ids=str)
def test_rules_that_do_not_mix_elements_are_not_taken_for_such(case):
    for options in case.variants:
        mine = make_params((4, 3), (5,))
        optimizer = Hyperoptimizer(mine, Adam(lr=1e-2) / case.rule(**options))
        go(optimizer, 2)


# ------------------------------------------------------------------------------------- errors leave nothing half done


@dataclass(frozen=True)
class OfMatrices(Rule):
    """Of a test."""

    lr: float = hyperparameter(1e-2, nonnegative)
    elementwise = False

    def init(self, param):
        return {"m": torch.zeros_like(param)}

    def update(self, param, grad, state, c):
        if param.ndim != 2:
            raise RuntimeError("not a matrix")
        return param - self.lr * grad, {"m": grad}


@dataclass(frozen=True)
class Reshapes(OfMatrices):
    """Of a test."""

    def update(self, param, grad, state, c):
        return (param - self.lr * grad)[: 1 if param.ndim == 1 else None], {"m": grad}


@dataclass(frozen=True)
class Forgets(OfMatrices):
    """Of a test."""

    def update(self, param, grad, state, c):
        return param - self.lr * grad, {"m": grad} if param.ndim == 2 else {}


@pytest.mark.parametrize("above", [None, SGD(lr=1e-4)], ids=ABOVE_IDS)
@pytest.mark.parametrize("rule", [OfMatrices(), Reshapes(), Forgets()], ids=lambda r: type(r).__name__)
def test_a_rule_that_fails_at_the_last_parameter_leaves_all_as_they_were(rule, above):
    mine = make_params((4, 3), (3, 3), (5,))
    optimizer = Hyperoptimizer([{"params": mine[:1]}, {"params": mine[1:]}], rule if above is None else rule / above)
    mine[2].requires_grad_(False)
    go(optimizer, 3)
    before, known = copies(mine), {p: copy.deepcopy(dict(m)) for p, m in optimizer.state.items()}
    mine[2].requires_grad_(True)
    with pytest.raises((RuntimeError, ValueError, TypeError, KeyError)):
        go(optimizer, 1, 3)
    same(copies(mine), before)
    assert all(torch.equal(x, known[p][n]) for p, m in optimizer.state.items() if p in known for n, x in m.items())


def becomes_smaller(o):
    """Its state stays as large as it was."""
    p = everything(o)[-1]
    p.data = p.data[:1].clone()


def another_of_another_shape_with_the_old_state(o):
    p = o.param_groups[-1]["params"].pop()
    q = nn.Parameter(torch.ones(7, 2))
    o.param_groups[-1]["params"].append(q)
    o.state[q] = o.state.pop(p)


def a_tensor_of_the_state_is_cut(o):
    memory = o.state[everything(o)[-1]]
    (name, *_) = [n for n in memory if n != "step"]
    memory[name] = memory[name][:1]


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("tower", [SGD(lr=0.01, momentum=0.9), Adam(lr=0.01), Adam(lr=0.01) / SGD(lr=1e-4)], ids=repr)
@pytest.mark.parametrize("edit", [becomes_smaller, another_of_another_shape_with_the_old_state, a_tensor_of_the_state_is_cut])
def test_state_of_another_shape_is_an_error_before_anything_moves(edit, tower, large):
    a, b = make_params(LARGE if large else (4, 3), (5, 2))
    optimizer = Hyperoptimizer([{"params": [a]}, {"params": [b]}], tower)
    go(optimizer, 3)
    edit(optimizer)
    before, known = copies(everything(optimizer)), {n: x.clone() for n, x in optimizer.state[a].items()}
    with pytest.raises((RuntimeError, ValueError)):
        go(optimizer, 1, 3)
    same(copies(everything(optimizer)), before)
    same(dict(optimizer.state[a]), known)


@pytest.mark.parametrize("tower", [SGD(lr=0.01, momentum=0.9), Adam(lr=0.01) / SGD(lr=1e-4)], ids=repr)
@pytest.mark.parametrize("started", [False, True])
def test_a_sparse_gradient_in_the_last_group_moves_nothing(tower, started):
    a, b = make_params((4, 3), (5, 2))
    optimizer = Hyperoptimizer([{"params": [a]}, {"params": [b]}], tower)
    go(optimizer, 3 if started else 0)
    before = snapshot(optimizer)
    a.grad, b.grad = torch.ones_like(a), torch.zeros(5, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    same(snapshot(optimizer), before)


# ------------------------------------------------------------------------------------- tune_on


class Layers(nn.Module):
    """Of a test: layers of which those in the middle are computed again in the backward pass."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.how = how

    def forward(self, x):
        x = self.layers[0](x).tanh()
        middle = nn.Sequential(self.layers[1], nn.Tanh(), self.layers[2], nn.Tanh())
        x = middle(x) if self.how is None else checkpoint(middle, x, use_reentrant=self.how)
        return self.layers[3](x)

    def loss(self, t):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(t))
        return (self(x) - torch.sin(2 * x)).square().mean()


@pytest.mark.parametrize("way", ["zeroed", "set to none", "accumulated"])
@pytest.mark.parametrize("tower", [SGD(lr=0.1) / SGD(lr=1e-2), Adam(lr=0.01, horizon=5) / Adam(lr=1e-3)], ids=repr)
@pytest.mark.parametrize("how", [True, False], ids=["reentrant", "not reentrant"])
def test_tune_on_with_checkpoints_in_the_model_is_as_without(how, tower, way):
    """The row of the issue: half of the hypergradient."""
    runs = []
    for kind in (None, how):
        model = Layers(kind)
        optimizer = Hyperoptimizer(model.parameters(), tower)
        for t in range(4):
            if way != "accumulated" or t % 2 == 0:
                optimizer.zero_grad(set_to_none=way == "set to none")
            model.loss(t).backward()
            grads = [p.grad for p in model.parameters()]
            contents = copies(grads)
            optimizer.tune_on(model.loss(100 + t))
            assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
            same(copies(grads), contents)
            optimizer.step()
        runs.append([copies(model.parameters()), optimizer.hyperparameters(), optimizer.hypergradients()])
    same(*runs, **CLOSE)


@pytest.mark.parametrize("reentrant", [None, True], ids=["plain", "reentrant"])
def test_tune_on_before_the_backward_pass_leaves_gradients_none(reentrant):
    model = Layers(reentrant)
    optimizer = Hyperoptimizer(model.parameters(), SGD(lr=0.1) / SGD(lr=1e-2))
    optimizer.tune_on(model.loss(0))
    assert all(p.grad is None for p in model.parameters())


def test_tune_on_that_fails_leaves_gradients_as_they_were():
    a, b = make_params((4, 3), (3,))

    class Failed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("of a test")

    optimizer = Hyperoptimizer([a, b], SGD(lr=0.1) / SGD(lr=1e-2))
    go(optimizer, 2)
    grads, contents = [a.grad, b.grad], copies([a.grad, b.grad])
    with pytest.raises(RuntimeError, match="of a test"):
        optimizer.tune_on(b.square().sum() + Failed.apply(a).sum())
    assert a.grad is grads[0]
    assert b.grad is grads[1]
    same(copies(grads), contents)
    go(optimizer, 1, 2)


def test_tune_on_leaves_a_gradient_that_is_expanded_as_it_was():
    params = [torch.ones(shape, requires_grad=True) for shape in ((4, 3), (2,))]
    params[0].grad, params[1].grad = torch.ones(()).expand(4, 3), torch.ones(2)
    optimizer = Hyperoptimizer(params, SGD(lr=0.1) / SGD(lr=1e-3))
    optimizer.tune_on(sum(p.square().sum() for p in params))
    assert all((p.grad == 1).all() for p in params)


def test_tune_on_sees_what_hooks_of_a_parameter_make_of_its_gradient():
    """As a backward pass does: a mask of a gradient is one for the hypergradient, too."""
    runs = []
    for masked in (False, True):
        a, b = make_params((4, 3), (3,))
        if masked:
            a.register_hook(lambda g: g * 0)
        optimizer = Hyperoptimizer([a, b], SGD(lr=0.1) / SGD(lr=1e-2))
        go(optimizer, 2)
        a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
        optimizer.tune_on((a.square().sum() if masked else 0) + b.square().sum())
        optimizer.step()
        runs.append(optimizer.hypergradients()[0]["lr"])
    assert runs[0] == pytest.approx(runs[1])


# ------------------------------------------------------------------------------------- modes and devices


DETECTED = [
    SGD(lr=0.01) / SGD(lr=1e-4),
    SGD(lr=0.01, momentum=0.5, horizon=5) / SGD(lr=1e-4),
    Adam(lr=0.01) / SGD(lr=1e-4),
    AdamW(lr=0.01, tune="lr", charts={"lr": POSITIVE}, horizon=5, normalize="cosine") / SGD(lr=0.1),
    RMSprop(lr=0.01) / Adam(lr=1e-4) / SGD(lr=1e-5),
    Muon(lr=0.01) / SGD(lr=1e-4),
]


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize(
    ("tower", "shape"), [*((t, (4, 3)) for t in DETECTED), *((t, LARGE) for t in DETECTED[:3:2])], ids=repr
)
def test_anomaly_detection_finds_nothing_in_a_step_along_a_bad_gradient(tower, shape, bad):
    """The row of the issue: a RuntimeError."""
    runs = []
    for detect in (False, True):
        mine = make_params(shape, (2, 3))
        optimizer = Hyperoptimizer(mine, tower)
        go(optimizer, 2)
        for p in mine:
            p.grad = torch.ones_like(p)
        mine[0].grad[0, 0] = bad
        with torch.autograd.set_detect_anomaly(detect):
            optimizer.step()
            go(optimizer, 2, 3)
        runs.append(snapshot(optimizer))
    same(*runs)


KINDS = [named(n) for n in ("SGD", "Adam", "AdamW", "RMSprop", "Muon")]


@pytest.mark.parametrize("steps", ["inside", "outside"])
@pytest.mark.parametrize("above", [None, SGD(lr=1e-4)], ids=ABOVE_IDS)
@pytest.mark.parametrize("case", KINDS, ids=str)
def test_a_default_device_without_data_changes_nothing(case, above, steps):
    """Parameters are where they are, whatever the default device is when the optimizer is made."""
    runs = []
    for device in ("cpu", "meta"):
        mine = make_params((4, 3), (2, 3))
        rule = case.rule(lr=1e-2)
        with torch.device(device):
            optimizer = Hyperoptimizer(mine, rule if above is None else rule / above)
            if steps == "inside":
                go(optimizer, 3)
        go(optimizer, 2, 3)
        runs.append(snapshot(optimizer))
    same(*runs)


@pytest.mark.parametrize("inside", [False, True], ids=["device of the parameters", "default device"])
@pytest.mark.parametrize("above", [None, SGD(lr=1e-4)], ids=ABOVE_IDS)
@pytest.mark.parametrize("case", KINDS, ids=str)
def test_parameters_without_data_make_steps_without_data(case, above, inside):
    """As with torch.optim, which is run first."""
    rule = case.rule(lr=1e-2)
    for make in (pair(case)[1], lambda ps: Hyperoptimizer(ps, rule if above is None else rule / above)):
        mine = [torch.empty(s, device="meta", requires_grad=True) for s in ((4, 3), (2, 3))]
        with torch.device("meta" if inside else "cpu"):
            optimizer = make(mine)
            go(optimizer, 3)
        assert {x.shape for n, x in optimizer.state[mine[0]].items() if n != "step" and x is not None} <= {(4, 3)}


@pytest.mark.parametrize(("case", "above"), crossed(KINDS, [None, SGD(lr=1e-4), Adam(lr=1e-4) / SGD(lr=1e-5)]), ids=str)
def test_fake_tensors_make_fake_steps(case, above):
    """As with torch.optim, which is run first: to learn of shapes and memory."""
    rule = case.rule(lr=1e-2)
    for make in (pair(case)[1], lambda ps: Hyperoptimizer(ps, rule if above is None else rule / above)):
        with FakeTensorMode():
            mine = [torch.ones(s, requires_grad=True) for s in ((4, 3), (2, 3))]
            optimizer = make(mine)
            for _ in range(3):
                for p in mine:
                    p.grad = torch.ones_like(p)
                optimizer.step()
            if isinstance(optimizer, Hyperoptimizer):
                for look in (optimizer.eval, optimizer.train, optimizer.hyperparameters, optimizer.__repr__):
                    look()
        assert {x.shape for n, x in optimizer.state[mine[0]].items() if n != "step" and x is not None} <= {(4, 3)}


class NoDoubles(TorchFunctionMode):
    """A default device that has no float64, such as that of an Apple GPU."""

    FACTORIES = torch.tensor, torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.linspace, torch.as_tensor

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        here = func in self.FACTORIES and "device" not in kwargs
        if here and isinstance(result, torch.Tensor) and result.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a tensor to float64, which the default device does not have")
        return result


@pytest.mark.parametrize(("case", "above"), crossed(RULES, [None, SGD(lr=1e-4), Adam(lr=1e-4) / SGD(lr=1e-5)]), ids=str)
def test_a_default_device_without_float64(float32, case, above):
    mine, rule = make_params((4, 3), (2, 3)), case.rule(**case.lively)
    tower = rule if above is None else rule / above

    def make():
        return Hyperoptimizer([{"params": mine[:1], "lr": 0.01}, {"params": mine[1:]}], tower)

    with NoDoubles():
        optimizer = make()
        go(optimizer, 3)
        assert lr(optimizer) > 0
        assert optimizer.hypergradients()
        other = make()
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        go(other, 1, 3)
    assert {p.dtype for p in mine} == {torch.float32}


FROZEN = {
    "integers": lambda: nn.Parameter(torch.arange(3), requires_grad=False),
    "truth values": lambda: nn.Parameter(torch.ones(2, 2, dtype=torch.bool), requires_grad=False),
    "bytes": lambda: nn.Parameter(torch.ones(2, 2, dtype=torch.uint8), requires_grad=False),
    "on another device": lambda: nn.Parameter(torch.ones(2, 2, device="meta"), requires_grad=False),
    "integers on another device": lambda: nn.Parameter(torch.ones(2, device="meta").long(), requires_grad=False),
}


@pytest.mark.parametrize(("above", "per"), [(None, "group"), *((ABOVE[1], p) for p in PER)], ids=str)
@pytest.mark.parametrize("where", [0, 2], ids=["first", "last"])
@pytest.mark.parametrize("make", FROZEN.values(), ids=FROZEN)
def test_frozen_parameters_of_any_kind_are_ignored(make, above, where, per):
    runs = []
    for kind in (lambda ps: Hyperoptimizer(ps, under(Adam(lr=0.01), above), per=per), lambda ps: torch.optim.Adam(ps, lr=0.01)):
        mine, still = make_params((4, 3), (2, 3)), make()
        optimizer = kind([*mine[:where], still, *mine[where:]])
        assert "Adam" in repr(optimizer)
        go(optimizer, 3)
        assert not optimizer.state.get(still)
        other = kind([*mine[:where], still, *mine[where:]])
        other.load_state_dict(stored(optimizer.state_dict()))
        go(other, 2, 3)
        runs.append(copies(mine))
    same(*runs, **CLOSE)


@pytest.mark.parametrize("make", FROZEN.values(), ids=FROZEN)
def test_a_group_of_frozen_parameters_may_be_added_and_named(make):
    mine = make_params((4, 3), (2, 3))
    optimizer = Hyperoptimizer([("still", make()), ("a", mine[0])], Adam(lr=0.01) / SGD(lr=1e-5))
    go(optimizer, 2)
    optimizer.add_param_group({"params": [("other", make()), ("b", mine[1])]})
    go(optimizer, 2, 2)
    assert optimizer.hyperparameters(1)[0]["lr"] > 0


# ------------------------------------------------------------------------------------- other people's optimizers

SCHEDULES = {
    "warm-up from 0": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: min(1.0, t / 4)),
    "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.7),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=20),
    "restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`")
@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_scheduler_made_for_a_torch_optimizer_goes_on_after_from_torch(schedule, kind, before, above):
    """The row of the issue: the schedule is dead; a warm-up from 0 stays at 0 for ever."""
    runs = []
    momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    for taken_over in (False, True):
        mine = make_params((4, 3), (2, 3))
        optimizer = kind([{"params": mine[:1]}, {"params": mine[1:], "lr": 0.02}], lr=0.01, **momentum)
        scheduler = schedule(optimizer)
        for t in range(before + 6):
            if t == before and taken_over:
                plain, optimizer = optimizer, from_torch(optimizer, above=above)
                assert all(a is b for a, b in zip(optimizer.param_groups, plain.param_groups, strict=True))
            go(optimizer, 1, t)
            scheduler.step()
        runs.append(copies(mine))
    same(*runs, **CLOSE)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`")
def test_what_is_learned_after_from_torch_is_relative_to_the_initial_lr():
    mine = make_params((4, 3))
    plain = torch.optim.SGD(mine, lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(plain, lambda t: min(1.0, t / 4))
    optimizer = from_torch(plain, above=SGD(lr=1e-4))
    assert lr(optimizer) == 0
    for t in range(8):
        go(optimizer, 1, t)
        scheduler.step()
        if t == 0:
            assert lr(optimizer) == pytest.approx(0.0025)
    assert plain.param_groups[0]["lr"] == 0.01
    assert lr(optimizer) > 0.0105


@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize("case", TWINS, ids=str)
def test_the_state_dict_of_every_optimizer_of_torch_is_taken_over(case, above):
    """The row of the issue: that of Muon, which has no `maximize`, was a KeyError in the step."""
    for options in case.options:
        make, kind = pair(case, above, **options)
        mine, theirs = (make_params((4, 3), (2, 3)) for _ in range(2))
        twin, optimizer = kind(theirs), make(mine)
        go(twin, 3)
        for p, q in zip(mine, theirs, strict=True):
            p.data.copy_(q.detach())
        optimizer.load_state_dict(stored(twin.state_dict()))
        for o in (optimizer, twin):
            go(o, 3, 3)
        same(copies(mine), copies(theirs), **CLOSE)


@pytest.mark.parametrize("tower", [
    SGD(lr=0.01, momentum=0.9), Adam(lr=0.01), RMSprop(lr=0.01), Muon(lr=0.01), Adam(lr=0.01) / SGD(lr=1e-4),
], ids=repr)  # fmt: skip
def test_what_a_checkpoint_lacks_is_filled_in_with_its_default(tower):
    whole = Hyperoptimizer(make_params((4, 3), (2, 3)), tower)
    go(whole, 3)
    saved = stored(whole.state_dict())
    start = copies(everything(whole))
    go(whole, 2, 3)
    for key in ("maximize", "weight_decay", "eps", "nesterov", "amsgrad", "centered", "dampening"):
        less = copy.deepcopy(saved)
        for group in less["param_groups"]:
            group.pop(key, None)
        mine = [w.clone().requires_grad_() for w in start]
        optimizer = Hyperoptimizer(mine, tower)
        optimizer.load_state_dict(less)
        go(optimizer, 2, 3)
        same(copies(mine), copies(everything(whole)))


CHANGES = {  # what is saved, what it is loaded into, what an error has to name
    "nesterov": (SGD(lr=0.01, momentum=0.9, nesterov=True), SGD(lr=0.01, momentum=0.9), "nesterov"),
    "no nesterov": (SGD(lr=0.01, momentum=0.9), SGD(lr=0.01, momentum=0.9, nesterov=True), "nesterov"),
    "amsgrad": (Adam(lr=0.01, amsgrad=True), Adam(lr=0.01), "amsgrad"),
    "no amsgrad": (AdamW(lr=0.01), AdamW(lr=0.01, amsgrad=True), "amsgrad"),
    "centered": (RMSprop(lr=0.01, centered=True), RMSprop(lr=0.01), "centered"),
    "decoupled": (hg.NAdam(weight_decay=0.1, decoupled_weight_decay=True), hg.NAdam(weight_decay=0.1), "decoupled"),
    "Muon's nesterov": (Muon(lr=0.01, nesterov=False), Muon(lr=0.01), "nesterov"),
    "Muon's lr": (Muon(lr=0.01, adjust_lr_fn="match_rms_adamw"), Muon(lr=0.01), "adjust_lr_fn"),
    "lr": (SGD(lr=0.01), SGD(lr=0.5), "lr"),
    "values": (Adam(lr=0.01, beta1=0.5, weight_decay=0.1, eps=1e-3), Adam(lr=0.5), "beta1"),
    "nesterov in a tower": (
        SGD(lr=0.01, momentum=0.9, nesterov=True) / SGD(lr=1e-4),
        SGD(lr=0.01, momentum=0.9) / SGD(lr=1e-4),
        "nesterov",
    ),
    "amsgrad in a tower": (Adam(lr=0.01, amsgrad=True) / SGD(lr=1e-4), Adam(lr=0.01) / SGD(lr=1e-4), "amsgrad"),
    "lr in a tower": (Adam(lr=0.01) / SGD(lr=1e-4), Adam(lr=0.5) / SGD(lr=1e-4), "lr"),
    "lr above": (Adam(lr=0.01) / SGD(lr=1e-5), Adam(lr=0.01) / SGD(lr=0.1), "lr"),
    "momentum above": (Adam(lr=0.01) / SGD(lr=1e-5, momentum=0.9), Adam(lr=0.01) / SGD(lr=1e-5), "momentum"),
    "betas above": (Adam(lr=0.01) / Adam(lr=1e-4, beta1=0.5), Adam(lr=0.01) / Adam(lr=1e-4), "beta1"),
    "decay above": (Adam(lr=0.01) / AdamW(lr=1e-4), Adam(lr=0.01) / AdamW(lr=1e-4, weight_decay=0.0), "weight_decay"),
    "nesterov above": (
        Adam(lr=0.01) / SGD(lr=1e-5, momentum=0.9, nesterov=True),
        Adam(lr=0.01) / SGD(lr=1e-5, momentum=0.9),
        "nesterov",
    ),
    "amsgrad above": (Adam(lr=0.01) / Adam(lr=1e-4, amsgrad=True), Adam(lr=0.01) / Adam(lr=1e-4), "amsgrad"),
    "lr in the middle": (
        Adam(lr=0.01) / Adam(lr=1e-4) / SGD(lr=1e-5),
        Adam(lr=0.01) / Adam(lr=1e-2) / SGD(lr=1e-5),
        "lr",
    ),
    "lr at the top": (Adam(lr=0.01) / SGD(lr=1e-4) / SGD(lr=1e-5), Adam(lr=0.01) / SGD(lr=1e-4) / SGD(lr=1e-2), "lr"),
    "by name": (
        SGD(lr=0.01, momentum=0.5) / SGD(lr={"lr": 1e-4, "momentum": 1e-5}),
        SGD(lr=0.01, momentum=0.5) / SGD(lr={"lr": 1e-4, "momentum": 1e-2}),
        "lr",
    ),
}
PER_TENSOR = "lr in a tower", "lr above", "by name"


@pytest.mark.parametrize(
    ("saved", "loaded", "name", "per"),
    [pytest.param(*x, "group", id=n) for n, x in CHANGES.items()]
    + [pytest.param(*CHANGES[n], "tensor", id=f"{n}, per tensor") for n in PER_TENSOR],
)
def test_what_a_checkpoint_says_counts_or_is_refused_by_name(saved, loaded, name, per):
    whole = Hyperoptimizer(make_params((4, 3), (2, 3)), saved, per=per)
    go(whole, 4)
    mine = [w.requires_grad_() for w in copies(everything(whole))]
    optimizer = Hyperoptimizer(mine, loaded, per=per)
    before = snapshot(optimizer)
    said = refusal(lambda: optimizer.load_state_dict(stored(whole.state_dict())))
    if said is not None:
        assert name in said
        same(snapshot(optimizer), before)
        return
    assert optimizer.hyperparameters() == whole.hyperparameters()
    for o in (optimizer, whole):
        go(o, 3, 4)
    same(snapshot(optimizer), snapshot(whole))


@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize("case", TWINS, ids=str)
def test_an_optimizer_of_the_groups_of_another(case, above):
    """And a group with all that another one has."""
    make, kind = pair(case, above)
    runs = []
    for o in (make, kind):
        mine = make_params((4, 3), (2, 3), (3, 3))
        optimizer = o([{"params": mine[:1], "lr": 0.02}, {"params": mine[1:2]}])
        go(optimizer, 3)
        optimizer = o(optimizer.param_groups)
        go(optimizer, 2, 3)
        optimizer.add_param_group({**optimizer.param_groups[0], "params": mine[2:]})
        go(optimizer, 2, 5)
        assert [g["lr"] for g in optimizer.param_groups] == [0.02, 0.01, 0.02]
        runs.append(copies(mine))
    same(*runs, **CLOSE)


def test_an_optimizer_of_the_groups_of_one_that_has_learned():
    mine = make_params((4, 3), (2, 3))
    one = Hyperoptimizer([{"params": mine[:1], "lr": 0.02}, {"params": mine[1:]}], Adam(lr=0.01) / SGD(lr=1e-4))
    go(one, 3)
    optimizer = Hyperoptimizer(one.param_groups, Adam(lr=0.01) / SGD(lr=1e-4))
    go(optimizer, 3, 3)
    assert lr(optimizer, 0) > 0.02
    assert lr(optimizer, 1) > 0.01


# ------------------------------------------------------------------------------------- Lightning


class Tuned(pl.LightningModule):
    """A backbone and a head, of which the callback unfreezes the former after an epoch."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 2)
        self.make, self.losses = make, []

    def training_step(self, batch):
        x, y = batch
        value = (self.head(self.backbone(x)) - y).square().mean()
        self.losses.append(value.item())
        return value

    def configure_optimizers(self):
        return self.make([p for p in self.parameters() if p.requires_grad])

    def on_train_start(self):
        """The callback freezes the backbone when a run is resumed, also one in which it had been unfrozen."""
        self.backbone.requires_grad_(self.trainer.current_epoch > 2)


@pytest.mark.usefixtures("float32")
@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("at", [0, 1, 2], ids=["frozen", "about to unfreeze", "unfrozen"])
@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.Adam(ps, lr=0.01),
        lambda ps: Hyperoptimizer(ps, Adam(lr=0.01)),
        lambda ps: Hyperoptimizer(ps, Adam(lr=0.01) / SGD(lr=1e-4)),
        lambda ps: Hyperoptimizer(ps, Adam(lr=0.01) / SGD(lr=1e-4), per="tensor"),
        Hyperoptimizer,
    ],
    ids=["torch", "alone", "tower", "per tensor", "default"],
)
def test_fine_tuning_of_a_backbone_is_resumed(tmp_path, make, at):
    def fit(ckpt_path=None):
        module = Tuned(make)
        x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
        trainer = pl.Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            max_epochs=5,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            callbacks=[
                BackboneFinetuning(unfreeze_backbone_at_epoch=2, backbone_initial_lr=1e-3),
                ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1),
            ],
        )
        data = DataLoader(TensorDataset(x, torch.sin(2 * x[:, :2])), batch_size=16)
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
        return module, trainer.optimizers[0]

    whole, one = fit()
    again, other = fit(str(tmp_path / f"epoch={at}.ckpt"))
    assert again.losses == whole.losses[2 * (at + 1) :]
    same(copies(again.parameters()), copies(whole.parameters()))
    if isinstance(one, Hyperoptimizer):
        assert [other.hyperparameters(i) for i in (0, 1)] == [one.hyperparameters(i) for i in (0, 1)]


# ------------------------------------------------------------------------------------- finite differences


@pytest.mark.parametrize("per", ["all", "group"])
def test_what_is_projected_back_onto_its_constraint_did_not_move(per):
    """``dL/dh`` of the step size in the middle by central differences, also where eps is driven below 0."""
    mine = parameters()
    tower = Adam(lr=0.01, eps=1e-3, tune=("lr", "eps")) / SGD(lr=0.02, tune=("lr",)) / SGD(lr=1e-3)
    optimizer = Hyperoptimizer(mine, tower, per=per)
    moments, projected, before = [(torch.zeros_like(w), torch.zeros_like(w)) for w in copies(mine)], 0, None
    for t in range(12):
        optimizer.zero_grad()
        loss(mine, t).backward()
        weights, grads, values = copies(mine), copies([p.grad for p in mine]), optimizer.hyperparameters()[0]
        optimizer.step()
        slopes, rate = optimizer.hypergradients(), optimizer.hyperparameters()[1]["lr"]
        if before is not None:
            used, size = before[-1], 1e-7
            assert loss(literal_step(*before), t).item() == pytest.approx(loss(weights, t).item(), rel=1e-12)
            high, low = (loss(literal_step(*before[:-1], used + s), t).item() for s in (size, -size))
            assert slopes[1]["lr"] == pytest.approx((high - low) / (2 * size), rel=1e-5, abs=1e-9)
        if t > 0:
            projected += values["eps"] - rate * slopes[0]["eps"] < 0
            before = weights, grads, moments, t + 1, values, slopes[0], rate
        moments = [(0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g) for (m, v), g in zip(moments, grads, strict=True)]
    assert projected > 2


def literal_step(weights, grads, moments, step, values, slopes, rate):
    """The weights after a step of Adam, whose lr and eps have just moved along `slopes` by `rate`."""
    lr, eps = (max(0.0, values[n] - rate * slopes[n]) for n in ("lr", "eps"))
    moved = []
    for w, g, (m, v) in zip(weights, grads, moments, strict=True):
        m, v = (0.9 * m + 0.1 * g) / (1 - 0.9**step), (0.999 * v + 0.001 * g * g) / (1 - 0.999**step)
        moved.append(w - lr * m / (v.sqrt() + eps))
    return moved


# ------------------------------------------------------------------------------------- changes in mid-training


@pytest.mark.parametrize(("shape", "how"), [((4, 3), "module"), ((4, 3), "data"), (LARGE, "module")], ids=str)
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=["double", "float"])
@pytest.mark.parametrize("tower", [
    SGD(lr=0.1), SGD(lr=0.1, momentum=0.9), Adam(lr=0.1), SGD(lr=0.1, tune=("lr",)) / SGD(lr=0.0),
    Adam(lr=0.1) / SGD(lr=0.0),
], ids=repr)  # fmt: skip
def test_a_model_of_another_dtype_in_mid_training_is_exact_or_an_error(tower, dtypes, how, shape):
    first, second = dtypes
    (start,) = make_params(shape, dtype=first)
    holder = nn.ParameterList([p := nn.Parameter(start.detach())])
    optimizer = Hyperoptimizer(holder.parameters(), tower)
    go(optimizer, 3)
    if how == "module":
        holder.to(second)
    else:
        p.data = p.data.to(second)
    p.grad = None
    before, memory = p.detach().clone(), {n: x.clone().double() for n, x in optimizer.state[p].items()}
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(second)
    p.grad = grad.clone()
    if (said := refusal(optimizer.step)) is not None:
        assert "float" in said
        assert torch.equal(p, before)
        return
    rule, g = optimizer.tower.rules[0], grad.double()
    if type(rule) is SGD:
        step = rule.lr * (rule.momentum * memory.get("momentum_buffer", 0) + g)
    else:
        m, v = 0.9 * memory["exp_avg"] + 0.1 * g, 0.999 * memory["exp_avg_sq"] + 0.001 * g * g
        step = rule.lr * m / (1 - 0.9**4) / ((v / (1 - 0.999**4)).sqrt() + rule.eps)
    assert p.dtype == second
    tolerance = 1e-14 if second == torch.float64 and "momentum" not in repr(rule) and type(rule) is SGD else 1e-6
    torch.testing.assert_close(p.detach().double(), before.double() - step, rtol=tolerance, atol=tolerance)


FLAGS = {
    "SGD": ({"momentum": 0.9}, "nesterov", True),
    "SGD, off": ({"momentum": 0.9, "nesterov": True}, "nesterov", False),
    "Muon": ({}, "nesterov", False),
    "RMSprop": ({}, "centered", True),
    "Adam": ({}, "amsgrad", True),
    "AdamW": ({"amsgrad": True}, "amsgrad", False),
    "NAdam": ({"weight_decay": 0.1}, "decoupled_weight_decay", True),
    "RAdam": ({"weight_decay": 0.1}, "decoupled_weight_decay", True),
    "Adadelta": ({}, "maximize", True),
    "SGD, climbing": ({}, "maximize", True),
    "Adam, climbing": ({}, "maximize", True),
}


@pytest.mark.parametrize("later", [0, 3])
@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize(("name", "options", "flag", "value"), [(n, *x) for n, x in FLAGS.items()], ids=FLAGS)
def test_a_flag_that_is_changed_later_is_in_force_or_an_error(name, options, flag, value, above, later):
    make, kind = pair(named(name.split(",")[0]), above, **options)
    mine, theirs = (make_params((4, 3), (2, 3)) for _ in range(2))
    optimizer, twin = make(mine), kind(theirs)
    assert flag in optimizer.param_groups[0]
    for o in (optimizer, twin):
        go(o, later)
        for group in o.param_groups:
            group[flag] = value
    before = copies(mine)
    if (said := refusal(lambda: go(optimizer, 2, later))) is not None:
        assert flag in said
        same(copies(mine), before)
        return
    try:
        go(twin, 2, later)
    except KeyError:  # torch has no place for what it would now have to remember
        return
    same(copies(mine), copies(theirs), **CLOSE)


BAD = {
    "lr": (SGD(lr=0.1), "lr", -0.1),
    "lr in a tower": (Adam(lr=0.1) / SGD(lr=1e-4), "lr", -0.1),
    "momentum": (SGD(lr=0.1, momentum=0.9), "momentum", 1.2),
    "tuned momentum": (SGD(lr=0.1, momentum=0.9) / SGD(lr=1e-4), "momentum", 1.2),
    "negative momentum": (SGD(lr=0.1, momentum=0.9), "momentum", -0.5),
    "decay": (AdamW(lr=0.1), "weight_decay", -0.1),
    "eps": (Adam(lr=0.1) / SGD(lr=1e-4), "eps", -1e-8),
    "alpha": (RMSprop(lr=0.1), "alpha", 1.5),
    "beta2": (Adam(lr=0.1), "beta2", 1.5),
    "betas": (Adam(lr=0.1) / SGD(lr=1e-4), "betas", (0.9, 1.5)),
    "Muon": (Muon(lr=0.1), "momentum", 1.5),
    "rho": (hg.Adadelta(lr=0.1), "rho", 1.5),
}


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(("tower", "name", "value"), BAD.values(), ids=BAD)
def test_a_value_that_is_not_allowed_is_an_error_before_anything_moves(tower, name, value, started):
    mine = make_params((4, 3), (2, 3))
    optimizer = Hyperoptimizer([{"params": mine[:1]}, {"params": mine[1:]}], tower)
    go(optimizer, 2 if started else 0)
    before, allowed = snapshot(optimizer), optimizer.param_groups[1][name]
    optimizer.param_groups[1][name] = value
    shown = value[1] if isinstance(value, tuple) else value
    for action in (lambda: go(optimizer, 1, 2), lambda: optimizer.hyperparameters(1)):
        with pytest.raises(ValueError, match=str(shown)):
            action()
    optimizer.param_groups[1][name] = allowed
    same(snapshot(optimizer), before)
    go(optimizer, 1, 2)


@pytest.mark.parametrize("tower", [None, AdamW(lr=0.1), Adam(lr=0.1) / SGD(lr=1e-4)], ids=str)
def test_a_schedule_that_ends_a_little_below_0_ends_at_0(tower):
    """Those of frameworks that round the number of steps up do; a training is not to be lost in its last step."""
    mine = make_params((4, 3))
    optimizer = Hyperoptimizer(mine, tower)
    go(optimizer, 2)
    full, before = optimizer.param_groups[0]["lr"], copies(mine)
    optimizer.param_groups[0]["lr"] = -0.03 * full
    go(optimizer, 2, 2)
    same(copies(mine), before)
    assert optimizer.hyperparameters()[0]["lr"] == 0
    for twin in (resumed(optimizer, mine), copy.deepcopy(optimizer)):
        assert twin.hyperparameters()[0]["lr"] == 0
    optimizer.param_groups.append(optimizer.param_groups.pop())
    go(optimizer, 1, 4)
    optimizer.param_groups = [{**optimizer.param_groups[0]}]
    go(optimizer, 1, 4)
    same(copies(mine), before)
    optimizer.param_groups[0]["lr"] = -0.3 * full
    with pytest.raises(ValueError, match="group 0: lr=-0"):
        go(optimizer, 1, 4)
    optimizer.param_groups[0]["lr"] = full
    go(optimizer, 2, 4)
    assert not torch.equal(mine[0], before[0])


ONE = {
    "momentum of SGD": ("SGD", {"momentum": 1.0}),
    "dampening of SGD": ("SGD", {"momentum": 0.9, "dampening": 1.0}),
    "alpha": ("RMSprop", {"alpha": 1.0, "eps": 1.0}),
    "momentum of RMSprop": ("RMSprop", {"momentum": 1.0}),
    "rho": ("Adadelta", {"rho": 1.0}),
    "momentum of Muon": ("Muon", {"momentum": 1.0, "eps": 1e-3}),
}


@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize(("name", "options"), ONE.values(), ids=ONE)
def test_coefficients_of_1_are_allowed_where_torch_allows_them(name, options, above):
    make, kind = pair(named(name), above, **options)
    mine, theirs = (make_params((4, 3), (2, 3)) for _ in range(2))
    for o in (make(mine), kind(theirs)):
        go(o, 4)
    same(copies(mine), copies(theirs), **CLOSE)


def test_a_momentum_may_be_set_to_1_later():
    mine, theirs = (make_params((4, 3)) for _ in range(2))
    for o in (Hyperoptimizer(mine, SGD(lr=0.01, momentum=0.9)), torch.optim.SGD(theirs, lr=0.01, momentum=0.9)):
        go(o, 2)
        o.param_groups[0]["momentum"] = 1.0
        go(o, 2, 2)
    same(copies(mine), copies(theirs), **CLOSE)


@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize("where", ["rule", "group"])
def test_an_lr_that_is_a_tensor_is_followed_or_refused(where, above):
    rate, mine = torch.tensor(0.1), make_params((4, 3))

    def make():
        rule = under(Adam(lr=rate if where == "rule" else 0.1), above)
        return Hyperoptimizer([{"params": mine, **({"lr": rate} if where == "group" else {})}], rule)

    try:
        optimizer = make()
    except ValueError as e:
        assert 'group["lr"]' in str(e).replace("'", '"')  # noqa: PT017 (either is right)
        return
    go(optimizer, 2)
    rate.mul_(0.5)
    assert lr(optimizer) == pytest.approx(0.05)


# ------------------------------------------------------------------------------------- messages


@dataclass(frozen=True)
class Counting(Rule):
    """Of a test."""

    lr: float = hyperparameter(1e-2, nonnegative)

    def init(self, param):
        return {"m": 0.0}

    def update(self, param, grad, state, c):
        m = state["m"] + grad
        return param - self.lr * m, {"m": m}


class Undecorated(Rule):
    """Of a test."""

    lr: float = hyperparameter(1e-2, nonnegative)

    def update(self, param, grad, state, c):
        return param - self.lr * grad, {}


def used(make):
    go(Hyperoptimizer(make_params((4, 3)), make()), 1)


MESSAGES = {
    "classes": (lambda: Adam / SGD, TypeError, "Adam()"),
    "a class below": (lambda: Adam / SGD(), TypeError, "Adam()"),
    "a class above": (lambda: Adam() / SGD, TypeError, "SGD()"),
    "a class above a tower": (lambda: Adam() / SGD() / SGD, TypeError, "SGD()"),
    "a class alone": (lambda: used(lambda: Adam), TypeError, "Adam()"),
    "an optimizer of torch": (
        lambda: Hyperoptimizer(torch.optim.Adam(make_params((4, 3))), Adam() / SGD()),
        TypeError,
        "from_torch",
    ),
    "an optimizer of torch as a rule": (
        lambda: Hyperoptimizer(make_params((4, 3)), torch.optim.Adam(make_params((4, 3)))),
        TypeError,
        "from_torch",
    ),
    "betas": (lambda: Adam(betas=(0.9, 0.99)), TypeError, "beta1"),
    "betas of AdamW": (lambda: AdamW(lr=0.1, betas=(0.9, 0.99)), TypeError, "beta1"),
    "betas of NAdam": (lambda: hg.NAdam(betas=(0.9, 0.99)), TypeError, "beta1"),
    "betas of Lion": (lambda: hg.Lion(betas=(0.9, 0.99)), TypeError, "beta1"),
    "no dataclass": (lambda: used(Undecorated), TypeError, "@dataclass"),
    "no dataclass, with a value": (lambda: used(lambda: Undecorated(lr=0.1)), TypeError, "@dataclass"),
    "no dataclass in a tower": (lambda: used(lambda: Undecorated() / SGD()), TypeError, "@dataclass"),
    "a number as state": (lambda: used(Counting), (TypeError, ValueError), "torch.zeros_like"),
    "a number as state, below": (lambda: used(lambda: Counting() / SGD()), (TypeError, ValueError), "torch.zeros_like"),
    "a number as state, above": (lambda: used(lambda: SGD() / Counting()), (TypeError, ValueError), "torch.zeros_like"),
}


@pytest.mark.parametrize(("action", "error", "words"), MESSAGES.values(), ids=MESSAGES)
def test_an_error_says_what_to_write_instead(action, error, words):
    with pytest.raises(error) as raised:
        action()
    assert words in str(raised.value)


def test_other_wrong_arguments_are_still_errors():
    with pytest.raises(TypeError, match="speed"):
        Adam(speed=1)
    with pytest.raises(TypeError):
        Adagrad(0.1, 0.0, 0.0, 0.0, 0.0, 0.0)


# ------------------------------------------------------------------------------------- bad gradients


@pytest.mark.parametrize("shape", [(4, 3), LARGE], ids=["small", "large"])
@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_sgd_without_momentum_forgets_a_bad_gradient(bad, above, shape):
    """The row of the issue: NaN for ever, from a momentum buffer that is not used."""
    mine = make_params(shape, (2, 3))
    optimizer = Hyperoptimizer(mine, under(SGD(lr=0.1), above))
    go(optimizer, 1)
    before = copies(mine)
    for p in mine:
        p.grad = torch.full_like(p, bad)
    optimizer.step()
    with torch.no_grad():
        for p, w in zip(mine, before, strict=True):
            p.copy_(w)
            p.grad = torch.ones_like(p)
    optimizer.step()
    same(copies(mine), [w - 0.1 for w in before], **CLOSE)


TERMS = [pytest.param(c, o, id=f"{c}-{o}") for c in ELEMENTWISE for o in c.options]


@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize(("case", "options"), TERMS)
def test_a_bad_gradient_does_what_it_does_with_torch(case, options, bad, above):
    """The weights are put back afterwards; a term that is off has no part in a step."""
    make, kind = pair(case, above, **options)
    runs = []
    for o in (make, kind):
        mine = make_params((4, 3), (2, 3))
        optimizer = o(mine)
        go(optimizer, 2)
        before = copies(mine)
        for p in mine:
            p.grad = torch.ones_like(p)
            p.grad[0, 0] = bad
        optimizer.step()
        with torch.no_grad():
            for p, w in zip(mine, before, strict=True):
                p.copy_(w)
        go(optimizer, 3, 3)
        runs.append(copies(mine))
    same(*runs, **CLOSE)


@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize("case", [named("SGD"), named("Adam"), named("RMSprop")], ids=str)
def test_a_bad_weight_stays_alone_where_there_is_no_decay(case, above):
    make, kind = pair(case, above)
    runs = []
    for o in (make, kind):
        mine = make_params((4, 3), (2, 3))
        optimizer = o(mine)
        for t in range(4):
            if t in (1, 2):
                before = mine[0].detach()[0, 0].clone()
                mine[0].data[0, 0] = torch.inf
            for p in mine:
                p.grad = torch.full_like(p, 1.0 + t)
            optimizer.step()
            if t in (1, 2):
                mine[0].data[0, 0] = before
        runs.append(copies(mine))
    same(*runs, **CLOSE)


@pytest.mark.parametrize("above", [None, SGD(lr=0.0)], ids=["alone", "tower"])
def test_a_variance_that_is_out_of_range_does_what_it_does_with_torch(above):
    rule, runs = RMSprop(lr=1e-2, centered=True), []
    for o in (
        lambda ps: Hyperoptimizer(ps, rule if above is None else rule / above),
        lambda ps: torch.optim.RMSprop(ps, lr=1e-2, centered=True),
    ):
        (p,) = make_params((40,), dtype=torch.float32)
        optimizer = o([p])
        for g in (5e29, 1.0):
            p.grad = torch.full_like(p, g)
            optimizer.step()
        runs.append(p.detach())
    same(*runs)


RANGE = [*((c, (4, 3), z) for c in ELEMENTWISE for z in (2e19, 3e38)), (named("Adam"), LARGE, 2e19)]


@pytest.mark.parametrize("above", [None, SGD(lr=0.0), SGD(lr=1e-3)], ids=["alone", "tower", "tuned"])
@pytest.mark.parametrize(("case", "shape", "size"), RANGE, ids=str)
def test_a_gradient_whose_square_is_out_of_range_does_what_it_does_with_torch(case, shape, size, above):
    """The row of the issue: Adam, 2e19 in float32, NaN one step later."""
    tuned = above is not None and above.lr != 0
    rule = case.rule(lr=1e-2, tune=("lr",), charts={"lr": POSITIVE}, normalize="cosine" if tuned else None)
    runs = []
    for o in (lambda ps: Hyperoptimizer(ps, rule if above is None else rule / above), pair(case)[1]):
        (p,) = make_params(shape, dtype=torch.float32)
        optimizer = o([p])
        for g in (1.0, size, 1.0, 1.0):
            p.grad = torch.ones_like(p)
            p.grad.view(-1)[:3] = g
            optimizer.step()
        runs.append(p.detach())
        if isinstance(optimizer, Hyperoptimizer):
            assert torch.tensor(lr(optimizer)).isfinite()
    if tuned:  # the step size is another one then, but weights are finite where they are with torch
        assert torch.equal(runs[0].isfinite(), runs[1].isfinite())
    else:
        same(*runs, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------- many digits

FINE = {
    "SGD": [{"momentum": 0.9999}, {"momentum": 0.999, "dampening": 0.999}],
    "Adam": [{"betas": (0.999, 0.9999)}, {"betas": (0.9, 0.99999), "amsgrad": True}],
    "AdamW": [{"betas": (0.9, 0.99999)}],
    "RMSprop": [{"alpha": 0.9999}, {"alpha": 0.99999, "momentum": 0.9}, {"alpha": 0.9999, "centered": True, "eps": 1e-3}],
    "Adagrad": [{"lr_decay": 1e-5}],
    "Adadelta": [{"rho": 0.9999}, {"rho": 0.99999}],
    "Adamax": [{"betas": (0.999, 0.9999)}, {"betas": (0.9, 0.99999)}],
    "NAdam": [{"betas": (0.9, 0.99999)}, {"betas": (0.999, 0.9999)}],
    "RAdam": [{"betas": (0.9, 0.9999)}, {"betas": (0.999, 0.9999)}],
    "Muon": [{"momentum": 0.9999}],
}


@pytest.mark.parametrize(("fine", "above"), crossed([(n, o) for n, x in FINE.items() for o in x], ABOVE), ids=str)
def test_coefficients_near_1_are_as_exact_in_float32_as_with_torch(fine, above):
    """After 300 steps, beside torch in float64. The row of the issue: RMSprop is off by 8e-5, torch by 1e-6."""
    name, options = fine
    make, kind = pair(named(name), above, **options)
    generator = torch.Generator().manual_seed(3)
    grads = [torch.randn(8, 6, generator=generator) for _ in range(300)]
    ends = []
    for o, dtype in ((make, torch.float32), (kind, torch.float32), (kind, torch.float64)):
        (p,) = make_params((8, 6), dtype=torch.float32)
        p = p.detach().to(dtype).requires_grad_()
        optimizer = o([p])
        for g in grads:
            p.grad = g.to(torch.float32).to(dtype)
            optimizer.step()
        ends.append(p.detach().double())
    mine, theirs = ((x - ends[2]).abs().max().item() for x in ends[:2])
    assert mine <= 3 * theirs + 1e-7


@pytest.mark.parametrize("above", ABOVE, ids=ABOVE_IDS)
@pytest.mark.parametrize("case", ELEMENTWISE, ids=str)
def test_a_parameter_that_is_its_own_gradient(case, above):
    """A decay by hand: ``p.grad = p.data``."""
    found = []
    for own in (True, False):
        p = torch.nn.Parameter(torch.randn(LARGE, generator=torch.Generator().manual_seed(0)))
        optimizer = Hyperoptimizer([p], under(case.rule(lr=0.01), above))
        for _ in range(3):
            p.grad = p.data if own else p.data.clone()
            optimizer.step()
        found.append(p.detach())
    torch.testing.assert_close(*found, rtol=0, atol=0)
