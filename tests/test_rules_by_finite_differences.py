"""Hypergradients of rules that are written as users may write them, by finite differences; and their `auto`."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import hypergradient as hg
from hypergradient import SGD, Averages, Hyperoptimizer, Rule, auto, hyperparameter, nonnegative, unit_interval


@dataclass(frozen=True)
class Lazy(Rule):
    """Its decay takes part in some steps alone."""

    lr: float = hyperparameter(0.01, nonnegative)
    decay: float = hyperparameter(0.5, nonnegative)
    period: int = 16

    def coefficients(self, step):
        return self.lr, self.lr * self.decay * self.period if step % self.period == 0 else 0.0

    def update(self, param, grad, state, c):
        return param - c[0] * grad - c[1] * param, state


@dataclass(frozen=True)
class Mean(Averages):
    """A plain mean at first, then an exponential one."""

    lr: float = hyperparameter(0.05, nonnegative)
    beta: float = hyperparameter(0.9, unit_interval)

    def init(self, param):
        return {"m": torch.zeros_like(param)}

    def coefficients(self, step):
        return (1 / step if step < 5 else 1 - self.beta,)

    def averages(self, grad, c):
        return {"m": (grad, c[0])}

    def displacement(self, state, c):
        return self.lr * state["m"]


@dataclass(frozen=True)
class Noisy(Mean):
    def coefficients(self, step):
        return (1 - self.beta,)

    def displacement(self, state, c):
        return super().displacement(state, c) * torch.empty_like(state["m"]).bernoulli_(0.5)


@dataclass(frozen=True)
class Newton(Mean):
    """What it divides by is handed in."""

    beta: float = hyperparameter(0.9, unit_interval, tuned=False)

    def init(self, param):
        return {"m": torch.zeros_like(param), "hessian": torch.ones_like(param)}

    def follows(self, others, averages):
        return {"hessian": others["hessian"]}

    def displacement(self, state, c):
        return super().displacement(state, c) / state["hessian"]


@dataclass(frozen=True)
class Factored(Averages):
    """Averages of two shapes, of one weight."""

    lr: float = hyperparameter(0.1, nonnegative)
    beta: float = hyperparameter(0.9, unit_interval)
    elementwise: ClassVar[bool] = False

    def init(self, param):
        return {"row": torch.zeros_like(param[:, :1]), "column": torch.zeros_like(param[:1])}

    def coefficients(self, step):
        return (1 - self.beta,)

    def averages(self, grad, c):
        return {n: ((grad * grad).mean(k, keepdim=True), c[0]) for n, k in (("row", 1), ("column", 0))}

    def displacement(self, state, c):
        return self.lr / torch.sqrt(state["row"] * state["column"] / state["row"].mean() + 1e-3)


def trained(rule, n, per="group", **nudge):
    """The loss after `n` steps, of which the last has other values by `nudge`; and what is said of that one."""
    p = torch.linspace(-1, 2, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    optimizer = Hyperoptimizer([p], rule / SGD(lr=0.0), per=per)
    (group,) = optimizer.param_groups
    before = {name: group[name] for name in nudge}
    optimizer.state[p]["step"] = torch.tensor(0.0)
    for t in range(1, n + 2):
        group.update({name: x + nudge[name] * (t == n) for name, x in before.items()})
        optimizer.zero_grad()
        loss = ((p - 1).square() * torch.arange(1.0, 7.0).view(3, 2)).sum() + p.sin().prod()
        loss.backward()
        if isinstance(rule, Newton):
            optimizer.state[p]["hessian"] = torch.full_like(p, 2.0 + t / 10)
        torch.manual_seed(t)
        optimizer.step()
    return loss.item(), optimizer.hypergradients()[0]


READS = {
    "equal": lambda x: torch.equal(x, torch.zeros_like(x)),
    "allclose": lambda x: torch.allclose(x, torch.zeros_like(x)),
    "is_nonzero": lambda x: not torch.is_nonzero(x),
    "nonzero": lambda x: len(x.nonzero()) == 0,
    "format": lambda x: f"{x:.0f}" == "0",
    "repr": lambda x: repr(x.item()) == "0.0",
    "contains": lambda x: 0 in x,
    "complex": lambda x: complex(x) == 0,
    "array": lambda x: np.asarray(x) == 0,
    "int": lambda x: int(x) == 0,
}


@dataclass(frozen=True)
class Reads(Lazy):
    """It reads the number of the step in one of many ways."""

    way: str = "int"

    def coefficients(self, step):
        takes_part = READS[self.way](step % self.period)
        return self.lr, self.lr * self.decay * self.period if takes_part else 0.0


STEPS = [(Reads(period=7, way=way), 7) for way in READS]
STEPS += [*((Lazy(period=k), n) for k, n in ((7, 7), (7, 9), (10, 10), (16, 16))), (Mean(), 3), (Mean(), 8)]
STEPS += [(Noisy(), 5), (Newton(), 5), (Factored(), 3), (Factored(horizon=3, tune="lr"), 1)]


@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize(("rule", "n"), STEPS, ids=str)
def test_a_hypergradient_is_that_of_finite_differences(rule, n, per):
    _, found = trained(rule, n, per)
    for name in rule.tuned():
        above, below = (trained(rule, n, **{name: x})[0] for x in (1e-6, -1e-6))
        value = found[name][0] if per == "tensor" else found[name]
        assert value == pytest.approx((above - below) / 2e-6, rel=1e-6, abs=1e-9), name


@dataclass(frozen=True)
class Sphere(Rule):
    """It mixes the elements of a parameter in some steps alone."""

    lr: float = hyperparameter(0.01, nonnegative)
    period: int = 7

    def coefficients(self, step):
        return (step % self.period,)

    def update(self, param, grad, state, c):
        new = param - self.lr * grad
        return new / new.norm() if c[0] == 0 else new, state


@pytest.mark.parametrize("tower", [Sphere(), Sphere() / SGD(lr=0.0)], ids=["alone", "tower"])
def test_what_mixes_elements_in_some_steps_alone_mixes_those_of_each_parameter(tower):
    params = [torch.ones(n, requires_grad=True) for n in (4, 9)]
    optimizer = Hyperoptimizer(params, tower)
    for _ in range(7):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert [p.norm().item() for p in params] == pytest.approx([1, 1])


@dataclass(frozen=True)
class Cyclic(Rule):
    lr: float = hyperparameter(0.1, nonnegative)

    def coefficients(self, step):
        return self.lr, int(step) % 3

    def update(self, param, grad, state, c):
        return param - c[0] * torch.where(c[1] == 0, grad, 2 * grad), state


def test_a_coefficient_that_is_a_plain_number_is_a_tensor_in_every_step():
    p = torch.zeros(3, requires_grad=True)
    optimizer = Hyperoptimizer([p], Cyclic() / SGD(lr=0.0))
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
    assert p.tolist() == pytest.approx([-0.5] * 3)


# ------------------------------------------------------------------------------------------------- `auto` of them


@dataclass(frozen=True)
class Signs(Rule):
    """Its decay is not multiplied by what it calls its multiplier; off, where it is 0."""

    lr: float = hyperparameter(1e-3, nonnegative)
    weight_decay: float = hyperparameter(0.0, nonnegative, tuned=False)
    multiplier: ClassVar[str] = "lr"

    def update(self, param, grad, state, c):
        return param * (1 - self.weight_decay) - self.lr * grad.sign(), state


@pytest.mark.parametrize("when", ["built", "later"])
def test_a_multiplier_that_is_none_in_a_group_is_told(when):
    p = torch.ones(3, requires_grad=True)
    optimizer = Hyperoptimizer([{"params": [p], "weight_decay": 0.05 * (when == "built")}], auto(Signs()))
    p.grad = torch.ones(3)
    if when == "later":
        optimizer.step()
        optimizer.param_groups[0]["weight_decay"] = 0.05
    before = p.tolist()
    with pytest.raises(ValueError, match=r"multiplier='lr' does not multiply all .* Write multiplier = None"):
        optimizer.step()
    assert p.tolist() == before


@dataclass(frozen=True)
class Scaled(Rule):
    """Its preconditioner is made in one of some ways."""

    lr: float = hyperparameter(1e-3, nonnegative)
    way: str = "number"

    def init(self, param):
        return {"a": torch.zeros_like(param)}

    def usual(self, grad, state):
        return 0.9 * state["a"] + 0.1 * grad.abs()

    def preconditioner(self, grad, state, step, c):
        usual = self.usual(grad, state)
        made = {"number": grad.new_tensor(2.0), "numbers": torch.full_like(grad, 2.0), "zeros": usual, "tiny": usual + 1e-30}
        mean = usual.mean() + 1e-8
        later = None if step <= 1 else torch.full_like(grad, 2.0)
        made |= {"integers": torch.full_like(grad, 2).long(), "later": later}
        return {**made, "mean": mean, "means": mean.expand_as(grad)}[self.way]

    def update(self, param, grad, state, c):
        return param - self.lr * grad.sign(), {"a": self.usual(grad, state)}


def found_by_auto(rule, per="group"):
    """The step sizes after some steps, along gradients of which one is always 0."""
    torch.manual_seed(0)
    params = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (4, 9)]
    optimizer = Hyperoptimizer(params, auto(rule), per=per)
    for _ in range(40):
        for p in params:
            p.grad = p.detach().clone()
            p.grad[0] = 0
        optimizer.step()
    return optimizer.hyperparameters()[0]["lr"]


@dataclass(frozen=True)
class Apart(Scaled):
    elementwise: ClassVar[bool] = False


@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Scaled(way="number"), Scaled(way="numbers")),
        (Scaled(way="zeros"), Scaled(way="tiny")),
        (Scaled(way="integers"), Scaled(way="numbers")),
        (Scaled(way="later"), Apart(way="later")),
        (Scaled(way="mean"), Apart(way="means")),
        (Scaled(way="means"), Apart(way="means")),
    ],
    ids=str,
)
def test_a_preconditioner_may_be_one_number_or_0_or_of_a_parameter_as_a_whole(one, other, per):
    lr = found_by_auto(one, per)
    assert lr == pytest.approx(found_by_auto(other, per), rel=1e-6)
    assert min(lr if per == "tensor" else [lr]) > 1e-3


def test_a_preconditioner_is_not_asked_where_nothing_needs_it():
    @dataclass(frozen=True)
    class Broken(Scaled):
        def preconditioner(self, grad, state, step, c):
            raise KeyError("v")

    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    Hyperoptimizer([p], Broken() / SGD(lr=1e-3)).step()


@dataclass(frozen=True)
class Unset(Scaled):
    """A rule whose default says nothing of its step size."""

    lr: float = hyperparameter(0.0, nonnegative)


def test_auto_finds_a_step_size_where_the_default_is_0():
    assert found_by_auto(Unset(lr=0.1, way="numbers")) > 1e-3


@dataclass(frozen=True)
class Damped(Rule):
    lr: float = hyperparameter(0.1, nonnegative)
    r: float = hyperparameter(0.5, unit_interval, tuned=False)

    def update(self, param, grad, state, c):
        return param - self.lr * grad / (grad.abs() + self.r), state


def test_auto_changes_an_r_of_averages_alone():
    assert auto(Damped()).rules[0].r == 0.5
    assert auto(hg.SGDScheduleFree()).rules[0].r == 4


# --------------------------------------------------------------------------------------- what is told, and what is not


@dataclass(frozen=True)
class Begun(Rule):
    """Its state begins with the value of a hyperparameter."""

    lr: float = hyperparameter(0.1, nonnegative)
    start: float = hyperparameter(1.0, nonnegative, tuned=None)

    def init(self, param):
        return {"v": torch.full_like(param, self.start)}

    def update(self, param, grad, state, c):
        return param - self.lr * grad / state["v"], state


def test_what_begins_with_a_value_of_its_group_does():
    p, q = (torch.ones(1, requires_grad=True) for _ in range(2))
    optimizer = Hyperoptimizer([{"params": [p], "start": 4.0}, {"params": [q]}], Begun())
    p.grad = q.grad = torch.ones(1)
    optimizer.step()
    assert [p.item(), q.item()] == pytest.approx([1 - 0.1 / 4, 1 - 0.1])


def test_a_setting_that_is_a_tensor_is_told():
    with pytest.raises(TypeError, match=r"period=tensor\(7\) is not allowed; it must be hashable, .* and no tensor"):
        Lazy(period=torch.tensor(7))


def test_settings_are_printed_where_they_are_not_the_default():
    p = torch.ones(2, 2, requires_grad=True)
    for rule, said in ((Lazy(period=7), "period=7"), (SGD(momentum=0.9, nesterov=True), "nesterov=True")):
        assert said in str(Hyperoptimizer([p], rule / SGD(lr=1e-3)))
        assert said.partition("=")[0] not in str(Hyperoptimizer([p], type(rule)()))


@dataclass(frozen=True)
class Langevin(Rule):
    lr: float = hyperparameter(0.1, nonnegative)

    def update(self, param, grad, state, c):
        return param - self.lr * grad + torch.sqrt(2 * self.lr) * torch.randn_like(param), state


def test_random_numbers_are_drawn_by_steps_alone():
    """Not where a rule is looked at, nor by a copy, nor where a checkpoint is loaded."""

    def run(meanwhile):
        torch.manual_seed(0)
        p = torch.ones(3, requires_grad=True)
        optimizer = Hyperoptimizer([p], Langevin())
        for t in range(4):
            if t == 2:
                optimizer = meanwhile(optimizer) or optimizer
            p.grad = p.detach().clone()
            optimizer.step()
        return p.tolist()

    def resumed(optimizer):
        known, drawn = optimizer.state_dict(), torch.get_rng_state()
        again = Hyperoptimizer(optimizer.param_groups[0]["params"], Langevin())
        torch.set_rng_state(drawn)
        again.load_state_dict(known)
        return again

    torch.manual_seed(0)
    x = torch.ones(3)
    for _ in range(4):
        x = x - 0.1 * x + 0.2**0.5 * torch.randn(3)
    for meanwhile in (lambda _: None, lambda o: copy.deepcopy(o) and None, resumed):
        assert run(meanwhile) == pytest.approx(x.tolist())


def test_a_rule_that_looks_at_its_step_is_written_as_one_that_does_not():
    """`if` and `torch.where` are the same run."""

    @dataclass(frozen=True)
    class Chosen(Lazy):
        def coefficients(self, step):
            return self.lr, torch.where(step % self.period == 0, self.lr * self.decay * self.period, 0.0)

    one, other = (trained(replace(kind(period=3), tune=("lr", "decay")), 6) for kind in (Lazy, Chosen))
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    assert one[1] == pytest.approx(other[1], rel=1e-12)
