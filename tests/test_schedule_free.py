"""Rules that average: equal to the PyPI package `schedulefree`; the average for evaluation, and back to the bit."""

import copy
import pickle

import pytest
import schedulefree
import torch
from cases import loss, parameters, train
from helpers import EXACT, clones, network, resumed, stored

import hypergradient as hg
from hypergradient import POSITIVE, SGD, AdamWScheduleFree, Hyperoptimizer, SGDScheduleFree, auto

PAIRS = {"AdamW": (AdamWScheduleFree, schedulefree.AdamWScheduleFree), "SGD": (SGDScheduleFree, schedulefree.SGDScheduleFree)}
TOWER = AdamWScheduleFree(lr=0.01, r=2, tune="lr", charts={"lr": POSITIVE}) / SGD(lr=0.1)


def same(mine, theirs):
    torch.testing.assert_close([p.detach() for p in mine], [p.detach() for p in theirs], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1}, {"r": 2.0}, {"r": 2.0, "weight_lr_power": 1.0, "weight_decay": 0.1}], ids=str
)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_equals_the_package_in_training_and_in_evaluation(pair, options):
    rule, twin = pair
    mine, theirs = parameters(), parameters()
    a, b = Hyperoptimizer(mine, rule(lr=0.02, **options)), twin(theirs, lr=0.02, **options)
    for start in range(0, 100, 20):
        a.train(), b.train()
        train(a, mine, 20, start), train(b, theirs, 20, start)
        same(mine, theirs)
        a.eval(), b.eval()
        same(mine, theirs)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_groups_have_their_own_values(pair):
    rule, twin = pair
    mine, theirs = parameters(), parameters()

    def groups(p):
        return [{"params": p[:1], "lr": 1e-2, "weight_decay": 0.1}, {"params": p[1:], "lr": 3e-3, "r": 1.0}]

    a, b = Hyperoptimizer(groups(mine), rule()), twin(groups(theirs))
    b.train()
    train(a, mine, 100), train(b, theirs, 100)
    same(mine, theirs)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_a_step_size_that_changes_weighs_as_in_the_package(pair):
    rule, twin = pair
    mine, theirs = parameters(), parameters()
    a, b = Hyperoptimizer(mine, rule(lr=0.02, r=2.0)), twin(theirs, lr=0.02, r=2.0)
    b.train()
    for start, lr in enumerate([0.02, 0.005, 0.03, 0.001, 0.01]):
        a.param_groups[0]["lr"] = b.param_groups[0]["lr"] = lr
        train(a, mine, 5, 5 * start), train(b, theirs, 5, 5 * start)
        same(mine, theirs)


def test_a_step_weighs_by_the_highest_step_size_so_far():
    p = torch.ones(1, requires_grad=True)
    optimizer = Hyperoptimizer([p], SGDScheduleFree(lr=0.5, momentum=0.8, r=1.0))
    z, x, highest, total = 1.0, 1.0, 0.0, 0.0
    for t, lr in enumerate([0.1, 0.5, 0.2, 0.0, 0.3, 0.7], 1):
        optimizer.param_groups[0]["lr"] = lr
        p.grad = torch.full_like(p, float(t))
        optimizer.step()
        highest = max(highest, lr)
        weight = highest**2 * t if lr else 0.0  # frozen, all stands still
        z, total = z - lr * t, total + weight
        x += weight / total * (z - x)
        assert p.item() == pytest.approx(0.2 * z + 0.8 * x, rel=1e-12)
    assert optimizer.state[p]["weight_sum"].item() == pytest.approx(total, rel=1e-15)
    assert optimizer.state[p]["lr_max"].item() == pytest.approx(0.7, rel=1e-15)
    optimizer.eval()
    assert p.item() == pytest.approx(x, rel=1e-12)


# ------------------------------------------------------------------ there and back


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("rule", [AdamWScheduleFree(lr=0.01), SGDScheduleFree(lr=0.01), TOWER], ids=str)
def test_evaluation_and_back_is_exact_to_the_bit(rule, dtype):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(n, generator=generator).to(dtype).requires_grad_() for n in (7, 200_000)]
    optimizer = Hyperoptimizer(params, rule)
    for call in (None, "eval", "train eval", "eval eval train train", "eval train eval"):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        optimizer.train()
        optimizer.step()
        before = [p.detach().clone() for p in params]
        for name in (call or "").split():
            getattr(optimizer, name)()
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True)) == (not call or call.endswith("train"))
        optimizer.train()
        torch.testing.assert_close([p.detach() for p in params], before, **EXACT)


