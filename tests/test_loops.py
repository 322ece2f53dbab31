"""Loops of other kinds: two optimizers that take turns, an optimizer per parameter that steps within the backward pass, batches
of one sample.
"""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from frameworks import LOG, TOWER, batches, network
from sklearn.datasets import load_digits
from torch import nn

from hypergradient import SGD, Adam, Hyperoptimizer, SGDScheduleFree, auto

pytestmark = pytest.mark.usefixtures("float32")
MAKERS = {"default": Hyperoptimizer, "tower": lambda ps: Hyperoptimizer(ps, TOWER), "log": lambda ps: Hyperoptimizer(ps, LOG)}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


# -------------------------------------------------------------------------- GAN


def pair():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    return generator, nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))


def play(generator, critic, makers, rounds, between=lambda g, c: None):
    """The turns of a GAN: the critic's gradients of the generator's turn are thrown away.

    Args:
        between: is called with the optimizers after each round.
    """
    optimizers = g, c = [make(m.parameters()) for make, m in zip(makers, (generator, critic), strict=True)]
    random, loss = torch.Generator().manual_seed(1), nn.functional.binary_cross_entropy_with_logits
    for _ in range(rounds):
        real, noise = torch.randn(32, 2, generator=random) * 0.5 + 2, torch.randn(32, 2, generator=random)
        c.zero_grad()
        scores = critic(torch.cat([real, generator(noise).detach()])).squeeze(1)
        loss(scores, torch.cat([torch.ones(32), torch.zeros(32)])).backward()
        c.step()
        g.zero_grad()
        loss(critic(generator(noise)).squeeze(1), torch.ones(32)).backward()
        g.step()
        between(g, c)
    return optimizers


def test_a_gan_is_as_with_torch_when_nothing_is_learned():
    ours, theirs = pair(), pair()
    play(*ours, [lambda ps: Hyperoptimizer(ps, Adam(lr=0.01) / SGD(lr=0.0))] * 2, 20)
    play(*theirs, [lambda ps: torch.optim.Adam(ps, lr=0.01)] * 2, 20)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(list(one.parameters()), list(other.parameters()), rtol=1e-4, atol=1e-5)


@every_maker
def test_the_players_of_a_gan_do_not_see_each_other(make):
    """What one reads and saves between its turns changes nothing for the other; each learns of its own."""
    ours, twins = pair(), pair()

    def looks(g, c):
        for optimizer in (g, c):
            optimizer.eval()
            optimizer.train()
            copy.deepcopy(optimizer.state_dict())
            optimizer.hyperparameters()

    optimizers = play(*ours, [make] * 2, 30, looks)
    others = play(*twins, [make] * 2, 30)
    for one, other in zip(ours, twins, strict=True):
        torch.testing.assert_close(list(one.parameters()), list(other.parameters()), rtol=0, atol=0)
    learned = [o.hyperparameters()[0]["lr"] for o in optimizers]
    assert learned == [o.hyperparameters()[0]["lr"] for o in others]
    assert learned[0] != learned[1]


def test_players_that_tune_their_step_sizes_find_the_data():
    """From (0, 0) to the mean (2, 2), around which they circle. The default, which averages over the whole run, is made for
    a loss that stays the same, not for an adversary; of a game, ``auto`` takes the rule that is used there.
    """
    generator, critic = pair()
    noise, means = torch.randn(256, 2, generator=torch.Generator().manual_seed(9)), []
    play(
        generator,
        critic,
        [lambda ps: Hyperoptimizer(ps, auto(Adam(beta1=0.5)))] * 2,
        600,
        lambda g, c: means.append(generator(noise).detach().mean(dim=0)),
    )
    assert (torch.stack(means[300:]).mean(dim=0) - 2).norm() < 1


# ----------------------------------------------------- an optimizer per parameter


