"""torch.compile around us: of the model, of a function that calls optimizer.step(), of a whole training step."""

import pytest
import torch
from helpers import TOWER, TOWERS, compiler, network
from torch._dynamo.testing import CompileCounter

from hypergradient import SGD, Adam, Hyperoptimizer, Muon

pytestmark = [compiler, pytest.mark.usefixtures("fresh_compiler")]
MUON = Muon(lr=0.01) / SGD(lr=1e-4)


def batch(t):
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(t))


def value_of(model, x):
    return (model(x) - x[:, :2].sin()).square().mean()


def plain(tower, steps=6):
    """Weights and hyperparameters of a training with nothing compiled."""
    model = network(bias=False)
    optimizer = Hyperoptimizer(model.parameters(), tower)
    for t in range(steps):
        optimizer.zero_grad()
        value_of(model, batch(t)).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()], optimizer.hyperparameters()


def agree(one, other):
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_model_trains_as_ever(backend):
    model = network(bias=False)
    optimizer, fast = Hyperoptimizer(model.parameters(), TOWER), torch.compile(model, backend=backend)
    for t in range(6):
        optimizer.zero_grad()
        value_of(fast, batch(t)).backward()
        optimizer.step()
    agree([[p.detach() for p in model.parameters()], optimizer.hyperparameters()], plain(TOWER))


def test_a_compiled_model_s_parameters_can_be_given():
    model = torch.compile(network(bias=False), backend="eager")
    optimizer = Hyperoptimizer(model.parameters(), TOWER)
    for t in range(6):
        optimizer.zero_grad()
        value_of(model, batch(t)).backward()
        optimizer.step()
    agree([[p.detach() for p in model.parameters()], optimizer.hyperparameters()], plain(TOWER))


@pytest.mark.parametrize("tower", [*TOWERS, MUON], ids=repr)
def test_a_function_that_calls_step_can_be_compiled(tower):
    """The step is the same, and neither new values nor a schedule are compiled again."""
    model, counter = network(bias=False), CompileCounter()
    optimizer = Hyperoptimizer(model.parameters(), tower)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    step, frames = torch.compile(lambda: optimizer.step(), backend=counter), []
    for t in range(6):
        optimizer.zero_grad()
        value_of(model, batch(t)).backward()
        step()
        schedule.step()
        frames.append(counter.frame_count)
    agree([[p.detach() for p in model.parameters()], optimizer.hyperparameters()], plain(tower))
    assert frames[-1] == frames[2]


@pytest.mark.parametrize("compile", [False, True])
def test_a_whole_training_step_can_be_compiled(compile):
    tower = Adam(lr=0.01) / SGD(lr=1e-4)
    model = network(bias=False)
    optimizer = Hyperoptimizer(model.parameters(), tower, compile=compile)

    @torch.compile(backend="eager")
    def train(x):
        optimizer.zero_grad()
        value_of(model, x).backward()
        optimizer.step()

    for t in range(6):
        train(batch(t))
    agree([[p.detach() for p in model.parameters()], optimizer.hyperparameters()], plain(tower))
