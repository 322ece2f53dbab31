"""What others write to parameters between two steps: masks, projections, weights of before."""

import copy
import functools
import math
from itertools import product

import pytest
import torch
from helpers import crossed

from hypergradient import SGD, Adam, AdamWScheduleFree, Hyperoptimizer, Muon, SGDScheduleFree, auto, from_torch
from hypergradient.charts import POSITIVE

LARGE = 400
"""Rows and columns of a matrix of which the default reads a sample."""


def mask(p, k, first):
    p[..., ::2] = 0


def clamp(p, k, first):
    p.clamp_(-0.05, 0.05)


def unit(p, k, first):
    p.div_(p.norm(dim=-1, keepdim=True))


def decay(p, k, first):
    p.mul_(0.999)


def rollback(p, k, first):
    if k % 20 == 19 and k < 90:
        p.copy_(first)


WRITES = [mask, clamp, unit, decay, rollback]
MAKES = {
    "default": Hyperoptimizer,
    "from_torch": lambda params: from_torch(torch.optim.Adam(params)),
    "auto(SGD)": lambda params: Hyperoptimizer(params, auto(SGD(momentum=0.9))),
}


def name_of(x):
    return "-".join(map(str, x)) if isinstance(x, tuple) else x.__name__


class Fit:
    """A linear map of `n` features to be found, and something that writes to the one that is learned after each step."""

    def __init__(self, make, write, n=20, by=lambda p: p):
        torch.manual_seed(0)
        self.x, true = torch.randn(2 * n, n), torch.randn(n, n) / n**0.5
        self.y, self.write, self.by, self.k = self.x @ true.T, write, by, 0
        self.model = torch.nn.Linear(n, n)
        self.first = self.model.weight.detach().clone()
        self.optimizer = make(self.model.parameters())

    def loss(self):
        return (self.model(self.x) - self.y).square().mean()

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
            with torch.no_grad():
                self.write(self.by(self.model.weight), self.k, self.first)
            self.k += 1
        return self

    @property
    def weight(self):
        return self.model.weight.detach().clone()


@functools.cache
def of_adam(write, n):
    """The loss after 200 steps of torch's Adam, of the better of two step sizes."""
    return min(Fit(lambda p, lr=lr: torch.optim.Adam(p, lr), write, n).train(200).loss().item() for lr in (1e-3, 1e-2))


@pytest.mark.parametrize(("write", "how"), crossed(WRITES, [*product(MAKES, [20, LARGE], ["no_grad", "data"])]), ids=name_of)
def test_the_step_size_does_not_run_away_from_what_others_write(write, how):
    """It ended at 1e3 to 1e18."""
    make, n, by = how
    mine = Fit(MAKES[make], write, n, (lambda p: p.data) if by == "data" else (lambda p: p))
    first = mine.loss().item()
    mine.train(200 if n < LARGE else 100)
    assert mine.loss() < (1.5 * of_adam(write, n) + 1e-3 if n < LARGE else first)  # where the steps are too few for some
    assert mine.optimizer.hyperparameters()[0]["lr"] < 10


@pytest.mark.parametrize("n", [20, LARGE])
def test_the_average_is_where_others_have_put_the_parameter(n):
    masked, clamped = (Fit(Hyperoptimizer, write, n).train(50) for write in (mask, clamp))
    masked.optimizer.eval()
    clamped.optimizer.eval()
    assert not masked.weight[:, ::2].any()
    assert masked.weight[:, 1::2].all()
    assert clamped.weight.abs().max() <= 0.05 * (1 + 1e-5)