def test_before_the_first_step_and_for_other_rules_nothing_happens():
    for rule in (AdamWScheduleFree(), hg.Adam(), hg.Adam() / SGD(lr=1e-5)):
        params = parameters()
        optimizer = Hyperoptimizer(params, rule)
        optimizer.eval()
        torch.testing.assert_close(params, parameters(), **EXACT)
        train(optimizer, params, 2)
        before = [p.detach().clone() for p in params]
        if not isinstance(rule, AdamWScheduleFree):
            optimizer.eval()
        torch.testing.assert_close([p.detach() for p in params], before, **EXACT)


def test_a_step_in_evaluation_goes_back_by_itself():
    mine, theirs = parameters(), parameters()
    a, b = Hyperoptimizer(mine, TOWER), Hyperoptimizer(theirs, TOWER)
    train(a, mine, 5), train(b, theirs, 5)
    a.eval()
    for p, q in zip(mine, theirs, strict=True):
        p.grad = q.grad.clone()
    a.step(), b.step()
    torch.testing.assert_close(mine, theirs, **EXACT)
    a.eval()
    a.step(lambda: closure(a, mine)), b.step(lambda: closure(b, theirs))  # which is called after it went back
    torch.testing.assert_close(mine, theirs, **EXACT)


def closure(optimizer, params):
    optimizer.zero_grad()
    value = loss(params)
    value.backward()
    return value


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_checkpoint_of_either_goes_on_to_the_same_bits(evaluating):
    mine = parameters()
    a = Hyperoptimizer(mine, TOWER)
    train(a, mine, 5)
    if evaluating:
        a.eval()
    theirs = clones(mine)
    b = resumed(a, theirs)
    pickled, copied = copy.deepcopy((a, mine))
    for optimizer, params in ((a, mine), (b, theirs), (pickled, copied)):
        optimizer.train()
        train(optimizer, params, 5, 5)
        optimizer.eval()
    torch.testing.assert_close(mine, theirs, **EXACT)
    torch.testing.assert_close(mine, copied, **EXACT)


@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("how", ["load", "copy", "pickle"])
def test_other_betas_after_a_checkpoint_of_evaluation_leave_the_training_point(how, times, per):
    optimizer = Hyperoptimizer(params := parameters(), AdamWScheduleFree(lr=0.05) / SGD(lr=1e-4), per=per)
    train(optimizer, params, 20)
    before = clones(params)
    optimizer.eval()
    for _ in range(times):
        if how == "load":
            fresh = Hyperoptimizer(copied := [p.detach().clone().requires_grad_() for p in params], optimizer.tower, per=per)
            fresh.load_state_dict(stored(optimizer.state_dict()))
            optimizer, params = fresh, copied
        else:
            both = params, optimizer
            params, optimizer = copy.deepcopy(both) if how == "copy" else pickle.loads(pickle.dumps(both))
        optimizer.param_groups[0]["betas"] = (0.5, 0.999)
    optimizer.train()
    assert all(map(torch.equal, before, params))


@pytest.mark.parametrize("shape", [(6, 5), (400, 400)], ids=["small", "large"])
@pytest.mark.parametrize("tower", [AdamWScheduleFree(lr=0.01), auto()], ids=["alone", "default"])
def test_what_somebody_writes_while_evaluating_is_both_from_then_on(tower, shape):
    torch.manual_seed(0)
    params = [torch.randn(shape, requires_grad=True) for _ in range(2)]
    optimizer = Hyperoptimizer(params, tower)
    for _ in range(5):
        for p in params:
            p.grad = p.detach().sin()
        optimizer.step()
    trained = [p.detach().clone() for p in params]
    optimizer.eval()
    average = [p.detach().clone() for p in params]
    with torch.no_grad():
        params[0][::2] = 0.0
        params[0][1] *= 1.001
    written = params[0].detach().clone()
    optimizer.train()
    torch.testing.assert_close(params[0][3::2], trained[0][3::2], **EXACT)
    for move in (optimizer.train, optimizer.eval):
        move()
        torch.testing.assert_close(params[0][::2], written[::2], **EXACT)
        torch.testing.assert_close(params[0][1], written[1], **EXACT)
    rest = trained if shape == (400, 400) else average  # of a large one it is not known what else was written
    torch.testing.assert_close([p[3::2] for p in params], [rest[0][3::2], average[1][3::2]])
    optimizer.train()
    torch.testing.assert_close(params[1].detach(), trained[1], **EXACT)


