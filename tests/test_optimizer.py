"""Hyperoptimizer is an optimizer of torch: what scripts do with theirs works with it."""

import copy

import pytest
import torch
from cases import loss, parameters, train
from helpers import EXACT, TOWER, fit, forward, levels, network, scalars
from torch import nn
from torch.distributions.transforms import PowerTransform

import hypergradient as hg
from hypergradient import POSITIVE, SGD, Adam, AdamW, Hyperoptimizer, auto


def test_is_an_optimizer_that_trains():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    assert isinstance(optimizer, torch.optim.Optimizer)
    losses = train(optimizer, mine, 300)
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    assert optimizer.defaults["lr"] == 0.01


def test_parameters_stay_the_same_leaves_updated_in_place():
    mine = parameters()
    pointers = [p.data_ptr() for p in mine]
    train(Hyperoptimizer(mine, TOWER), mine, 3)
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in mine)
    assert [p.data_ptr() for p in mine] == pointers


def test_no_graph_is_kept_and_gradients_are_left_alone():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER)
    train(optimizer, mine, 3)
    before = [p.grad.clone() for p in mine]
    optimizer.step()
    torch.testing.assert_close([p.grad for p in mine], before, rtol=0, atol=0)
    tensors = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    assert tensors
    assert not any(t.requires_grad for t in tensors)


def test_closure_is_called_with_gradients_and_its_loss_returned():
    mine, twin = parameters(), parameters()
    one, other = Hyperoptimizer(mine, TOWER), Hyperoptimizer(twin, TOWER)

    def closure():
        one.zero_grad()
        value = loss(mine)
        value.backward()
        return value

    with torch.no_grad():
        assert one.step(closure).item() == loss(twin).item()
    train(other, twin, 1)
    torch.testing.assert_close(mine, twin, rtol=0, atol=0)
    assert torch.is_grad_enabled()


def test_tied_weights():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    twin = copy.deepcopy(model)
    fit(Hyperoptimizer(model.parameters(), Adam(lr=0.01) / SGD(lr=0.0)), model, 5)
    fit(torch.optim.Adam(twin.parameters(), lr=0.01), twin, 5)
    assert model[2].weight is model[0].weight
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-10, atol=1e-12)


def test_models_can_be_copied_in_mid_training():
    model = network()
    optimizer = Hyperoptimizer(model.parameters(), TOWER)
    fit(optimizer, model, 3)
    copied, average = copy.deepcopy(model), torch.optim.swa_utils.AveragedModel(model)
    before = [p.clone() for p in copied.parameters()]
    fit(optimizer, model, 3)
    average.update_parameters(model)
    torch.testing.assert_close(list(copied.parameters()), before, rtol=0, atol=0)