@pytest.mark.parametrize("horizon", [1, 10])
@pytest.mark.parametrize("shapes", [[(6,)], [(6,), (3, 2)]], ids=str)
def test_hypergradients_are_those_of_what_is_left_of_a_step(horizon, shapes):
    """By finite differences in float64: nothing depends on a step that has been overwritten."""
    torch.manual_seed(0)
    start, goals = ([torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(2))

    def run(nudge, steps=4):
        """The loss, where the last step is made with another lr; and what the optimizer says of it."""
        params = [x.clone().requires_grad_() for x in start]
        optimizer = Hyperoptimizer(params, Adam(lr=0.05, tune="lr", horizon=horizon) / SGD(lr=0.0))
        for k in range(steps + 1):
            optimizer.zero_grad()
            loss = sum((p - q).square().mul(torch.arange(6.0).view_as(p) + 1).sum() for p, q in zip(params, goals, strict=True))
            loss.backward()
            if k == steps:
                optimizer.step()
                return loss.item(), optimizer.hypergradients()[0]["lr"]
            optimizer.param_groups[0]["lr"] = 0.05 + nudge * (k == steps - 1)
            optimizer.step()
            with torch.no_grad():
                for p in params:
                    p.view(-1)[::2] = 0.1 * k

    (up, _), (down, _), (_, said) = run(1e-6), run(-1e-6), run(0.0)
    if horizon == 1:
        assert said == pytest.approx((up - down) / 2e-6, rel=1e-6)
    else:
        assert said != 0


def test_a_path_goes_on_where_a_part_of_the_step_is_left():
    """And begins anew elsewhere: masked, turned back, or put far away."""
    p = torch.ones(4, dtype=torch.float64, requires_grad=True)
    rule = SGD(lr=0.1, tune="lr", charts={"lr": POSITIVE}, horizon=math.inf)
    optimizer = Hyperoptimizer([p], rule / SGD(lr=0.0))
    for _ in range(4):
        p.grad = torch.ones_like(p)
        optimizer.step()
        with torch.no_grad():
            p += torch.tensor([0.0, 0.04, 0.1, 5.0], dtype=torch.float64)
    p.grad = torch.ones_like(p)
    optimizer.step()
    # Of the first, four steps of 0.1. The second begins anew after the first step, before which nothing was watched; of the
    # other three 0.06 each are left. The others have come nowhere by themselves.
    assert optimizer.hypergradients()[0]["lr"] == pytest.approx((-0.4 - 0.18) / 0.1)
    assert optimizer.state[p]["last_movement"].tolist() == pytest.approx([-0.5, -0.28, -0.1, -0.1])


@pytest.mark.parametrize(("write", "how"), crossed(WRITES, [*product(MAKES, [20, LARGE])]), ids=name_of)
def test_a_resumed_run_sees_what_others_write_to_the_same_bits(write, how):
    make, n = MAKES[how[0]], how[1]
    steps = 30 if n < LARGE else 12
    whole = Fit(make, write, n).train(2 * steps)
    half = Fit(make, write, n).train(steps)
    resumed = Fit(make, write, n)
    resumed.k = steps
    resumed.model.load_state_dict(half.model.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(half.optimizer.state_dict()))
    resumed.train(steps)
    half.train(steps)  # to save changes nothing
    assert torch.equal(half.weight, whole.weight)
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize("n", [20, LARGE])
def test_other_weights_for_a_validation_and_the_same_again_change_nothing(n):
    def swap(p, k, first):
        if k % 5 == 4:
            mine = p.clone()
            p.copy_(first)
            p.copy_(mine)

    plain, swapped = (Fit(Hyperoptimizer, write, n).train(20) for write in (lambda *_: None, swap))
    assert torch.equal(plain.weight, swapped.weight)


@pytest.mark.parametrize("n", [20, LARGE])
def test_the_average_does_not_draw_back_to_where_it_was(n):
    """Weights that a script loads after an evaluation."""
    fit = Fit(lambda params: Hyperoptimizer(params, AdamWScheduleFree(lr=0.01)), lambda *_: None, n).train(20)
    fit.optimizer.eval()
    fit.optimizer.train()
    before = fit.weight
    fit.train(1)
    moved = (fit.weight - before).abs().max()
    with torch.no_grad():
        fit.model.weight.copy_(fit.first)
    fit.train(1)
    assert (fit.weight - fit.first).abs().max() <= 2 * moved  # no way back to where the average was
    assert (fit.optimizer.state[fit.model.weight]["z"] - fit.first).abs().max() < 0.1


def test_memory_that_a_script_puts_into_the_place_of_a_parameters_is_seen():
    def put(p, k, first):
        if k % 20 == 19 and k < 90:
            fit.model.weight.data = first.clone()

    for make in MAKES.values():
        fit = Fit(make, put, LARGE)
        first = fit.loss().item()
        assert fit.train(100).loss() < first
        assert fit.optimizer.hyperparameters()[0]["lr"] < 10


def trained_in_turns(write, pattern, steps=200, **options):
    """Four parameters, drawn to 1, of which some have a gradient in each step: `pattern` says which."""
    torch.manual_seed(0)
    params = [torch.randn(5, 5).requires_grad_() for _ in range(4)]
    optimizer = Hyperoptimizer(params, **options)
    for k in range(steps):
        for i, p in enumerate(params):
            p.grad = (p.detach() - 1) + torch.randn(5, 5) if pattern(i, k) else None
        optimizer.step()
        with torch.no_grad():
            for p in params:
                write(p, k, None)
    return params, optimizer


def test_parameters_that_move_in_turns_are_seen_to_be_written_to():
    """Experts, layers that are dropped: each step puts others together."""
    _, optimizer = trained_in_turns(clamp, lambda i, k: (k * (i + 2)) % 3 > 0)
    assert optimizer.hyperparameters()[0]["lr"] < 10


@pytest.mark.parametrize("tower", [auto(SGD(momentum=0.9)), Adam(lr=0.01, horizon=5) / SGD(lr=1e-3)], ids=["auto", "tower"])
@pytest.mark.parametrize("how", ["copy", "load"])
@pytest.mark.parametrize("written", [[0], [1], [0, 1]], ids=["that moved", "that rested", "both"])
def test_what_is_written_after_a_resume_is_seen_beside_one_that_has_rested_since(tower, how, written):
    """Both had moved together before: what was known of one alone was not known of both."""
    found = []
    for resumed in (False, True):
        torch.manual_seed(0)
        params = [torch.randn(3 + i, dtype=torch.float64, requires_grad=True) for i in range(2)]
        optimizer = Hyperoptimizer(params, tower)
        for t, moving in enumerate(([0, 1], [1], [0], [0, 1])):
            if t == 2 and resumed and how == "copy":
                params, optimizer = copy.deepcopy((params, optimizer))
            elif t == 2 and resumed:
                saved, optimizer = optimizer.state_dict(), Hyperoptimizer(params, tower)
                optimizer.load_state_dict(saved)
            if t == 3:
                with torch.no_grad():
                    torch._foreach_mul_([params[i] for i in written], 0.9)
            for i, p in enumerate(params):
                p.grad = 2 * (p.detach() - 1) if i in moving else None
            optimizer.step()
        found.append(optimizer.hyperparameters()[0]["lr"])
    assert found[0] == found[1]


@pytest.mark.parametrize("n", [8, LARGE])
def test_a_frozen_parameter_that_is_written_to_stays_where_it_was_put(n):
    p, q = (torch.zeros(n, n).requires_grad_() for _ in range(2))
    optimizer = Hyperoptimizer([p, q], AdamWScheduleFree(lr=0.01))
    for k in range(11):
        p.grad, q.grad = torch.ones_like(p) if k < 8 else None, torch.ones_like(q)
        optimizer.step()
    with torch.no_grad():
        p.fill_(5.0)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.eval()
    assert (p - 5).abs().max() < 0.1


@pytest.mark.parametrize("rows", [400, 4200])  # from 131,072 elements on, a part is looked at
def test_a_number_that_is_none_is_not_taken_for_written(rows):
    found = []
    for bad in (False, True):
        torch.manual_seed(0)
        p = torch.randn(rows, 32, dtype=torch.float64).requires_grad_()
        optimizer = Hyperoptimizer([p], SGDScheduleFree(lr=0.1, sample=16) / SGD(lr=0.0))
        for t in range(8):
            p.grad = torch.sin(p.detach() + t)
            if t >= 5 and bad:
                p.grad[0] = math.nan
            optimizer.step()
        optimizer.eval()
        found.append(p.detach()[1:])
    assert torch.equal(*found)


def test_what_was_deleted_before_an_evaluation_begins_anew():
    fit = Fit(Hyperoptimizer, clamp).train(5)
    del fit.optimizer.state[fit.model.weight]
    fit.optimizer.eval()
    fit.optimizer.train()
    assert fit.model.weight not in fit.optimizer.state
    fit.train(1)
    assert fit.optimizer.state[fit.model.weight]["step"] == 1


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_resumed_run_sees_what_is_written_in_a_forward_pass(max_norm):
    def go(model, optimizer, steps):
        for k in steps:
            optimizer.zero_grad()
            (model(torch.arange(k % 7, k % 7 + 9)).sum(1) - 2).square().mean().backward()
            optimizer.step()

    ends = []
    for cut in (None, 6):
        torch.manual_seed(0)
        model = torch.nn.Embedding(20, 8, max_norm=max_norm)
        optimizer = Hyperoptimizer(model.parameters())
        go(model, optimizer, range(cut or 12))
        if cut:
            model, optimizer = copy.deepcopy((model, optimizer))
            go(model, optimizer, range(cut, 12))
        ends.append(model.weight.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("n", [20, LARGE])
def test_a_checkpoint_that_is_saved_while_other_weights_are_in_place_changes_nothing(n):
    def swap(p, k, first):
        mine = p.clone()
        p.copy_(first)
        fit.optimizer.state_dict()
        p.copy_(mine)

    plain = Fit(Hyperoptimizer, lambda *_: None, n).train(10)
    fit = Fit(Hyperoptimizer, swap, n)
    assert torch.equal(fit.train(10).weight, plain.weight)


def test_rows_that_are_masked_where_nothing_is_read_are_masked_in_the_average():
    def first_columns(p, k, first):
        p[:, :100] = 0

    fit = Fit(Hyperoptimizer, first_columns, LARGE).train(10)
    fit.optimizer.eval()
    assert not fit.weight[:, :100].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6,), (5, 5), (200, 200), (LARGE, LARGE)], ids=str)
