"""tune_on: hypergradients of another loss than the one the weights follow; what it is for."""

import copy
import math

import pytest
import torch
from cases import RULES, loss, parameters, weights
from examples import weight_decay
from helpers import STEPS, clones, compiler, difference, everything, resumed
from oracle import Oracle
from torch import nn

from hypergradient import POSITIVE, SGD, Adam, AdamW, Hyperoptimizer, RMSprop

TOP = SGD(lr=1e-3)
DECAY = ("lr", "weight_decay")
SHORT = Adam(lr=0.05, eps=0.1, tune=("lr", "beta1", "beta2", "weight_decay"), weight_decay=0.1) / SGD(lr=1e-2) / SGD(lr=1e-4)
LONG = AdamW(lr=0.05, eps=0.1, tune=("lr", "weight_decay"), charts={"lr": POSITIVE}, horizon=5, normalize="cosine") / SGD(
    lr=0.1
)


def held_out(params, t=0):
    """A loss of other data, and of another kind."""
    return loss(params, 1000 + t) + 0.01 * sum((p - 1).square().sum() for p in params)


def fit(optimizer, params, steps, start=0, on=held_out):
    """Train, tuning on `on`, a function of parameters and step; None: without."""
    for t in range(start, start + steps):
        optimizer.zero_grad()
        loss(params, t).backward()
        if on is not None:
            optimizer.tune_on(on(params, t))
        optimizer.step()


def identical(optimizer, params, twin, others):
    torch.testing.assert_close(params, others, rtol=0, atol=0)
    torch.testing.assert_close(list(optimizer.state.values()), list(twin.state.values()), rtol=0, atol=0, equal_nan=True)
    assert twin.hyperparameters() == optimizer.hyperparameters()


# ------------------------------------------------------------------------------- what it is


@pytest.mark.parametrize("case", RULES, ids=str)
def test_equals_finite_differences_of_the_validation_loss(case):
    """``d held_out(w_t) / dh`` for every hyperparameter of the step that made w_t."""
    tower, mine = case.rule(**case.lively, tune=case.rule.tunable()) / TOP, parameters(case.matrix)
    optimizer, oracle = Hyperoptimizer(mine, tower), Oracle(tower, weights(case.matrix))
    fit(optimizer, mine, STEPS, on=None)
    fit(optimizer, mine, 1, STEPS)
    for t in range(STEPS - 1):
        oracle.step(loss(oracle.weights, t))
    for name, found in optimizer.hypergradients()[0].items():
        expected = 0 if name in case.flat else difference(oracle, (0, name), lambda w: held_out(w, STEPS))
        assert found == expected, name


@pytest.mark.parametrize(
    "rule", [Adam(lr=2e-2, beta2=0.9, eps=0.1), SGD(lr=2e-2, momentum=0.5), RMSprop(lr=2e-2, alpha=0.9)], ids=repr
)
def test_levels_above_follow_the_validation_loss_too(rule):
    tower, mine = SGD(lr=0.5) / rule / TOP, parameters()
    optimizer, oracle = Hyperoptimizer(mine, tower), Oracle(tower, weights())
    fit(optimizer, mine, STEPS, on=None)
    fit(optimizer, mine, 1, STEPS)
    for t in range(STEPS - 1):
        oracle.step(loss(oracle.weights, t))
    for name, found in optimizer.hypergradients()[1].items():
        expected = difference(oracle, (1, name), lambda w: held_out(w, STEPS))
        assert found == expected, name