def test_accumulation_and_clipping():
    """The hypergradient is that of the gradients which `step` finds."""
    results = []
    for parts in (1, 4):
        model = network()
        optimizer = Hyperoptimizer(model.parameters(), TOWER)
        for t in range(10):
            optimizer.zero_grad()
            for _ in range(parts):
                (forward(model, t) / parts).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        results.append([*model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


def test_the_built_in_lstm():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(3, 4, num_layers=2), torch.randn(7, 2, 3)
    optimizer, losses = Hyperoptimizer(lstm.parameters(), TOWER), []
    for _ in range(60):
        optimizer.zero_grad()
        value = (lstm(x)[0][..., :3] - 0.3 * x).square().mean()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]


def test_named_parameters_keep_their_names():
    model = network()
    optimizer = Hyperoptimizer(model.named_parameters(), TOWER)
    assert optimizer.param_groups[0]["param_names"] == [n for n, _ in model.named_parameters()]
    fit(optimizer, model, 2)


def test_values_of_the_user_that_are_not_tuned_are_in_force():
    mine, theirs = parameters(), parameters()
    optimizer, twin = Hyperoptimizer(mine, AdamW(lr=0.01)), torch.optim.AdamW(theirs, lr=0.01)
    for t, decay in enumerate([0.1, 0.0, 0.3]):
        optimizer.param_groups[0]["weight_decay"] = twin.param_groups[0]["weight_decay"] = decay
        train(optimizer, mine, 2, t)
        train(twin, theirs, 2, t)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_who_looks_at_state_early_loses_nothing():
    runs = []
    for early in (True, False):
        (p,) = scalars(3)
        optimizer = Hyperoptimizer([p], SGD(lr=0.1) / SGD(lr=1e-2))
        if early:
            assert optimizer.hyperparameters()[0]["lr"] == 0.1
            assert optimizer.state[p] == {}
        for _ in range(3):
            optimizer.step()
        runs.append([p.detach(), levels(optimizer), optimizer.hyperparameters()])
    torch.testing.assert_close(*runs, **EXACT)


@pytest.mark.parametrize("tower", [TOWER, auto()], ids=["tower", "default"])
def test_what_is_done_in_inference_mode_can_be_trained_with(tower):
    runs = []
    for context in (torch.inference_mode, torch.enable_grad):
        mine = parameters()
        optimizer = Hyperoptimizer(mine, tower)
        loss(mine, 0).backward()
        with context():
            optimizer.hyperparameters()
            for _ in range(3):
                optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.eval()
            optimizer.train()
        runs.append([train(optimizer, mine, 3), optimizer.hyperparameters()])
    assert runs[0] == runs[1]


def test_repr_of_a_chart_stays_as_it_is_used():
    """`PowerTransform` keeps its sign as an attribute when it is first asked for."""
    tower = SGD(lr=0.01, charts={"lr": PowerTransform(2.0)}) / SGD(lr=1e-3)
    before = repr(tower)
    model = nn.Linear(3, 2)
    optimizer = Hyperoptimizer(model.parameters(), tower)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    assert repr(tower) == before
    Hyperoptimizer(model.parameters(), eval(before)).load_state_dict(optimizer.state_dict())


def test_repr_is_in_the_notation_of_the_paper():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, Adam(lr=1e-3) / SGD(lr=1e-5))
    assert repr(optimizer) == "Adam(lr=0.001, beta1=0.9, beta2=0.999) / SGD(lr=1e-05)"
    tower = SGD(lr=0.1, tune=("lr",), charts={"lr": POSITIVE}, horizon=9) / SGD(lr={"lr": 0.1}) / Adam(lr=1e-3, amsgrad=True)
    assert eval(repr(tower), vars(hg)) == tower


@pytest.mark.parametrize("count", [1, 2])
def test_complex_parameters(count):
    mine, theirs = ([torch.tensor([1 + 2j, 3 - 1j], requires_grad=True) for _ in range(count)] for _ in range(2))
    optimizer, twin = Hyperoptimizer(mine, Adam(lr=0.1) / SGD(lr=0.0)), torch.optim.Adam(theirs, lr=0.1)
    for _ in range(10):
        for params, o in ((mine, optimizer), (theirs, twin)):
            o.zero_grad()
            sum((i + 1) * (x.abs() - 1).square().sum() for i, x in enumerate(params)).backward()
            o.step()
    torch.testing.assert_close(mine, theirs)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()


@pytest.mark.parametrize("tower", [Adam(lr=0.1) / SGD(lr=0.01), SGD(lr=0.1, horizon=3) / SGD(lr=0.01)], ids=repr)
def test_several_complex_parameters_move_as_their_parts_do(tower):
    z = [torch.tensor([1 + 2j, 3 - 1j]).requires_grad_(), torch.tensor([[0.5j], [2.0], [1 - 1j]]).requires_grad_()]
    parts = [torch.view_as_real(x.detach()).clone().requires_grad_() for x in z]
    optimizer, twin = Hyperoptimizer(z, tower), Hyperoptimizer(parts, tower)
    for _ in range(10):
        for x, o in ((z, optimizer), ([torch.view_as_complex(p) for p in parts], twin)):
            o.zero_grad()
            sum((y.abs() - 1).square().sum() for y in x).backward()
            o.step()
    torch.testing.assert_close([torch.view_as_real(x) for x in z], parts)
    assert optimizer.hyperparameters() == twin.hyperparameters()