def test_state_is_of_each_parameter():
    model = network()
    optimizer = Hyperoptimizer(model.parameters(), AdamWScheduleFree(lr=0.01))
    for t in range(5):
        for i, p in enumerate(model.parameters()):
            p.grad = torch.ones_like(p) if i or t > 2 else None
        optimizer.step()
    first, second, *_ = model.parameters()
    sums = [optimizer.state[p]["weight_sum"].item() for p in (first, second)]
    assert sums == pytest.approx([2e-4, 5e-4])
    optimizer.state[second]["weight_sum"].zero_()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [optimizer.state[p]["weight_sum"].item() for p in (first, second)] == pytest.approx([3e-4, 1e-4])
    assert stored(optimizer.state_dict())["state"][1]["weight_sum"].item() == pytest.approx(1e-4)


def test_what_evaluation_needs_is_checked_at_once():
    with pytest.raises(
        ValueError, match=r"AdamWScheduleFree: beta1=0.0 is not allowed; it must be a finite number in \(0, 1\)"
    ):
        AdamWScheduleFree(beta1=0.0)


def test_what_somebody_takes_away_while_evaluating_is_not_missed():
    params = parameters()
    optimizer = Hyperoptimizer(params, AdamWScheduleFree(lr=0.01))
    train(optimizer, params, 5)
    trained = [p.detach().clone() for p in params]
    del optimizer.state[params[2]]["z"]
    optimizer.state["mine"] = 3
    optimizer.eval()
    torch.testing.assert_close(params[2].detach(), trained[2], **EXACT)
    del optimizer.state[params[0]]["z"]
    optimizer.train()
    torch.testing.assert_close([p.detach() for p in params], trained, **EXACT)
    train(optimizer, params, 1, 5)


@pytest.mark.parametrize("explicit", [True, False])
def test_what_was_there_in_evaluation_may_be_put_back_by_hand(explicit):
    """Also after it was left."""
    runs = []
    for undone in (False, True):
        params = parameters()
        optimizer = Hyperoptimizer(params, AdamWScheduleFree(lr=0.02, weight_decay=0.1))
        train(optimizer, params, 5)
        optimizer.eval()
        saved = [(p, p.detach().clone(), {n: x.clone() for n, x in optimizer.state[p].items()}) for p in params]
        if undone:
            optimizer.train()
            train(optimizer, params, 3, 5)
            for p, average, entry in saved:
                p.data.copy_(average)
                optimizer.state[p] = entry
        if explicit:
            optimizer.train()
        train(optimizer, params, 3, 8)
        runs.append(clones(params))
    torch.testing.assert_close(*runs, **EXACT)


def test_parameters_that_share_memory_come_back_to_the_bit():
    a = torch.randn(4, 4).requires_grad_()
    b = torch.nn.Parameter(torch.empty(4, 4))
    b.data = a.data.T
    optimizer = Hyperoptimizer([a, b], AdamWScheduleFree(lr=0.01))
    for _ in range(5):
        a.grad, b.grad = torch.randn(4, 4), torch.randn(4, 4)
        optimizer.step()
    before = a.detach().clone()
    optimizer.eval()
    optimizer.train()
    torch.testing.assert_close(a.detach(), before, **EXACT)


def test_state_goes_to_the_device_of_the_parameter():
    params = parameters()
    optimizer = Hyperoptimizer(params, AdamWScheduleFree(lr=0.01))
    train(optimizer, params, 2)
    elsewhere = [torch.empty_like(p, device="meta").requires_grad_() for p in params]
    twin = Hyperoptimizer(elsewhere, AdamWScheduleFree(lr=0.01))
    twin.load_state_dict(stored(optimizer.state_dict()))
    assert {x.device.type for p in elsewhere for n, x in twin.state[p].items() if x.ndim or n == "z"} == {"meta"}