@compiler
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("rule", "normalize", "compile"),
    [
        *[(r, n, False) for r in (AdamW, SGD) for n in (None, "cosine")],
        (AdamW, "cosine", True),
        pytest.param(SGD, None, True, marks=everything),
    ],
)
def test_horizon_and_cosine_against_their_definition(rule, normalize, compile):
    """``<u, T>`` and its cosine, ``T_t = (1 - 1/5) T_{t-1} + dU_t/dh`` by finite differences; u of the validation loss."""
    names, size, flat = ("lr", "weight_decay"), 1e-5, nn.utils.parameters_to_vector
    rule = rule(lr=0.1, weight_decay=0.1, tune=names, charts=dict.fromkeys(names, POSITIVE), horizon=5, normalize=normalize)
    mine = parameters()
    optimizer = Hyperoptimizer(mine, rule / TOP, compile=compile)
    trace, state = {n: torch.zeros_like(flat(mine)) for n in names}, rule.init(flat(mine))
    for t in range(4):
        w, old = flat(mine).detach(), optimizer.hyperparameters()[0]
        u = flat(torch.autograd.grad(held_out(mine, t), mine))
        fit(optimizer, mine, 1, t)
        g, values = flat([p.grad for p in mine]), optimizer.hyperparameters()[0]
        for n in names if t > 0 else ():
            slope = (u @ trace[n]).item()
            assert optimizer.hypergradients()[0][n] == pytest.approx(slope, rel=1e-6, abs=1e-12)
            raw = slope / (u.norm() * trace[n].norm()).item() if normalize else slope * old[n]
            assert values[n] == pytest.approx(old[n] * math.exp(-1e-3 * raw), rel=1e-8)

        def update(n, change, w=w, g=g, state=state, t=t, values=values):
            at = rule.at({m: torch.tensor(v + change * (m == n)) for m, v in values.items()})
            return at.update(w, g, state, at.coefficients(torch.tensor(t + 1.0)))

        for n in names:
            trace[n] = 0.8 * trace[n] + (update(n, size)[0] - update(n, -size)[0]) / (2 * size)
        w, state = update("", 0.0)
        torch.testing.assert_close(flat(mine).detach(), w, rtol=1e-10, atol=1e-12)


