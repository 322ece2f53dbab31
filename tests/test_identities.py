"""Identities: two ways to say the same thing train the same."""

import pytest
import torch
from cases import loss, parameters

from hypergradient import POSITIVE, REAL, SGD, Adagrad, Adam, AdamW, Hyperoptimizer, RMSprop

UP = SGD(lr=1e-3)


def run(tower, split=lambda p: p, steps=30, **options):
    """Losses, final weights and learned values."""
    mine = parameters()
    optimizer, losses = Hyperoptimizer(split(mine), tower, **options), []
    for t in range(steps):
        optimizer.zero_grad()
        value = loss(mine, t)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses, [p.detach().clone() for p in mine], optimizer


def same(one, other, **tolerance):
    tolerance = {"rtol": 1e-10, "atol": 1e-12, **tolerance}
    torch.testing.assert_close(one[0], other[0], **tolerance)
    torch.testing.assert_close(one[1], other[1], **tolerance)


BETAS = ("lr", "beta1", "beta2")
SAME = {
    "AdamW without decay is Adam": (AdamW(lr=0.01, weight_decay=0.0) / UP, Adam(lr=0.01) / UP),
    "SGD with momentum 0 is SGD": (
        SGD(lr=0.1, momentum=0.0, tune=("lr", "momentum")) / SGD(lr={"lr": 1e-3, "momentum": 0.0}),
        SGD(lr=0.1, tune="lr") / UP,
    ),
    "Adam with beta1 = 0, beta2 = 0 and RMSprop with alpha = 0": (
        Adam(lr=0.01, beta1=0.0, beta2=0.0, tune="lr") / UP,
        RMSprop(lr=0.01, alpha=0.0, tune="lr") / UP,
    ),
    "upper lr 0 is the plain rule": (Adam(lr=0.01) / SGD(lr=0.0), Adam(lr=0.01)),
    "upper lr 0, two levels": (SGD(lr=0.1) / Adam(lr=0.0, tune="beta1") / SGD(lr=0.0), SGD(lr=0.1)),
    "upper lr 0, charts and horizon": (
        SGD(lr=0.1, momentum=0.5, charts={"lr": POSITIVE}, horizon=10, normalize="cosine") / Adagrad(lr=0.0),
        SGD(lr=0.1, momentum=0.5),
    ),
    "a level that a level with lr 0 tunes": (Adam(lr=0.01) / Adam(lr=1e-3) / SGD(lr=0.0), Adam(lr=0.01) / Adam(lr=1e-3)),
    "equal values by dict": (
        Adam(lr=0.01) / SGD(lr=dict.fromkeys(BETAS, 1e-3)),
        Adam(lr=0.01) / SGD(lr=1e-3),
    ),
    "a value 0 by dict is not to tune": (
        Adam(lr=0.01) / SGD(lr={"lr": 1e-3, "beta1": 0.0, "beta2": 0.0}),
        Adam(lr=0.01, tune="lr") / SGD(lr=1e-3),
    ),
    "the default chart of lr is REAL": (SGD(lr=0.1, charts={"lr": REAL}) / UP, SGD(lr=0.1) / UP),
    "horizon 1 is the paper": (Adam(lr=0.01, horizon=1 + 1e-13) / UP, Adam(lr=0.01) / UP),  # one above 1 is followed
}


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME.keys())
def test_two_towers_are_the_same(pair):
    assert pair[0] != pair[1], "two ways to say it"
    same(run(pair[0]), run(pair[1]))


TOWER = Adam(lr=0.01, eps=1e-3) / Adam(lr=1e-3) / SGD(lr=1e-5)


@pytest.mark.parametrize("per", ["all", "group"])
def test_several_parameters_are_one_concatenated(per):
    parts = parameters()
    flat = torch.nn.utils.parameters_to_vector(parts).detach().requires_grad_()
    one, other = Hyperoptimizer(parts, TOWER, per=per), Hyperoptimizer([flat], TOWER)
    for t in range(30):
        pieces = [x.view_as(p) for x, p in zip(flat.split([p.numel() for p in parts]), parts, strict=True)]
        for optimizer, value in ((one, loss(parts, t)), (other, loss(pieces, t))):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        for level, values in enumerate(other.hyperparameters()):
            assert one.hyperparameters()[level] == pytest.approx(values, rel=1e-10)
    torch.testing.assert_close(torch.nn.utils.parameters_to_vector(parts), flat, rtol=1e-10, atol=1e-12)


def test_per_all_over_groups_is_one_group():
    same(run(TOWER, lambda p: [{"params": p[:2]}, {"params": p[2:]}], per="all"), run(TOWER))


def test_per_tensor_is_a_group_per_tensor():
    one = run(TOWER, per="tensor")
    same(one, run(TOWER, lambda p: [{"params": [x]} for x in p]))
    assert len(one[2].hyperparameters()[0]["lr"]) == 4
    assert len(set(one[2].hyperparameters()[0]["lr"])) == 4


def test_per_tensor_with_one_tensor_is_per_all():
    def only(p):
        return p[:1]

    one, other = run(TOWER, only, per="tensor"), run(TOWER, only, per="all")
    same(one, other)
    assert one[2].hyperparameters()[0]["lr"] == [other[2].hyperparameters()[0]["lr"]]


@pytest.mark.parametrize("size", [(1 << 17) + 5, 3 * (1 << 17)])
def test_a_large_tensor_in_pieces_is_many_small_ones(size):
    tower = Adam(lr=0.01, horizon=5, normalize="cosine", charts={"lr": POSITIVE}) / SGD(lr=0.1)
    generator = torch.Generator().manual_seed(0)
    start, target = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
    large, small = [start.clone().requires_grad_()], [x.clone().requires_grad_() for x in start.split(50_000)]
    for params in (large, small):
        optimizer = Hyperoptimizer(params, tower)
        for _ in range(5):
            optimizer.zero_grad()
            (torch.cat(params) - target).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(large[0], torch.cat(small), rtol=1e-10, atol=1e-12)


def test_channels_last_and_transposed_parameters_train_as_contiguous_ones():
    results = []
    for form in (lambda x: x, lambda x: x.to(memory_format=torch.channels_last), lambda x: x.transpose(0, 3)):
        x = torch.randn(40, 60, 9, 9, generator=torch.Generator().manual_seed(0))
        p = form(x).clone(memory_format=torch.preserve_format).requires_grad_()
        optimizer = Hyperoptimizer([p], Adam(lr=0.01) / SGD(lr=1e-3))
        for _ in range(3):
            optimizer.zero_grad()
            (
                p.square() * torch.linspace(0.1, 1, 9)
                if p.shape[-1] == 9
                else p.transpose(0, 3).square() * torch.linspace(0.1, 1, 9)
            ).mean().backward()
            optimizer.step()
        results.append(p.detach() if p.shape == x.shape else p.detach().transpose(0, 3))
    torch.testing.assert_close(results[1:], results[:1] * 2, rtol=1e-10, atol=1e-12)