@pytest.mark.parametrize("make", [lambda p: Hyperoptimizer([p]), lambda p: Hyperoptimizer([p], SGDScheduleFree(lr=0.1))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("first", ["eval", "convert"])
def test_parameters_that_become_of_another_dtype_go_there_and_back(make, dtype, first):
    """While the average is in their place, or before."""
    torch.manual_seed(0)
    p = torch.randn(50, dtype=torch.float32, requires_grad=True)
    optimizer = make(p)
    train_a_bowl(optimizer, p, 20)
    before = p.detach().clone().to(dtype)
    if first == "eval":
        optimizer.eval()
    p.data = p.data.to(dtype)
    if first == "convert":
        optimizer.eval()
    assert not torch.equal(p, before)
    optimizer.train()
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=0)
    train_a_bowl(optimizer, p, 1)


def test_a_float32_checkpoint_is_evaluated_in_a_model_of_doubles():
    p = torch.randn(5, dtype=torch.float32, requires_grad=True)
    optimizer = Hyperoptimizer([p])
    train_a_bowl(optimizer, p, 3)
    q = p.detach().double().requires_grad_()
    other = Hyperoptimizer([q])
    other.load_state_dict(stored(optimizer.state_dict()))
    optimizer.eval(), other.eval()
    torch.testing.assert_close(q.detach(), p.detach().double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("rule", "values"),
    [(None, {"betas": (0.85, 0.999)}), (SGDScheduleFree(lr=0.1), {"momentum": 0.85})],
    ids=["AdamW", "SGD"],
)
def test_a_beta_that_is_scheduled_in_evaluation_moves_nothing(rule, values):
    """As OneCycleLR does when it steps after validation."""
    torch.manual_seed(0)
    p = torch.randn(50, dtype=torch.float32, requires_grad=True)
    optimizer = Hyperoptimizer([p], rule)
    train_a_bowl(optimizer, p, 10)
    before = p.detach().clone()
    optimizer.eval()
    optimizer.param_groups[0].update(values)
    optimizer.eval()
    optimizer.train()
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=0)
    optimizer.eval()  # from here on with the new one
    after = p.detach().clone()
    optimizer.train()
    optimizer.eval()
    torch.testing.assert_close(p.detach(), after, rtol=0, atol=0)


def train_a_bowl(optimizer, p, steps):
    for _ in range(steps):
        p.grad = p.detach() + 0.1 * torch.randn_like(p)
        optimizer.step()


def test_evaluation_in_a_closure_that_is_not_left_goes_back_by_itself():
    mine, theirs = parameters(), parameters()
    a, b = Hyperoptimizer(mine, TOWER), Hyperoptimizer(theirs, TOWER)
    train(a, mine, 5), train(b, theirs, 5)

    def looks():
        value = closure(a, mine)
        a.eval()
        return value

    a.step(looks), b.step(lambda: closure(b, theirs))
    torch.testing.assert_close(mine, theirs, **EXACT)


def test_an_entry_of_the_users_that_is_called_training_is_none_of_ours():
    params = parameters()
    optimizer = Hyperoptimizer(params, TOWER)
    train(optimizer, params, 2)
    optimizer.state[params[0]]["training"] = True
    train(optimizer, params, 2)
    assert optimizer.state[params[0]]["training"] is True


def test_a_hook_after_loading_may_go_back_to_training():
    params = parameters()
    optimizer = Hyperoptimizer(params, TOWER)
    train(optimizer, params, 5)
    before = [p.detach().clone() for p in params]
    optimizer.eval()
    theirs = clones(params)
    twin = Hyperoptimizer(theirs, TOWER)
    twin.register_load_state_dict_post_hook(lambda o: o.train())
    twin.load_state_dict(stored(optimizer.state_dict()))
    twin.train()
    torch.testing.assert_close([p.detach() for p in theirs], before)


@pytest.mark.parametrize("power", [-1.0, 2.0])
def test_a_first_step_of_an_lr_of_0_weighs_nothing_under_any_power(power):
    params = parameters()
    optimizer = Hyperoptimizer(params, AdamWScheduleFree(lr=0.01, weight_lr_power=power))
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, params, 1)
    optimizer.param_groups[0]["lr"] = 0.01
    train(optimizer, params, 3)
    optimizer.eval()
    assert all(p.isfinite().all() for p in params)