@compiler
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_step_is_the_eager_one():
    """Also where only some of the steps are tuned on another loss."""
    mine, others = parameters(), parameters()
    tower = AdamW(lr=0.05, eps=0.1, tune=DECAY) / TOP
    optimizer, twin = Hyperoptimizer(mine, tower), Hyperoptimizer(others, tower, compile=True)
    for t in range(4):
        for o, params in ((optimizer, mine), (twin, others)):
            fit(o, params, 1, t, on=held_out if t < 3 else None)
        torch.testing.assert_close(mine, others, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(optimizer.hyperparameters(), twin.hyperparameters(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(optimizer.hypergradients(), twin.hypergradients(), rtol=1e-6, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("tower", [SHORT, LONG], ids=["short", "long"])
def test_on_the_training_loss_it_changes_nothing(tower, maximize, per):
    mine, others = parameters(), parameters()
    optimizer, twin = (
        Hyperoptimizer([{"params": p[:2], "lr": 0.01}, {"params": p[2:]}], tower, per=per, maximize=maximize)
        for p in (mine, others)
    )
    fit(optimizer, mine, 6, on=None)
    fit(twin, others, 6, on=loss)
    identical(optimizer, mine, twin, others)


@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("maximize", [False, True])
def test_groups_and_tensors_have_hypergradients_of_their_own(per, maximize):
    """Of SGD without momentum, ``dL/dlr = -<u, g'>`` over the parameters that share it."""
    mine = parameters()
    groups = [{"params": mine[:2], "lr": 0.05}, {"params": mine[2:], "lr": 0.05}]
    optimizer = Hyperoptimizer(groups, SGD(lr=0.1, tune=("lr",)) / SGD(lr=0.0), per=per, maximize=maximize)
    fit(optimizer, mine, 2)
    last = [p.grad.clone() for p in mine]
    u = torch.autograd.grad(held_out(mine, 2), mine)
    fit(optimizer, mine, 1, 2)
    slopes = [-(x * g).sum().item() for x, g in zip(u, last, strict=True)]  # of -L, of steps along +g: the signs cancel
    found = [optimizer.hypergradients(i)[0]["lr"] for i in (0, 1)]
    if per == "tensor":
        assert [*found[0], *found[1]] == pytest.approx(slopes)
    elif per == "group":
        assert found == pytest.approx([sum(slopes[:2]), sum(slopes[2:])])
    else:
        assert found == pytest.approx([sum(slopes)] * 2)


@pytest.mark.parametrize("shape", [(300, 1000), (1000, 300)], ids=str)
def test_large_and_transposed_parameters(shape):
    """They are read where they are, in pieces and in the order of their memory."""
    big = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mine = [(big.t().contiguous().t() if shape[0] > shape[1] else big).requires_grad_()]
    optimizer = Hyperoptimizer(mine, SGD(lr=0.1, tune=("lr",)) / SGD(lr=0.0))
    grads = []
    for _ in range(3):
        optimizer.zero_grad()
        mine[0].square().sum().backward()
        grads.append(mine[0].grad)
        u = torch.autograd.grad(held := mine[0].cumsum(0).square().mean(), mine, retain_graph=True)[0]
        optimizer.tune_on(held)
        optimizer.step()
    assert optimizer.hypergradients()[0]["lr"] == pytest.approx(-(u * grads[1]).sum().item())


@pytest.mark.parametrize("count", [1, 2])
def test_complex_parameters(count):
    """Gradients that are conjugated only on paper, too."""
    mine = [torch.tensor([1 + 2j, 3 - 1j]).requires_grad_() for _ in range(count)]
    optimizer, grads = Hyperoptimizer(mine, SGD(lr=0.1) / SGD(lr=0.0)), []
    for _ in range(3):
        optimizer.zero_grad()
        sum(p.abs().square().sum() for p in mine).backward()
        grads.append([p.grad.clone() for p in mine])
        optimizer.tune_on(sum((p.conj() * (2 + 1j)).real.sum() for p in mine))
        optimizer.step()
    expected = -sum(((2 + 1j) * g.conj()).real.sum().item() for g in grads[1])
    assert optimizer.hypergradients()[0]["lr"] == pytest.approx(expected)


# --------------------------------------------------------------------- what it leaves alone


def test_gradients_and_weights_are_untouched_and_hooks_of_accumulation_see_it():
    mine, seen = parameters(), []
    optimizer = Hyperoptimizer(mine, SHORT)
    fit(optimizer, mine, 3)
    optimizer.zero_grad()
    training = loss(mine, 3)
    training.backward(retain_graph=True)
    before, grads, values = clones(mine), [p.grad for p in mine], [p.grad.clone() for p in mine]
    for p in mine:
        p.register_post_accumulate_grad_hook(seen.append)
    optimizer.tune_on(held_out(mine, 3))
    assert set(map(id, seen)) == set(map(id, mine))  # those of DDP and FSDP2 are such
    assert all(p.grad is g and not g.requires_grad for p, g in zip(mine, grads, strict=True))
    torch.testing.assert_close(grads, values, rtol=0, atol=0)
    torch.testing.assert_close([p.detach() for p in mine], [p.detach() for p in before], rtol=0, atol=0)
    assert all(p.is_leaf and p.requires_grad for p in mine)
    torch.testing.assert_close(list(torch.autograd.grad(training, mine)), values, rtol=0, atol=0)  # its graph is still there


def test_order_and_grad_mode_do_not_matter():
    runs = []
    for way in range(4):
        mine = parameters()
        optimizer = Hyperoptimizer(mine, SHORT)
        for t in range(4):
            optimizer.zero_grad()

            def closure(t=t, mine=mine, optimizer=optimizer, way=way):
                training, other = loss(mine, t), held_out(mine, t)
                if way == 1:
                    optimizer.tune_on(other)
                training.backward()
                if way != 1:
                    with torch.set_grad_enabled(way != 2):
                        optimizer.tune_on(other)

            if way == 3:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        runs.append((mine, optimizer.hyperparameters()))
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0], rtol=0, atol=0)


def test_only_the_next_step_uses_it():
    mine, others = parameters(), parameters()
    optimizer, twin = Hyperoptimizer(mine, SHORT), Hyperoptimizer(others, SHORT)
    fit(optimizer, mine, 3)
    fit(optimizer, mine, 3, 3, on=None)
    fit(twin, others, 3)
    twin.load_state_dict(twin.state_dict())
    fit(twin, others, 3, 3, on=None)
    identical(optimizer, mine, twin, others)
    optimizer.tune_on(held_out(mine))
    optimizer.tune_on(loss(mine, 6))  # the last one counts
    fit(optimizer, mine, 1, 6, on=None)
    fit(twin, others, 1, 6, on=None)
    identical(optimizer, mine, twin, others)


def test_before_the_first_step_and_without_a_tower_it_tunes_nothing():
    for tower in (SHORT, SGD(lr=0.1)):
        mine, others = parameters(), parameters()
        fit(one := Hyperoptimizer(mine, tower), mine, 1)
        fit(two := Hyperoptimizer(others, tower), others, 1, on=None)
        identical(one, mine, two, others)


def test_no_memory_of_it_is_left():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, SHORT)
    fit(optimizer, mine, 3)
    assert not optimizer._own.cotangents
    assert not any(hasattr(bucket, "u") for group in optimizer._own.groups for bucket in group.buckets)


# -------------------------------------------------------------------------- parts of a model


@pytest.mark.parametrize("normalize", [None, "cosine"])
@pytest.mark.parametrize("per", ["group", "tensor"])
def test_parameters_it_does_not_use_count_as_0(per, normalize):
    tower = SGD(lr=0.1, tune=("lr",), charts={"lr": POSITIVE}, horizon=5, normalize=normalize) / SGD(lr=0.1)
    mine, others = parameters(), parameters()
    optimizer, twin = Hyperoptimizer(mine, tower, per=per), Hyperoptimizer(others, tower, per=per)
    fit(optimizer, mine, 4, on=lambda params, t: params[2].square().sum())
    fit(twin, others, 4, on=lambda params, t: params[2].square().sum() + sum(0 * p.sum() for p in params))
    identical(optimizer, mine, twin, others)
    if per == "tensor":
        lr = optimizer.hyperparameters()[0]["lr"]
        assert [x == 0.1 for x in lr] == [True, True, False, True]


def test_a_parameter_without_gradient_contributes_nothing():
    """As ever; here also to the hypergradients of a loss that depends on it alone."""
    mine = parameters()
    optimizer = Hyperoptimizer(mine, SGD(lr=0.1) / SGD(lr=0.1))
    for _ in range(3):
        optimizer.zero_grad()
        mine[0].square().sum().backward()
        optimizer.tune_on(mine[2].square().sum())
        optimizer.step()
    assert optimizer.hypergradients()[0]["lr"] == 0
    assert optimizer.hyperparameters()[0]["lr"] == 0.1


def test_a_parameter_frozen_with_its_gradient_counts_as_0():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, SGD(lr=0.1) / SGD(lr=0.1))
    fit(optimizer, mine, 2)
    mine[1].requires_grad_(False)
    optimizer.tune_on(held_out(mine))
    optimizer.step()
    assert math.isfinite(optimizer.hypergradients()[0]["lr"])