def test_nothing_is_seen_where_nobody_writes(shape, dtype):
    torch.manual_seed(0)
    p = torch.randn(shape).to(dtype).requires_grad_()
    optimizer = Hyperoptimizer([p])
    for _ in range(5):
        p.grad = p.detach() - 1
        optimizer.step()
        optimizer.eval()
        optimizer.train()
    assert "last_left" not in optimizer.state[p]
    if p.numel() < LARGE:  # nor where what is written changes nothing
        with torch.no_grad():
            p.clamp_(-1e9, 1e9)
        optimizer.step()
        assert "last_left" not in optimizer.state[p]
    with torch.no_grad():
        p.mul_(0.5)
    p.grad = p.detach() - 1
    optimizer.step()
    assert torch.equal(optimizer.state[p]["last_left"], p.to(torch.float32))


@pytest.mark.parametrize("rule", [auto(Muon()), Muon(charts={"lr": POSITIVE}, horizon=20) / SGD(lr=1e-3)], ids=["auto", "20"])
def test_a_small_matrix_goes_on_where_the_same_is_written(rule):
    """Of a rule that mixes elements, its whole path was thrown away."""

    def same(p, k, first):
        if k % 5 == 2:
            p.copy_(p.clone())

    plain, written = (
        Fit(lambda params: Hyperoptimizer([p for p in params if p.ndim == 2], rule), write).train(20)
        for write in (lambda p, k, first: None, same)
    )
    assert torch.equal(plain.weight, written.weight)
    assert plain.optimizer.hypergradients() == written.optimizer.hypergradients()


