"""Towers against the reference implementation: every loss and every learned value of 200 steps.

The reference is the code that came with the paper, PyPI `gradient-descent-the-ultimate-optimizer` 1.0, on an MLP. Its own
parametrization is expressed with options, charts and the two rules below. The paths agree in float32 up to the rounding of
200 steps (below 5e-7, relative), and in float64 nothing is left of the difference (below 1e-15).
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from torch import nn
from torch.distributions.transforms import AffineTransform, ComposeTransform, PowerTransform, TanhTransform

from hypergradient import REAL, SGD, Adagrad, Adam, Hyperoptimizer, RMSprop, Tower

STEPS = 200
SQUARE = PowerTransform(2)
TANH = ComposeTransform([TanhTransform(), AffineTransform(0.5, 0.5)])
THEIRS = {"lr": "alpha", "momentum": "mu", "alpha": "gamma"}


@dataclass(frozen=True)
class ReferenceAdam(Adam):
    """Adam with a second moment that starts at 1e-8.

    Nothing depends on the hyperparameters in the first step, and we move none; the reference moves them all, along a
    gradient of 0. As it takes a step for an effect to reach the next level, level k has made k such steps, `ahead`, before
    its first real one. They leave everything as it was, but count, and the second moment decays in them.
    """

    ahead: int = 0

    def init(self, param):
        return {**super().init(param), "exp_avg_sq": torch.full_like(param, 1e-8 * self.beta2**self.ahead)}

    def coefficients(self, step):
        return super().coefficients(step + self.ahead)


@dataclass(frozen=True)
class ReferenceRMSprop(RMSprop):
    """RMSprop with its eps, 1e-8, inside the square root."""

    def update(self, param, grad, state, c):
        s = self.alpha * state["square_avg"] + (1 - self.alpha) * grad * grad
        return param - self.lr * grad / torch.sqrt(s + self.eps), {**state, "square_avg": s}


# Levels: our rule and the reference's class with its arguments.


def sgd(lr, momentum=0.0):
    return SGD(lr=lr, momentum=momentum, charts={"momentum": REAL}), partial(gdtuo.SGD, lr, momentum)


def adagrad(lr):
    # The reference divides by sqrt(G + 1e-10) with a G that starts at 0.1.
    return Adagrad(lr=lr, initial_accumulator_value=0.1 + 1e-10, eps=0), partial(gdtuo.AdaGrad, lr)


def adam(lr, level=0):
    return ReferenceAdam(lr=lr, ahead=level, charts={"beta1": TANH, "beta2": TANH}), partial(gdtuo.Adam, lr)


def rmsprop(lr):
    return ReferenceRMSprop(lr=lr, charts={"lr": SQUARE, "alpha": TANH}), partial(gdtuo.RMSProp, lr)


# Calm enough for no step size to turn negative: there the reference goes on, climbing, and ours is projected back.
TALL = {
    "SGD": [sgd(0.1), sgd(0.01), sgd(0.03), sgd(3.0), sgd(3e5)],
    "Adagrad": [adagrad(0.05), adagrad(3e-3), adagrad(1e-3), adagrad(1e-3), adagrad(1e-3)],
    "Adam": [adam(3e-3), adam(3e-5, 1), adam(3e-7, 2), adam(3e-9, 3), adam(3e-11, 4)],
    "RMSprop": [rmsprop(0.01), rmsprop(1e-4), rmsprop(3e-5), rmsprop(1e-5), rmsprop(1e-5)],
}
MIXED = {
    "momentum": [sgd(0.02, 0.9), sgd(1e-4, 0.9), sgd(1e-5)],
    "a step size for each": [
        sgd(0.05, 0.9),
        (SGD(lr={"lr": 1e-3, "momentum": 1e-4}), partial(gdtuo.SGDPerParam, [("alpha", 1e-3), ("mu", 1e-4)])),
    ],
    "only the lr of Adam": [(ReferenceAdam(lr=3e-3, tune="lr"), partial(gdtuo.AdamBaydin, 3e-3)), sgd(1e-5)],
    "only the lr of RMSprop": [
        (ReferenceRMSprop(lr=0.01, tune="lr", charts={"lr": SQUARE}), partial(gdtuo.RMSPropAlpha, 0.01)),
        rmsprop(1e-4),
    ],
    "all": [rmsprop(0.01), adam(1e-4, 1), sgd(1e-6), adagrad(1e-8)],
}
CASES = [pytest.param(levels[: h + 1], id=f"{name}-{h}") for name, levels in TALL.items() for h in (1, 2, 3, 4)]
CASES += [pytest.param(levels, id=name) for name, levels in MIXED.items()]


@pytest.fixture(params=[(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["float32", "float64"])
def rtol(request):
    """The tolerance in a precision, which is the default one for the time of the test: the reference has no other way."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param[0])
    yield request.param[1]
    torch.set_default_dtype(before)


def problem():
    """A model, and a batch for each step, labelled by a random teacher."""
    torch.manual_seed(0)
    x, (a, b) = torch.randn(STEPS, 32, 20), (torch.randn(20, 16), torch.randn(16, 5))
    y = (torch.tanh(x @ a) @ b).argmax(-1)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 5)), list(zip(x, y, strict=True))


def ours(tower, model, batches):
    optimizer = Hyperoptimizer(model.parameters(), tower)
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        learned = optimizer.hyperparameters()
        yield {"loss": loss.item()} | {f"{n} of level {k}": learned[k][n] for k, n in tuned(tower)}


def theirs(tower, classes, model, batches):
    stack = [gdtuo.NoOpOptimizer()]
    for reference in reversed(classes):
        stack.insert(0, reference(optimizer=stack[0]))
    wrapper = gdtuo.ModuleWrapper(deepcopy(model), optimizer=stack[0])
    wrapper.initialize()
    for x, y in batches:
        wrapper.begin()
        loss = nn.functional.cross_entropy(wrapper.forward(x), y)
        wrapper.zero_grad()
        loss.backward()  # its README asks for create_graph=True, which gives the same bits: it detaches all that it reads
        wrapper.step()
        learned = {(k, n): stack[k].parameters[THEIRS.get(n, n)].detach() for k, n in tuned(tower)}
        values = {f"{n} of level {k}": tower.rules[k].chart(n).transform(x).item() for (k, n), x in learned.items()}
        yield {"loss": loss.item()} | values


def tuned(tower):
    return [(k, n) for k, rule in enumerate(tower.rules[:-1]) for n in rule.tuned()]


def paths(rows):
    rows = list(rows)
    return {n: torch.tensor([row[n] for row in rows]) for n in rows[0]}


@pytest.mark.parametrize("levels", CASES)
def test_equals_the_reference_implementation(levels, rtol):
    rules, classes = zip(*levels, strict=True)
    tower, (model, batches) = Tower(rules), problem()
    expected = paths(theirs(tower, classes, model, batches))
    torch.testing.assert_close(paths(ours(tower, model, batches)), expected, rtol=rtol, atol=0)
    assert all(path[0] != path[-1] for n, path in expected.items() if "lr" in n)