def test_a_group_added_between_tune_on_and_step():
    mine = parameters()
    optimizer = Hyperoptimizer(mine[:2], SHORT)
    fit(optimizer, mine, 2)
    loss(mine, 2).backward()
    optimizer.tune_on(held_out(mine, 2))
    optimizer.add_param_group({"params": mine[2:]})
    optimizer.step()
    fit(optimizer, mine, 2, 3)
    assert all(math.isfinite(x) for i in (0, 1) for x in optimizer.hypergradients(i)[0].values())


# ---------------------------------------------------- with what else belongs to a training


@pytest.mark.parametrize("tower", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("per", ["group", "tensor"])
def test_resume_is_exact(tower, per):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, tower, per=per)
    fit(optimizer, mine, 4)
    twin = resumed(optimizer, copies := clones(mine))
    fit(optimizer, mine, 4, 4)
    fit(twin, copies, 4, 4)
    identical(optimizer, mine, twin, copies)


def test_what_was_asked_before_a_checkpoint_is_loaded_is_forgotten():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, SHORT)
    fit(optimizer, mine, 3)
    twin = resumed(optimizer, copies := clones(mine))
    optimizer.tune_on(held_out(mine))
    optimizer.load_state_dict(copy.deepcopy(twin.state_dict()))
    fit(optimizer, mine, 1, 3, on=None)
    fit(twin, copies, 1, 3, on=None)
    identical(optimizer, mine, twin, copies)


def test_what_was_asked_before_a_step_without_gradients_is_forgotten():
    """It was asked of that step."""
    mine, copies = parameters(), parameters()
    optimizer, twin = Hyperoptimizer(mine, SHORT), Hyperoptimizer(copies, SHORT)
    for each, params in ((optimizer, mine), (twin, copies)):
        fit(each, params, 3)
        each.zero_grad()
    optimizer.tune_on(held_out(mine))
    optimizer.step()
    fit(optimizer, mine, 1, 3, on=None)
    fit(twin, copies, 1, 3, on=None)
    identical(optimizer, mine, twin, copies)


def test_accumulated_gradients():
    mine, others = parameters(), parameters()
    optimizer, twin = Hyperoptimizer(mine, SHORT), Hyperoptimizer(others, SHORT)
    for t in range(5):
        optimizer.zero_grad()
        (loss(mine, t) / 2).backward()
        if t % 2:
            optimizer.tune_on(held_out(mine, t))
        (loss(mine, t + 50) / 2).backward()
        if not t % 2:
            optimizer.tune_on(held_out(mine, t))
        optimizer.step()
        twin.zero_grad()
        (0.5 * loss(others, t) + 0.5 * loss(others, t + 50)).backward()
        twin.tune_on(held_out(others, t))
        twin.step()
    torch.testing.assert_close(mine, others, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(optimizer.hyperparameters(), twin.hyperparameters(), rtol=1e-10, atol=1e-12)


def test_grad_scaler_takes_the_validation_loss_unscaled():
    """A skipped step skips the tower, and what was asked for it is asked again with the next."""
    mine, others = parameters(), parameters()
    optimizer, twin = Hyperoptimizer(mine, SHORT), Hyperoptimizer(others, SHORT)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for t in range(8):
        optimizer.zero_grad()
        scaler.scale(loss(mine, t)).backward()
        optimizer.tune_on(held_out(mine, t))
        if t in (0, 4):
            mine[0].grad[0, 0] = torch.inf
        else:
            fit(twin, others, 1, t)
        scaler.step(optimizer)
        scaler.update()
    identical(optimizer, mine, twin, others)


def test_a_validation_loss_that_is_not_finite_leaves_the_tower_as_it_is():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, SHORT)
    fit(optimizer, mine, 3)
    before = optimizer.hyperparameters()
    twin = resumed(optimizer, others := clones(mine))
    fit(optimizer, mine, 1, 3, on=lambda params, t: held_out(params, t) * torch.nan)
    assert optimizer.hyperparameters() == before
    fit(twin, others, 1, 3)
    assert twin.hyperparameters() != before
    fit(optimizer, mine, 1, 4)
    assert all(math.isfinite(x) for level in optimizer.hyperparameters() for x in level.values())


