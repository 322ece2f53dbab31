"""Towers against the reference implementation: every loss and every learned value of 200 steps.

The reference is the code that came with the paper, PyPI `gradient-descent-the-ultimate-optimizer` 1.0, on an MLP. Its own
parametrization is that of `experiments.paper`, made of charts and of rules of its own. The paths agree in float32 up to
the rounding of 200 steps (below 5e-7, relative), and in float64 nothing is left of the difference (below 1e-15).
"""

from copy import deepcopy
from functools import partial

import pytest
import torch
from experiments import paper
from gradient_descent_the_ultimate_optimizer import gdtuo
from helpers import crossed
from torch import nn

from hypergradient import Hyperoptimizer, Tower

STEPS = 200
THEIRS = {"lr": "alpha", "momentum": "mu", "alpha": "gamma"}


# Levels: our rule and the reference's class with its arguments.


def sgd(lr, momentum=0.0):
    return paper.sgd(lr, momentum), partial(gdtuo.SGD, lr, momentum)


def adagrad(lr):
    return paper.adagrad(lr), partial(gdtuo.AdaGrad, lr)


def adam(lr, level=0):
    return paper.adam(lr, ahead=level), partial(gdtuo.Adam, lr)


def rmsprop(lr):
    return paper.rmsprop(lr), partial(gdtuo.RMSProp, lr)


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
        (paper.sgd({"lr": 1e-3, "momentum": 1e-4}), partial(gdtuo.SGDPerParam, [("alpha", 1e-3), ("mu", 1e-4)])),
    ],
    "only the lr of Adam": [(paper.adam(3e-3, tune="lr"), partial(gdtuo.AdamBaydin, 3e-3)), sgd(1e-5)],
    "only the lr of RMSprop": [
        (paper.rmsprop(0.01, tune="lr"), partial(gdtuo.RMSPropAlpha, 0.01)),
        rmsprop(1e-4),
    ],
    "through 0": [sgd(0.05), adam(0.1, 1)],
    "all": [rmsprop(0.01), adam(1e-4, 1), sgd(1e-6), adagrad(1e-8)],
}
CASES = {f"{name}-{h}": levels[: h + 1] for name, levels in TALL.items() for h in (1, 2, 4)} | MIXED


@pytest.fixture
def precision(request):
    """The default one, for the time of the test: the reference has no other way."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
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


TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}
"""In single precision the reference rounds its hyperparameters, which ours keeps in double."""


@pytest.mark.parametrize(("name", "precision"), crossed(CASES, TOLERANCE), ids=str, indirect=["precision"])
def test_equals_the_reference_implementation(name, precision):
    levels, rtol = CASES[name], TOLERANCE[precision]
    rules, classes = zip(*levels, strict=True)
    tower, (model, batches) = Tower(rules), problem()
    expected = paths(theirs(tower, classes, model, batches))
    crosses = any(path.min() < 0 for path in expected.values())  # near 0 there are no relative errors
    torch.testing.assert_close(paths(ours(tower, model, batches)), expected, rtol=rtol, atol=rtol if crosses else 0)
    assert all(path[0] != path[-1] for n, path in expected.items() if "lr" in n)