def test_bfloat16_parameters_have_float32_hyperparameters_and_state():
    mine = [p.detach().to(torch.bfloat16).requires_grad_() for p in parameters()]
    optimizer = Hyperoptimizer(mine, Adam(lr=1e-3) / SGD(lr=1e-6))
    for _ in range(2):
        for _ in range(3):
            optimizer.zero_grad()
            loss([p.double() for p in mine]).backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        tensors = [t for t in optimizer.state[mine[0]].values() if isinstance(t, torch.Tensor)]
        assert {t.dtype for t in tensors} == {torch.float32}
    assert mine[0].dtype == torch.bfloat16


@pytest.mark.parametrize("per", ["group", "tensor"])
def test_an_optimizer_of_nothing(per):
    optimizer = Hyperoptimizer([{"params": []}], SGD(lr=0.1) / SGD(lr=0.1), per=per)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert repr(optimizer).endswith(" / SGD(lr=0.1)")


def test_a_bucket_of_one_element_and_none():
    optimizer = Hyperoptimizer(scalars(1, 0), Adam(lr=0.1) / SGD(lr=1e-3), per="tensor")
    for _ in range(3):
        optimizer.step()
    assert optimizer.hyperparameters()[0]["lr"][0] != 0.1


def test_what_is_in_force_can_be_looked_at_after_a_checkpoint_and_when_a_group_has_come():
    mine = parameters()
    optimizer = Hyperoptimizer(mine)
    train(optimizer, mine, 3)
    before = optimizer.snapshot().hyperparameters(0)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.snapshot().hyperparameters(0) == before
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert optimizer.snapshot().hyperparameters(1)[0]["lr"] == optimizer.tower.rules[0].lr


def test_a_horizon_prints_all_its_digits():
    assert [repr(hg.Age(x)) for x in (4, 1 / 3)] == ["Age(4)", f"Age({1 / 3!r})"]


def test_another_loss_may_have_sparse_gradients_of_what_others_move():
    embedding, head = torch.nn.Embedding(5, 3, sparse=True), torch.nn.Linear(3, 1)
    optimizer = Hyperoptimizer(head.parameters(), SGD(lr=0.1) / SGD(lr=1e-3))
    other = torch.optim.SparseAdam(embedding.parameters())
    for _ in range(3):
        loss_of = head(embedding(torch.tensor([1, 2]))).sum()
        loss_of.backward()
        kept = embedding.weight.grad
        optimizer.tune_on(head(embedding(torch.tensor([1, 3]))).sum())
        assert embedding.weight.grad is kept
        optimizer.step()
        other.step()
        optimizer.zero_grad()
        other.zero_grad()
    assert optimizer.hypergradients()[0]["lr"] != 0


@pytest.mark.parametrize("tower", [None, AdamW(lr=1e-3), AdamW(lr=1e-3) / SGD(lr=1e-5)], ids=repr)
def test_defaults_are_those_of_new_groups(tower):
    """As in torch: what a group shows that says nothing of itself, also when they are changed."""
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    optimizer = Hyperoptimizer([a], tower)
    assert {n: optimizer.param_groups[0][n] for n in optimizer.defaults} == optimizer.defaults
    optimizer.defaults["weight_decay"] = 0.5
    optimizer.add_param_group({"params": [b]})
    optimizer.add_param_group({"params": [c], "weight_decay": 0.1, "betas": (0.5, 0.6)} if tower else {"params": [c]})
    assert [group["weight_decay"] for group in optimizer.param_groups][1:] == [0.5, 0.1 if tower else 0.5]
    assert not tower or optimizer.hyperparameters(2)[0]["beta1"] == 0.5


def test_a_list_of_parameters_is_no_module():
    params = torch.nn.ParameterList([torch.ones(2), torch.ones(3)])
    assert Hyperoptimizer(params).param_groups[0]["params"] == [*params]