@compiler
@pytest.mark.usefixtures("fresh_compiler")
def test_in_a_function_that_is_compiled():
    runs = []
    for compiled in (False, True):
        mine = parameters()
        optimizer = Hyperoptimizer(mine, SGD(lr=0.1) / SGD(lr=0.01))

        def step(optimizer=optimizer, mine=mine):
            optimizer.zero_grad()
            sum(p.square().sum() for p in mine).backward()
            optimizer.tune_on(sum((p - 1).square().sum() for p in mine))
            optimizer.step()

        run = torch.compile(step, backend="eager") if compiled else step
        for _ in range(4):
            run()
        runs.append((mine, optimizer.hyperparameters()))
    torch.testing.assert_close(runs[1], runs[0])


# ------------------------------------------------------------------------------- bad input


BAD = {
    "a number": (lambda p: 1.5, TypeError, "loss=1.5.*tensor"),
    "a vector": (lambda p: p[1] * 2, ValueError, r"loss has shape \(4,\), .*one number with a graph"),
    "empty": (lambda p: p[1][:0] * 2, ValueError, r"loss has shape \(0,\)"),
    "no graph": (lambda p: held_out(p).detach(), ValueError, "requires_grad=False.*with a graph"),
    "other parameters": (lambda p: held_out(parameters()), ValueError, "none of the optimizer's parameters"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_says_what_is_wrong_and_changes_nothing(bad):
    make, error, words = bad
    mine, others = parameters(), parameters()
    optimizer, twin = Hyperoptimizer(mine, SHORT), Hyperoptimizer(others, SHORT)
    fit(optimizer, mine, 2)
    fit(twin, others, 2)
    with pytest.raises(error, match=words):
        optimizer.tune_on(make(mine))
    fit(optimizer, mine, 1, 2, on=None)
    fit(twin, others, 1, 2, on=None)
    identical(optimizer, mine, twin, others)


def test_with_all_parameters_frozen_it_says_so():
    mine = weights()
    with pytest.raises(ValueError, match="none of the optimizer's parameters"):
        Hyperoptimizer(mine, SHORT).tune_on(held_out(parameters()))


# ---------------------------------------------------------------------------- what it is for


@pytest.fixture
def example(float32):
    """Three splits of the example; 250 steps."""
    return weight_decay.digits(seed=7)


def test_weight_decay_tuned_on_validation_loss_ends_near_the_best_of_a_grid(example):
    grid = {w: weight_decay.train(weight_decay.fixed(w), example, 7, 250) for w in (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)}
    best = min(grid, key=lambda w: grid[w].validation)
    for start in (1e-4, 1e-1):
        found = weight_decay.train(weight_decay.tuned(start), example, 7, 250, "validation")
        assert best / 5 < found.path[-1] < best * 5
        assert found.validation < 1.05 * grid[best].validation
        assert found.test < 1.1 * grid[best].test < 0.8 * grid[1e-4].test


def test_the_training_loss_drives_weight_decay_to_0(example):
    for start in (1e-4, 1e-1):
        assert weight_decay.train(weight_decay.tuned(start), example, 7, 250).path[-1] < 1e-6 * start


def test_the_example_makes_its_table_and_picture(float32, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weight_decay, "OUT", tmp_path / "picture.png")
    monkeypatch.setattr("sys.argv", ["weight_decay", "--seeds", "1", "--steps", "3"])
    monkeypatch.setenv("COLUMNS", "120")
    weight_decay.main()
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    told = capsys.readouterr().out
    assert "best on validation" in told
    assert told.count("tuned on training loss") == len(weight_decay.STARTS)
