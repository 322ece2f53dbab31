"""Accelerate: prepare, mixed precision, accumulation, its checkpoints."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from frameworks import LOG, TOWER, batches, network, warm_up
from torch import nn

from hypergradient import Hyperoptimizer, auto


@pytest.fixture(autouse=True)
def fresh(float32):
    """Accelerate remembers the first Accelerator of a process."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def prepared(tower, **options):
    """What a script has after ``prepare``."""
    accelerator, model = Accelerator(cpu=True, **options), network()
    optimizer = Hyperoptimizer(model.parameters(), tower)
    optimizer.hyperparameters()  # nothing that it remembers may be stale after prepare
    return accelerator, *accelerator.prepare(model, optimizer, batches(), warm_up(optimizer))


def run(accelerator, model, optimizer, loader, schedule, epochs=1):
    losses = []
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = (model(x) - y).square().mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("tower", [TOWER, LOG], ids=repr)
def test_accelerate_prepare_changes_nothing(tower):
    """The same weights, to the last bit, as in a loop without Accelerate."""
    accelerator, model, optimizer, loader, schedule = prepared(tower)
    assert isinstance(optimizer, AcceleratedOptimizer)
    assert type(optimizer.optimizer) is Hyperoptimizer
    losses = run(accelerator, model, optimizer, loader, schedule, epochs=3)
    twin = network()
    other = Hyperoptimizer(twin.parameters(), tower)
    schedule = warm_up(other)
    expected = []
    for _ in range(3):
        for x, y in batches():
            loss = (twin(x) - y).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            other.step()
            schedule.step()
            other.zero_grad()
            expected.append(loss.item())
    assert losses == expected
    assert optimizer.optimizer.hyperparameters() == other.hyperparameters()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("tower", [TOWER, LOG], ids=repr)
def test_accelerate_resumes_from_its_checkpoint(tmp_path, tower):
    one = prepared(tower)
    run(*one)
    one[0].save_state(str(tmp_path))
    expected = run(*one)
    other = prepared(tower)
    run(*other, epochs=2)
    other[0].load_state(str(tmp_path))
    assert run(*other) == expected
    assert other[2].optimizer.hyperparameters() == one[2].optimizer.hyperparameters()
    torch.testing.assert_close(list(other[1].parameters()), list(one[1].parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"mixed_precision": "bf16"}, {"gradient_accumulation_steps": 2}], ids=str)
def test_accelerate_with_its_options(options):
    accelerator, model, optimizer, loader, schedule = prepared(LOG, **options)
    losses = run(accelerator, model, optimizer, loader, schedule, epochs=20)
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    assert optimizer.optimizer.hyperparameters()[0]["lr"] > 2e-3
    assert all(p.dtype == torch.float32 for p in model.parameters())
    steps = optimizer.optimizer.state[next(model.parameters())]["step"]
    assert int(steps) == len(losses) // options.get("gradient_accumulation_steps", 1)


def test_accelerate_says_when_a_step_was_skipped():
    """With a scaler, a step whose gradients are not finite is skipped on all levels, and Accelerate knows."""
    _, model, optimizer, loader, _ = prepared(TOWER)
    optimizer = AcceleratedOptimizer(optimizer.optimizer, scaler=torch.amp.GradScaler("cpu", init_scale=16.0))
    skipped = []
    for t, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        optimizer.scaler.scale((model(x) - y).square().mean()).backward()
        before = [optimizer.optimizer.hyperparameters(), [p.detach().clone() for p in model.parameters()]]
        if t in (2, 5):
            model[0].weight.grad[0, 0] = torch.inf
        optimizer.step()
        skipped.append(optimizer.step_was_skipped)
        if t in (2, 5):
            now = [optimizer.optimizer.hyperparameters(), [p.detach() for p in model.parameters()]]
            torch.testing.assert_close(now, before, rtol=0, atol=0)
    assert skipped == [t in (2, 5) for t in range(8)]


def test_accelerate_passes_eval_and_train_on():
    accelerator, model, optimizer, loader, schedule = prepared(auto())
    run(accelerator, model, optimizer, loader, schedule, epochs=3)
    trained = [p.detach().clone() for p in model.parameters()]
    optimizer.eval()
    assert not all(torch.equal(p, x) for p, x in zip(model.parameters(), trained, strict=True))
    optimizer.train()
    torch.testing.assert_close([p.detach() for p in model.parameters()], trained, rtol=0, atol=0)


def accumulated(accelerator, model, optimizer, loader, schedule, before=lambda i: None):
    """An epoch, as Accelerate documents it.

    Args:
        before: is called with the number of each batch.
    """
    for i, (x, y) in enumerate(loader):
        before(i)
        with accelerator.accumulate(model):
            accelerator.backward((model(x) - y).square().mean())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("tower", [auto(), LOG], ids=["default", "tower"])
def test_accelerate_with_accumulation_is_a_plain_loop(tower):
    """The same bits, with the short window at the end of an epoch."""
    whole, twin = prepared(tower, gradient_accumulation_steps=3), network()
    other = Hyperoptimizer(twin.parameters(), tower)
    schedule = warm_up(other)
    for _ in range(4):
        accumulated(*whole)
        for i, (x, y) in enumerate(batches(), 1):
            ((twin(x) - y).square().mean() / 3).backward()
            if i in (3, 6, 8):
                other.step()
                schedule.step()
                other.zero_grad()
    torch.testing.assert_close(list(whole[1].parameters()), list(twin.parameters()), rtol=0, atol=0)
    assert whole[2].optimizer.hyperparameters() == other.hyperparameters()


@pytest.mark.parametrize("tower", [auto(), LOG], ids=["default", "tower"])
def test_accelerate_resumes_in_mid_epoch(tmp_path, tower):
    """After a window of accumulation, by ``skip_first_batches``, to the last bit."""
    whole, again = (prepared(tower, gradient_accumulation_steps=2) for _ in range(2))
    accumulated(*whole)
    accumulated(*whole, before=lambda i: whole[0].save_state(str(tmp_path)) if i == 4 else None)
    accelerator, model, optimizer, loader, schedule = again
    accelerator.load_state(str(tmp_path))
    accumulated(accelerator, model, optimizer, accelerator.skip_first_batches(loader, 4), schedule)
    torch.testing.assert_close(list(model.parameters()), list(whole[1].parameters()), rtol=0, atol=0)
    assert optimizer.optimizer.hyperparameters() == whole[2].optimizer.hyperparameters()