def test_an_average_goes_on_whatever_the_id_of_its_parameter_has_been_before():
    """A parameter that has gone leaves its id to another."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(50, 3))
    optimizer = Hyperoptimizer([p])
    for _ in range(40):
        for _ in range(3):
            p.grad = p.detach() + 0.1 * torch.randn_like(p)
            optimizer.step()
        q = torch.nn.Parameter(p.detach().clone())
        optimizer.state[q] = {n: x.clone() for n, x in optimizer.state.pop(p).items()}
        optimizer.param_groups[0]["params"][0] = p = q
        del q
        optimizer.eval()
        assert not torch.equal(p, optimizer.state[p]["z"])
        optimizer.train()
        assert "last_left" not in optimizer.state[p]


@pytest.mark.parametrize("tower", [None, Adam(lr=0.01, horizon=20) / SGD(lr=1e-6)], ids=["default", "trace"])
@pytest.mark.parametrize("how", ["frozen", "forgotten", "replaced", "cloned"])
def test_who_is_not_written_to_goes_on_though_others_are_and_parameters_go(how, tower):
    """Those that were gathered with one that goes are gathered anew: what the last step has left of each is known even so."""

    def trained(write):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (6, 6, 4)]
        optimizer = Hyperoptimizer(params, tower)
        for t in range(32):
            if t == 30 and how == "frozen":
                params[0].requires_grad_(False)
            if t == 30 and how == "forgotten":
                del optimizer.state[params[0]]
            if t == 30 and how == "replaced":
                params[0] = optimizer.param_groups[0]["params"][0] = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
            if t == 30 and how == "cloned":
                optimizer.state[params[0]] = {n: x.clone() for n, x in optimizer.state[params[0]].items()}
            if t == 30 and write:
                with torch.no_grad():
                    params[2][0] = 0.0
            for p in params:
                p.grad = p.detach() - 1 if p.requires_grad else None
            optimizer.step()
        return params, optimizer.state

    (_, q, r), plain = trained(False)
    (_, mine, theirs), written = trained(True)
    name = next(n for n in plain[q] if n.startswith("last_"))
    torch.testing.assert_close(written[mine][name], plain[q][name], rtol=1e-2, atol=0)
    if how != "cloned":  # else what the last step has left of the one is not known, and nothing is looked at
        torch.testing.assert_close(written[theirs][name][1:], plain[r][name][1:], rtol=1e-2, atol=0)
    assert (plain[q][name].abs() > 0.01).all()
