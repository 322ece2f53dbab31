"""Properties that hold for all inputs, searched by hypothesis."""

import math

import pytest
import torch
from cases import ABOVE, RULES, parameters, train
from helpers import EVERY, TOWERS, clones, crossed, levels, resumed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributions import transforms

from hypergradient import POSITIVE, REAL, SGD, UNIT, Adam, Chart, Hyperoptimizer, nonnegative, unit_interval
from hypergradient.level import READ

settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

CHARTS = {
    "REAL": (REAL, nonnegative),
    "POSITIVE": (POSITIVE, nonnegative),
    "UNIT": (UNIT, unit_interval),
    "softplus": (Chart.of(transforms.SoftplusTransform()), nonnegative),
    "root": (Chart.of(transforms.PowerTransform(torch.tensor(2.0))), nonnegative),
    "tanh": (
        Chart.of(transforms.ComposeTransform([transforms.TanhTransform(), transforms.AffineTransform(0.5, 0.5)])),
        unit_interval,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("chart", "constraint"), CHARTS.values(), ids=CHARTS.keys())
@given(start=st.floats(1e-3, 0.999), push=st.floats(allow_nan=False))
def test_charts_go_there_and_back_and_stay_within_bounds(chart, constraint, dtype, start, push):
    value = torch.tensor([start], dtype=dtype)
    unit, raw = chart.unit(value), chart.raw(value)
    precision = 1e-3 if dtype is torch.float32 else 1e-6
    torch.testing.assert_close(unit * chart.transform(raw), value, rtol=precision, atol=0)
    low, high = chart.bounds(constraint, unit)
    moved = unit * chart.transform(torch.tensor([push], dtype=dtype).clamp(low, high))
    assert constraint.check(moved).all()
    assert moved.isfinite().all()
    assert chart is not POSITIVE or moved > 0


ADVERSE = st.sampled_from([0.0, -0.0, 1e-300, 1e-30, 1.0, -1.0, 1e10, -1e10, 1e30, -1e300, math.inf, -math.inf, math.nan])


@pytest.mark.parametrize(
    ("case", "chart"), crossed([c for c in RULES if not c.matrix][:: min(EVERY, 3)], [REAL, POSITIVE]), ids=str
)
@settings(max_examples=4)
@given(
    cycle=st.lists(ADVERSE, min_size=1, max_size=7),
    above=st.sampled_from(ABOVE),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_hyperparameters_keep_their_constraints_under_adverse_gradients(case, chart, cycle, above, dtype):
    p = torch.ones(3, dtype=dtype, requires_grad=True)
    top = above.rule(lr=0.5)
    rule = case.rule(**case.lively, charts={"lr": chart}, normalize="cosine" if chart is POSITIVE else None)
    optimizer = Hyperoptimizer([p], rule / top / SGD(lr=10.0))
    for t in range(200):
        p.grad = torch.tensor([cycle[t % len(cycle)], 1.0, -1.0], dtype=torch.float64).to(dtype)
        optimizer.step()
        p.detach().nan_to_num_(1.0, 1.0, 1.0).clamp_(-1, 1)
    for level, values in zip((rule, top), optimizer.hyperparameters(), strict=False):
        for n, value in values.items():
            assert math.isfinite(value)
            assert level.constraint(n).check(torch.tensor(value, dtype=torch.float64)), (n, value)
    assert all(row.isfinite().all() for rows in levels(optimizer).values() for i, row in enumerate(rows) if i != READ)


@settings(max_examples=10)
@given(
    tower=st.sampled_from(TOWERS),
    per=st.sampled_from(["all", "group", "tensor"]),
    stop=st.integers(0, 12),
    more=st.integers(1, 6),
)
def test_resume_at_a_random_step_is_exact(tower, per, stop, more):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, tower, per=per)
    train(optimizer, mine, stop)
    copies = clones(mine)
    twin = resumed(optimizer, copies)
    assert train(twin, copies, more, stop) == train(optimizer, mine, more, stop)
    torch.testing.assert_close(copies, mine, rtol=0, atol=0)
    assert twin.hyperparameters() == optimizer.hyperparameters()


@settings(max_examples=10)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5),
    per=st.sampled_from(["all", "group", "tensor"]),
    horizon=st.sampled_from([1, 7]),
)
def test_parameters_of_any_shape(shapes, per, horizon):
    params = [torch.ones(shape, requires_grad=True) for shape in shapes]
    optimizer = Hyperoptimizer(params, Adam(lr=0.1, horizon=horizon, normalize="cosine") / SGD(lr=0.1), per=per)
    for _ in range(5):
        optimizer.zero_grad()
        sum(p.square().sum() for p in params).backward()
        optimizer.step()
    assert all((p < 1).all() for p in params)
    if sum(p.numel() for p in params):
        values = optimizer.hyperparameters()[0]["lr"]
        assert max(values if isinstance(values, list) else [values]) > 0.1
