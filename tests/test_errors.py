"""Bad input: an error that names argument, value and what is allowed, before any state has changed."""

import copy
import re
from dataclasses import dataclass

import pytest
import torch
from cases import parameters, train
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, Transform

from hypergradient import (
    POSITIVE,
    SGD,
    UNIT,
    Adam,
    AdamW,
    Hyperoptimizer,
    Muon,
    Rule,
    Tower,
    auto,
    from_torch,
    hyperparameter,
    nonnegative,
)


class Unsigned(Transform):
    """Doubles, and does not say that it rises."""

    domain = codomain = constraints.real
    bijective = True

    def _call(self, x):
        return 2 * x

    def _inverse(self, y):
        return y / 2

    def log_abs_det_jacobian(self, x, y):
        return torch.full_like(x, 2.0).log()


BAD = {
    "negative lr": (lambda: Adam(lr=-1.0), ValueError, r"Adam: lr=-1.0 .* \[0, inf\)"),
    "lr nan": (lambda: SGD(lr=float("nan")), ValueError, r"SGD: lr=nan .* finite"),
    "lr text": (lambda: SGD(lr="fast"), ValueError, r"SGD: lr='fast'"),
    "lr bool": (lambda: SGD(lr=True), ValueError, r"SGD: lr=True"),
    "beta 1": (lambda: Adam(beta1=1.0), ValueError, r"Adam: beta1=1.0 .* \[0, 1\)"),
    "unknown tune": (
        lambda: Adam(tune=("lr", "speed")),
        ValueError,
        r"tune names 'speed'.*lr, beta1, beta2, eps, weight_decay",
    ),
    "no names": (lambda: SGD(tune=5), TypeError, r"SGD: tune=5 .* names of hyperparameters"),
    "no charts": (lambda: SGD(charts=None), TypeError, r"SGD: charts=None .* a dict"),
    "unknown chart": (
        lambda: Adam(charts={"speed": POSITIVE}),
        ValueError,
        "charts names 'speed'.*lr, beta1, beta2, eps, weight_decay",
    ),
    "chart without a sign": (lambda: SGD(charts={"lr": Unsigned()}), TypeError, r"charts: Unsigned\(\) lacks .* sign"),
    "not a chart": (lambda: Adam(charts={"lr": "log"}), TypeError, r"'log' is not a chart.*REAL, POSITIVE, UNIT"),
    "horizon": (lambda: Adam(horizon=0.5), ValueError, r"horizon=0.5 .* \[1, inf\], or Age"),
    "normalize": (lambda: Adam(normalize="max"), ValueError, r"normalize='max'.*'cosine'"),
    "unknown argument": (lambda: Adam(speed=1), TypeError, "Adam has no argument 'speed'; allowed: lr, .*amsgrad, tune, "),
    "positional class": (lambda: Adam() / 3, TypeError, "made of rules such as .*; got 3$"),
    "dict with unknown name": (
        lambda: SGD(tune="lr") / SGD(lr={"lr": 1e-3, "beta1": 0.1}),
        ValueError,
        r"values for lr, beta1;.*lr$",
    ),
    "dict without a name": (lambda: Adam() / SGD(lr={"lr": 1e-3}), ValueError, "values for lr;.*: lr, beta1, beta2$"),
    "dict with a bad value": (lambda: SGD(lr={"lr": -1.0}), ValueError, r"lr\['lr'\]=-1.0"),
    "dict below": (
        lambda: Hyperoptimizer(parameters(), SGD(lr={"lr": 1.0})),
        ValueError,
        r"group 0: lr=\{'lr': 1.0\} is not allowed",
    ),
    "nothing to tune": (lambda: SGD(tune=()) / SGD(), ValueError, r"nothing to tune: SGD\("),
    "matrices above": (lambda: SGD() / Muon(), ValueError, "cannot tune another rule"),
    "no tower": (lambda: Hyperoptimizer(parameters(), Tower(())), ValueError, "at least one rule"),
    "maximize": (lambda: Hyperoptimizer(parameters(), maximize="no"), ValueError, "group 0: maximize='no' .* True or False"),
    "compile": (lambda: Hyperoptimizer(parameters(), compile="yes"), ValueError, "compile='yes' .* True or False"),
    "per": (lambda: Hyperoptimizer(parameters(), SGD(), per="layer"), ValueError, "per='layer'.*'all', 'group' or 'tensor'"),
    "no parameters": (lambda: Hyperoptimizer([], SGD()), ValueError, "empty parameter list"),
    "non-leaf": (lambda: Hyperoptimizer([parameters()[0] * 2], SGD()), ValueError, "non-leaf"),
    "group lr": (lambda: Hyperoptimizer([{"params": parameters(), "lr": -1}], SGD()), ValueError, r"group 0: lr=-1"),
    "group betas": (
        lambda: Hyperoptimizer([{"params": parameters(), "betas": (2, 0)}], Adam()),
        ValueError,
        "group 0: beta1=2",
    ),
    "group flag": (
        lambda: Hyperoptimizer([{"params": parameters(), "nesterov": True}], SGD()),
        ValueError,
        "SGD: nesterov=True needs a momentum",
    ),
    "Muon and vectors": (
        lambda: Hyperoptimizer(parameters(), Muon()),
        ValueError,
        r"parameter 1 of group 0 .*\(4,\).*'rule': AdamW",
    ),
    "nesterov": (lambda: SGD(nesterov=True), ValueError, "SGD: nesterov=True needs a momentum, and dampening=0"),
    "UNIT and 0": (
        lambda: Hyperoptimizer(parameters(), Adam(beta1=0.0, tune="beta1", charts={"beta1": UNIT}) / SGD()),
        ValueError,
        "Adam: the chart UNIT cannot hold beta1=0.0",
    ),
    "twice": (lambda: SGD(tune=("lr", "lr")), ValueError, r"tune=\('lr', 'lr'\) names a hyperparameter twice"),
    "flag": (lambda: Adam(amsgrad="no"), ValueError, "amsgrad='no' .* True or False"),
    "Muon's lr": (lambda: Muon(adjust_lr_fn="typo"), ValueError, "adjust_lr_fn='typo'.*'original'"),
    "complex lr": (lambda: SGD(lr=torch.tensor(1j)), ValueError, r"SGD: lr=tensor\(.*\) is not allowed"),
    "no group": (
        lambda: Hyperoptimizer(parameters(), SGD()).add_param_group(parameters()),
        TypeError,
        "group 1: a group is a dict",
    ),
    "no params": (lambda: Hyperoptimizer([{"lr": 1.0}], SGD()), TypeError, "group 0: a group is a dict with 'params'"),
    "no twin": (
        lambda: from_torch(torch.optim.LBFGS(parameters())),
        TypeError,
        "LBFGS has no rule of its name; allowed: .*AdamW",
    ),
    "an lr": (lambda: Hyperoptimizer(parameters(), lr=1e-3), TypeError, "no argument lr; allowed: params.* It finds the lr"),
    "a value of the rule": (
        lambda: Hyperoptimizer(parameters(), weight_decay=0.1),
        TypeError,
        r"no argument weight_decay; .*auto\(weight_decay=0.1\)",
    ),
    "no optimizer": (lambda: from_torch(parameters()), TypeError, "optimizer=list is not one of torch.optim"),
    "ours already": (
        lambda: from_torch(Hyperoptimizer(parameters())),
        TypeError,
        "optimizer=Hyperoptimizer is not one of torch",
    ),
    "no option": (
        lambda: from_torch(torch.optim.AdamW(parameters()), weight_decay=0.1),
        TypeError,
        "from_torch takes no weight_decay; allowed: above, per, compile, charts.*Give it to the optimizer",
    ),
    "auto above": (
        lambda: from_torch(torch.optim.AdamW(parameters()), auto()),
        ValueError,
        "above=.*Tuner.* is not allowed; leave it out: AdamW itself is then tuned by auto",
    ),
    "no such group": (
        lambda: Hyperoptimizer(parameters()).hyperparameters(1),
        IndexError,
        "group=1 is not allowed; it must be less than 1, the number of groups",
    ),
    "no call": (
        lambda: Hyperoptimizer(torch.nn.Linear(1, 1).parameters),
        TypeError,
        r"params=method is a function.*write Hyperoptimizer\(model.parameters\(\)\)",
    ),
    "a dict": (lambda: Hyperoptimizer({"params": parameters()}), TypeError, r"params=dict is a dict: write .*\[\{'params'"),
    "parameters for a rule": (lambda: Adam(parameters(), lr=1e-3), TypeError, r"Adam is a rule.*Hyperoptimizer\(params, Adam"),
    "an optimizer as tower": (
        lambda: Hyperoptimizer(parameters(), torch.optim.Adam(parameters())),
        TypeError,
        r"got Adam: write from_torch\(optimizer",
    ),
    "not a rule": (
        lambda: Hyperoptimizer(parameters(), torch.optim.Adam),
        TypeError,
        r"made of rules such as .*; got <class .*Adam'>: write from_torch\(optimizer",
    ),
    "a loss for a closure": (
        lambda: Hyperoptimizer(parameters()).step(torch.ones(())),
        TypeError,
        r"closure=tensor\(1.\) is not allowed.*loss.backward\(\), then step",
    ),
    "a checkpoint of all": (
        lambda: Hyperoptimizer(parameters()).load_state_dict({"model": 1, "optimizer": 2}),
        TypeError,
        r"state_dict has no 'state'; .*checkpoint\['optimizer'\]",
    ),
    "a path": (
        lambda: Hyperoptimizer(parameters()).load_state_dict("x.pt"),
        TypeError,
        r"state_dict='x.pt' is not allowed; .*checkpoint\['optimizer'\]",
    ),
    "under another tower": (
        lambda: Hyperoptimizer([{"params": parameters(), "rule": Adam() / SGD(lr=0.1)}], Adam() / SGD(lr=0.2)),
        ValueError,
        r"group 0: rule=Adam.* is under another tower than .*SGD\(lr=0.2\)",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def snapshot(optimizer):
    groups = [{n: v for n, v in group.items() if n != "param_names"} for group in optimizer.param_groups]
    return copy.deepcopy([optimizer.state_dict()["state"], groups])


def unchanged(optimizer, params, action, error, message):
    train(optimizer, params, 3)
    before = snapshot(optimizer)
    with pytest.raises(error, match=message):
        action()
    torch.testing.assert_close(snapshot(optimizer), before, rtol=0, atol=0, equal_nan=True)
    train(optimizer, params, 3)


def test_sparse_gradients_are_refused_before_anything_moves():
    mine = parameters()
    optimizer = Hyperoptimizer([("a", mine[0]), *((f"p{i}", p) for i, p in enumerate(mine[1:]))], Adam() / SGD(lr=1e-5))

    def step():
        mine[2].grad = torch.zeros(4, 2).to_sparse()
        optimizer.step()

    unchanged(optimizer, mine, step, RuntimeError, r"p1 has a gradient of layout torch.sparse_coo.*sparse=False.*SparseAdam")


def test_a_bad_group_is_not_added():
    mine = parameters()
    optimizer = Hyperoptimizer(mine[:3], Adam() / SGD(lr=1e-5))
    unchanged(
        optimizer, mine, lambda: optimizer.add_param_group({"params": mine[3:], "lr": -1.0}), ValueError, "group 1: lr=-1.0"
    )
    unchanged(optimizer, mine, lambda: optimizer.add_param_group({"params": mine[:1]}), ValueError, "more than one")


WRONG = [
    ("lr", None), ("lr", "0.1"), ("lr", torch.tensor([0.1, 0.2])), ("lr", -1.0), ("betas", (0.9,)), ("betas", 0.9),
    ("maximize", "no"), ("maximize", None)
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
@pytest.mark.parametrize("tower", [None, Adam() / SGD(lr=1e-5)], ids=["default", "tower"])
def test_what_a_checkpoint_or_a_group_says_wrongly_is_named_as_it_stands_there(tower, name, value):
    mine = parameters()
    optimizer = Hyperoptimizer(mine[:3], tower)
    train(optimizer, mine, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0][name] = value
    for where, do in (
        ("group 0", lambda: optimizer.load_state_dict(saved)),
        ("group 1", lambda: optimizer.add_param_group({"params": mine[3:], name: value})),
    ):
        message = rf"{where}: {name}={re.escape(repr(value))} is not allowed; it must be"
        unchanged(optimizer, mine, do, ValueError, message)


def test_an_initial_value_that_is_not_allowed_is_named():
    mine = parameters()
    optimizer = Hyperoptimizer(mine[:3])
    group = {"params": mine[3:], "lr": 0.1, "initial_lr": -1.0}
    unchanged(optimizer, mine, lambda: optimizer.add_param_group(group), ValueError, "group 1: initial_lr=-1.0 is not allowed")


@pytest.mark.parametrize(
    ("name", "value"), [("lr", None), ("lr", "1e-3"), ("beta1", [0.9]), ("betas", ("0.9", 0.999)), ("maximize", "no")]
)
def test_what_is_no_number_is_named_in_the_next_step(name, value):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, Adam() / SGD(lr=1e-5))

    def step():
        before, optimizer.param_groups[0][name] = optimizer.param_groups[0][name], value
        try:
            optimizer.step()
        finally:
            optimizer.param_groups[0][name] = before

    said = "beta1='0.9'" if name == "betas" else f"{name}={value!r}"
    unchanged(optimizer, mine, step, ValueError, rf"group 0: {re.escape(said)} is not allowed; it must be")


OTHERS = {
    "another rule": (
        Adam() / SGD(lr=1e-5),
        AdamW() / SGD(lr=1e-5),
        r"it has level 1: SGD\[\] moves AdamW\[.*where this optimizer has level 1: SGD\[\] moves Adam\[",
    ),
    "another level": (Adam() / SGD(lr=1e-5), Adam() / Adam(lr=1e-5), r"it has level 1: Adam\[\] moves Adam"),
    "another height": (
        Adam() / SGD(lr=1e-5),
        Adam() / SGD(lr=1e-5) / SGD(lr=1e-9),
        r"it has level 1: SGD\[lr REAL\] moves.*level 2: SGD\[\] moves SGD",
    ),
    "tuned otherwise": (Adam() / SGD(lr=1e-5), Adam(tune="lr") / SGD(lr=1e-5), r"moves Adam\[lr REAL\] where"),
    "another chart": (SGD() / SGD(lr=1e-5), SGD(charts={"lr": POSITIVE}) / SGD(lr=1e-5), r"moves SGD\[lr POSITIVE\] where"),
    "a horizon": (Adam() / SGD(lr=1e-5), Adam(horizon=9) / SGD(lr=1e-5), r"horizon=9\] where"),
    "arguments of a chart": (
        SGD(charts={"lr": AffineTransform(0, 2)}) / SGD(lr=1e-5),
        SGD(charts={"lr": AffineTransform(0, 4)}) / SGD(lr=1e-5),
        r"AffineTransform\(loc=0, scale=4\)\] where",
    ),
    "another rule alone": (AdamW(), Adam(), "of another rule: in group 0 it has Adam where this optimizer has AdamW"),
    "untuned": (Adam() / SGD(lr=1e-5), Adam(), r"it has nothing where this optimizer has level 1: SGD\[\] moves Adam"),
}


@pytest.mark.parametrize(("mine", "other", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_the_state_of_another_tower_is_refused(mine, other, message):
    params, theirs = parameters(), parameters()
    optimizer, another = Hyperoptimizer(params, mine), Hyperoptimizer(theirs, other)
    train(another, theirs, 3)
    unchanged(optimizer, params, lambda: optimizer.load_state_dict(another.state_dict()), ValueError, message)


def test_the_state_of_another_rule_may_be_left_out():
    """As the error says."""
    params, theirs = parameters(), parameters()
    optimizer, another = Hyperoptimizer(params, Adam()), Hyperoptimizer(theirs, SGD(momentum=0.9))
    train(another, theirs, 3)
    with pytest.raises(ValueError, match=r"of another rule: .* or with .state.: \{\} to begin anew"):
        optimizer.load_state_dict(another.state_dict())
    optimizer.load_state_dict({**another.state_dict(), "state": {}})
    train(optimizer, params, 1)


def test_the_state_of_other_sets_is_refused():
    mine, theirs = parameters(), parameters()
    optimizer, another = Hyperoptimizer(mine, SGD() / SGD(lr=1e-5)), Hyperoptimizer(theirs, SGD() / SGD(lr=1e-5), per="tensor")
    train(another, theirs, 2)
    unchanged(
        optimizer,
        mine,
        lambda: optimizer.load_state_dict(another.state_dict()),
        ValueError,
        r"level 1: SGD\[\] moves SGD.*\(6, 4\).*here.*\(6, 1\).*`per`",
    )


@dataclass(frozen=True)
class Odd(Rule):
    """What it remembers depends on `names`: before the first step, after it."""

    lr: float = hyperparameter(0.1, nonnegative)
    names: tuple = ("m", "m")

    def init(self, param):
        return {self.names[0]: torch.zeros_like(param)}

    def update(self, param, grad, state, c):
        return param - self.lr * grad, {self.names[1]: grad.clone()}


ODD = {
    "another state": (("m", "b"), r"Odd: init returns a state of \['m'\], update one of \['b'\]"),
    "a reserved name": (("numbers", "numbers"), "Odd: the state 'numbers' has a name that is kept for the optimizer"),
    "a reserved prefix": (("last_x", "last_x"), "Odd: the state 'last_x' has a name"),
    "a number as a name": ((0, 0), "Odd: the state 0 has a name that is kept .*or that is no string"),
}


@pytest.mark.parametrize(("names", "message"), ODD.values(), ids=ODD.keys())
def test_a_state_that_cannot_be_kept_is_told(names, message):
    mine = parameters()
    before = [p.detach().clone() for p in mine]
    optimizer = Hyperoptimizer(mine, Odd(names=names) / SGD(lr=1e-3))
    with pytest.raises(ValueError, match=message):
        train(optimizer, mine, 1)
    torch.testing.assert_close([p.detach() for p in mine], before, rtol=0, atol=0)


TAKEN = {"params": "", "rule": "", "betas": ": write beta1, beta2, …", "maximize": "", "learned": "", "initial_speed": ""}


@pytest.mark.parametrize("name", TAKEN)
def test_a_field_of_a_rule_whose_name_is_kept_for_groups_is_told(name):
    """A tuple of betas could be trained with, and not be saved."""
    value = (0.9, 0.99) if name == "betas" else hyperparameter(0.5, nonnegative)
    body = {"__annotations__": {"speed": float, name: object}, "speed": hyperparameter(0.1, nonnegative), name: value}
    kind = dataclass(frozen=True)(type("Named", (SGD,), body))
    with pytest.raises(TypeError, match=f"Named has a field '{name}', a name that is kept .*{TAKEN[name]}"):
        kind()


def test_a_constraint_that_is_none_is_told():
    with pytest.raises(TypeError, match="hyperparameter: constraint='positive' is not allowed; it must be real, nonnegative"):
        hyperparameter(0.5, "positive")


def test_a_rule_without_an_update_is_told():
    @dataclass(frozen=True)
    class Empty(Rule):
        lr: float = hyperparameter(0.1, nonnegative)

    with pytest.raises(TypeError, match="Empty has no update"):
        Empty()


def test_a_value_of_a_level_that_is_not_allowed_is_not_loaded():
    mine, theirs = parameters(), parameters()
    optimizer, another = (Hyperoptimizer(params, Adam() / SGD(lr=1e-5)) for params in (mine, theirs))
    train(another, theirs, 2)
    saved = copy.deepcopy(another.state_dict())
    next(iter(saved["param_groups"][0]["learned"]["levels"].values()))["values"]["lr"] = -1.0
    unchanged(optimizer, mine, lambda: optimizer.load_state_dict(saved), ValueError, r"SGD: lr=-1.0 is not allowed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.nn.Linear(2, 2),), r"params=Linear is a module: write Hyperoptimizer\(model\.parameters\(\)\)"),
        (
            ([torch.ones(2, requires_grad=True)], 1e-3),
            r"got 0\.001: it finds the lr; leave it out, or start at one with auto\(lr=…\)",
        ),
    ],
    ids=["a module", "an lr"],
)
def test_what_was_an_argument_of_torch_is_told(arguments, message):
    with pytest.raises(TypeError, match=message):
        Hyperoptimizer(*arguments)
