"""A step size that runs away, or comes to rest at 0, is said once, with the group, the value and what to write instead."""

import warnings

import pytest
import torch
from cases import parameters, train

from hypergradient import SGD, Adam, Hyperoptimizer, auto


def descend(tower, steps=40, **options):
    """A slope that never ends, of a loss that is far too large a number for the paper's towers."""
    p = torch.ones(3, requires_grad=True)
    optimizer = Hyperoptimizer([{"params": [torch.ones(2, requires_grad=True)]}, {"params": [p]}], tower, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        (1e3 * p.sum()).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
def test_a_step_size_that_runs_away_is_said_once_and_by_its_group(per):
    where = "group 0" if per == "all" else "group 1"
    with pytest.warns(
        RuntimeWarning, match=f"{where}: the learned lr has run away, from 1e-09 to .*Hyperoptimizer\\(params\\)"
    ) as said:
        descend(SGD(lr=1e-9) / SGD(lr=1e-3), per=per)
    assert len([w for w in said if "learned lr" in str(w.message)]) == 1
    assert said[0].filename == __file__


def test_a_step_size_that_comes_to_rest_at_0_is_said():
    p = torch.ones(1, requires_grad=True)
    optimizer = Hyperoptimizer([p], SGD(lr=0.1) / SGD(lr=10.0))

    def swing():
        for t in range(20):
            p.grad = torch.full_like(p, (-1.0) ** t)
            optimizer.step()

    with pytest.warns(RuntimeWarning, match="group 0: the learned lr has come to rest at 0, from 0.1 at the start"):
        swing()


@pytest.mark.parametrize("tower", [Adam(lr=1e-3) / SGD(lr=1e-5), Adam(lr=1e-6) / SGD(lr=1e-5), auto(), auto(SGD())], ids=str)
def test_nothing_is_said_of_what_goes_well(tower):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = parameters()
        train(Hyperoptimizer(params, tower), params, 60)