def stepping(optimizers):
    """Let each step as soon as the gradient of its parameter is there."""

    def hook(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(hook)


@every_maker
def test_an_optimizer_per_parameter_that_steps_in_the_backward_pass(make):
    """``register_post_accumulate_grad_hook``: the weights of one step per parameter after the backward pass."""
    model, twin = network(), network()
    by_hook, after = ({p: make([p]) for p in m.parameters()} for m in (model, twin))
    stepping(by_hook)
    for _ in range(4):
        for x, y in batches():
            (model(x) - y).square().mean().backward()
            assert all(p.grad is None for p in model.parameters())
            (twin(x) - y).square().mean().backward()
            for optimizer in after.values():
                optimizer.step()
                optimizer.zero_grad()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=0, atol=0)
    rates = [o.hyperparameters()[0]["lr"] for o in by_hook.values()]
    assert rates == [o.hyperparameters()[0]["lr"] for o in after.values()]
    assert len(set(rates)) == 4


def test_an_optimizer_per_parameter_is_that_of_torch_when_nothing_is_learned():
    models = network(), network()
    for model, make in zip(
        models, (lambda ps: Hyperoptimizer(ps, Adam(lr=0.01)), lambda ps: torch.optim.Adam(ps, lr=0.01)), strict=True
    ):
        optimizers = {p: make([p]) for p in model.parameters()}
        stepping(optimizers)
        for x, y in batches():
            (model(x) - y).square().mean().backward()
    torch.testing.assert_close(list(models[0].parameters()), list(models[1].parameters()), rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------- batches of one


@pytest.mark.parametrize("rule", [SGD(), SGD(momentum=0.9), SGDScheduleFree()], ids=str)
def test_batches_of_one_do_not_make_the_step_size_of_sgd_run_away(rule):
    """Most of their gradients are hardly more than 0, and say that it could be larger; a plain cosine would count them all."""
    torch.manual_seed(0)
    images, labels = (torch.tensor(x) for x in load_digits(return_X_y=True))
    images = images / 16
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    optimizer = Hyperoptimizer(model.parameters(), auto(rule))
    for i in torch.randperm(len(images))[:1700].split(1):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[i]), labels[i]).backward()
        optimizer.step()
    assert (model(images).argmax(1) != labels).double().mean() < 0.25


# -------------------------------------------------------------------- threads


LOOKS = {
    "hyperparameters": lambda o: o.hyperparameters(),
    "hypergradients": lambda o: o.hypergradients(),
    "print": repr,
    "state_dict": lambda o: o.state_dict(),
    "snapshot": lambda o: o.snapshot().hyperparameters(0),
    "deepcopy": copy.deepcopy,
}


class Unseen(nn.Parameter):
    """A parameter whose gradient may be looked at by a step alone: a thread that reads it while it is made is a crash."""

    hidden = False

    @property
    def grad(self):
        assert not self.hidden
        return super().grad

    @grad.setter
    def grad(self, value):
        nn.Parameter.grad.__set__(self, value)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
def test_who_looks_at_an_optimizer_does_not_look_at_gradients(look, make, monkeypatch):
    optimizer = make([p := Unseen(torch.ones(3))])
    for _ in range(3):
        p.grad = p.detach().clone()
        optimizer.step()
        with monkeypatch.context() as patch:
            patch.setattr(Unseen, "hidden", True)
            look(optimizer)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
def test_a_thread_that_looks_at_the_optimizer_changes_nothing(look):
    def go(watched):
        torch.manual_seed(0)
        x, y = torch.randn(64, 20), torch.randint(2, (64,))
        model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 2))
        optimizer, ended, seen = Hyperoptimizer(model.parameters()), threading.Event(), []

        def watch():
            while not ended.wait(1e-3):
                seen.append(look(optimizer) is not None)

        with ThreadPoolExecutor() as pool:
            watching = pool.submit(watch) if watched else None
            for _ in range(200):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            ended.set()
        return watching and watching.exception(), [p.tolist() for p in model.parameters()], bool(seen)

    error, weights, seen = go(watched=True)
    assert error is None
    assert seen
    assert weights == go(watched=False)[1]
