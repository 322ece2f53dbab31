"""Untuned, every rule is its twin in torch.optim."""

import pytest
import torch
from cases import RULES, TWINS, counted, loss, ours, parameters, train

import hypergradient as hg
from hypergradient import Hyperoptimizer

PAIRS = [pytest.param(c, o, id=f"{c}-{o}") for c in TWINS for o in c.options]


def compare(optimizer, twin, mine, theirs, steps=100):
    torch.testing.assert_close(train(optimizer, mine, steps), train(twin, theirs, steps), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("case", "options"), PAIRS)
def test_equals_torch_optim(case, options, exact_muon):
    mine, theirs = parameters(case.matrix), parameters(case.matrix)
    options = {"lr": 1e-2, **options}
    twin = getattr(torch.optim, str(case))(theirs, **options)
    compare(Hyperoptimizer(mine, case.rule(**ours(options))), twin, mine, theirs)


@pytest.mark.parametrize(("rows", "columns"), [(2, 8), (8, 2)])
def test_a_step_of_muon_without_a_clamp(rows, columns):
    """Its factor is sqrt(rows / columns), where "original" has sqrt(max(1, rows / columns))."""
    grad, moved = torch.randn(rows, columns), {}
    for fit in ("original", "spectral_unclamped"):
        p = torch.zeros(rows, columns, requires_grad=True)
        p.grad = grad
        Hyperoptimizer([p], hg.Muon(lr=1.0, adjust_lr_fn=fit)).step()
        moved[fit] = p.detach()
    torch.testing.assert_close(moved["spectral_unclamped"], moved["original"] * min(1.0, rows / columns) ** 0.5)


@pytest.mark.parametrize("case", RULES, ids=str)
def test_a_rule_that_is_in_torch_optim_is_compared_with_it(case):
    assert bool(case.options) == hasattr(torch.optim, str(case))


@pytest.mark.parametrize("case", [c for c in TWINS if not c.matrix], ids=str)  # torch's Muon has no maximize
def test_maximize_equals_torch_optim(case):
    mine, theirs = parameters(), parameters()
    twin = getattr(torch.optim, str(case))(theirs, lr=1e-3, maximize=True)
    compare(Hyperoptimizer(mine, case.rule(lr=1e-3), maximize=True), twin, mine, theirs, steps=10)


@pytest.mark.parametrize("case", [c for c in TWINS if not c.matrix], ids=str)
def test_groups_have_their_own_values(case):
    mine, theirs = parameters(), parameters()

    def groups(p):
        return [{"params": p[:1], "lr": 1e-2, "weight_decay": 0.1}, {"params": p[1:], "lr": 3e-3}]

    twin = getattr(torch.optim, str(case))(groups(theirs), weight_decay=0.0)
    compare(Hyperoptimizer(groups(mine), case.rule(weight_decay=0.0)), twin, mine, theirs)


def test_lion_is_the_algorithm_of_its_paper():
    (p,), (q,) = parameters()[:1], parameters()[:1]
    optimizer, m = Hyperoptimizer([p], hg.Lion(lr=1e-2, beta1=0.9, beta2=0.99, weight_decay=0.1)), torch.zeros_like(q)
    for t in range(100):
        for x in (p, q):
            x.grad = None
            loss([x, *parameters()[1:]], t).backward()
        optimizer.step()
        with torch.no_grad():
            c = 0.9 * m + 0.1 * q.grad
            q -= 1e-2 * (c.sign() + 0.1 * q)
            m = 0.99 * m + 0.01 * q.grad
    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_defaults_are_those_of_torch(case):
    defaults = ours(getattr(torch.optim, str(case))(parameters(case.matrix)).defaults)
    own = vars(case.rule())
    assert {n: v for n, v in own.items() if n in defaults} == {n: v for n, v in defaults.items() if n in own}
    assert set(own) - set(defaults) == {"tune", "charts", "horizon", "normalize", "sample"}


@pytest.mark.parametrize("case", RULES, ids=str)
def test_is_pure(case):
    rule = case.rule(**case.lively)
    param, grad = parameters(case.matrix)[0].detach(), torch.ones(3, 4)
    at, _ = counted(rule.at({n: torch.tensor(getattr(rule, n)) for n in rule.hyperparameters()}), 1)
    state = rule.init(param)
    inputs = [param, grad, *state.values()]
    before, versions = [x.clone() for x in inputs], [x._version for x in inputs]
    at.update(param, grad, state, at.coefficients(torch.tensor(1.0)))
    assert [x._version for x in inputs] == versions
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)


@pytest.mark.parametrize("beta2", [0.99, 0.9999, 0.99999, 0.9999184012413025, 0.9999533891677856])
def test_radam_keeps_its_digits_in_single_precision(beta2):
    """Its length of memory is a small difference of large numbers."""
    mine, theirs = ([torch.ones(3, dtype=torch.float32, requires_grad=True)] for _ in range(2))
    optimizer = Hyperoptimizer(mine, hg.RAdam(lr=0.1, beta2=beta2))
    twin = torch.optim.RAdam(theirs, lr=0.1, betas=(0.9, beta2))
    for t in range(12):
        before = theirs[0].detach().clone()
        for (p,), one in ((mine, optimizer), (theirs, twin)):
            p.grad = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float32) * (1 + t % 3)
            one.step()
        torch.testing.assert_close(mine[0] - before, theirs[0] - before, rtol=2e-2, atol=0)
        with torch.no_grad():
            mine[0].copy_(theirs[0])


@pytest.mark.parametrize("rule", [hg.Adam, hg.AdamW])
def test_the_preconditioner_with_amsgrad_is_what_divides_the_step(rule):
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    own = rule(lr=1.0, beta1=0.0, beta2=0.5, eps=0.0, weight_decay=0.0, amsgrad=True)
    optimizer = Hyperoptimizer([p], own)
    for t, size in enumerate((10.0, 0.1, 0.1), 1):
        p.grad = torch.tensor([size, -size], dtype=torch.float64)
        before, state = p.detach().clone(), {n: x.clone() for n, x in optimizer.state.get(p, own.init(p.detach())).items()}
        at = own.at({n: torch.tensor(getattr(own, n), dtype=torch.float64) for n in own.hyperparameters()})
        step = torch.tensor(float(t), dtype=torch.float64)
        size = at.preconditioner(p.grad, state, step, at.coefficients(step))
        optimizer.step()
        torch.testing.assert_close(before - p.detach(), p.grad / size)
