"""What the processes of the tests of faults do; see `workers.launch`."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.utils.checkpoint import checkpoint
from workers import Plan, Run, network, save, whole

from hypergradient import SGD, Adam, Hyperoptimizer, Tower

PLAN: Plan = (SGD(lr=0.1, tune=("lr",)) / SGD(lr=1e-2), "group", {})


def held_out(run: Run) -> Tensor:
    """The loss on other data, of which each process has its part."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1000 + run.steps))
    x = x.chunk(run.parts)[run.part] if run.parts > 1 else x
    return (run.called(x) - x.sum(1, keepdim=True).sin()).square().mean()


def tuned(how: str, plans: dict[str, Plan], steps: int, view: float = 0, first: bool = False) -> dict[str, Any]:
    """Runs that are tuned on held-out data.

    Args:
        view: under DDP, gradients are views of what is sent; of so many MiB together.
        first: `tune_on` comes before the backward pass.
    """
    found = {}
    for name, plan in plans.items():
        run = Run(how, plan)
        if view:
            run.called = nn.parallel.DistributedDataParallel(run.model, gradient_as_bucket_view=True, bucket_cap_mb=view)
        params = [p for group in run.optimizer.param_groups for p in group["params"]]  # shards; the model may show the whole
        for _ in range(steps):
            run.optimizer.zero_grad()
            if first:
                run.optimizer.tune_on(held_out(run))
                assert all(p.grad is None for p in params)
            run.backward()
            if not first:
                other = held_out(run)  # in its forward pass DDP may give out other views
                before = [(p.grad, whole(p.grad)) for p in params]
                run.optimizer.tune_on(other)
                for p, (grad, content) in zip(params, before, strict=True):
                    assert p.grad is grad
                    torch.testing.assert_close(whole(p.grad), content, rtol=0, atol=0)
            run.optimizer.step()
            run.steps += 1
        found[name] = run.result()
    return found


def clamped(how: str, plans: dict[str, Plan], steps: int, bound: float = 0.2, folder: str = "") -> dict[str, Any]:
    """Runs in which somebody clamps the parameters after each step; saved to `folder`, if there is one."""
    found = {}
    for name, plan in plans.items():
        run = Run(how, plan)
        for _ in range(steps):
            run.go(1)
            with torch.no_grad():
                for p in (p for group in run.optimizer.param_groups for p in group["params"]):
                    p.clamp_(-bound, bound)
        if folder:
            save(run, f"{folder}/{name}", "nested")
        found[name] = run.result()
    return found


def loaded(plan: Plan) -> list[float]:
    """The hypergradient after one step more of a run whose weights are clamped, and of one that goes on from its checkpoint."""

    def go(run: Run, steps: int) -> Run:
        for _ in range(steps):
            run.go(1)
            with torch.no_grad():
                run.model[0].weight.clamp_(-0.2, 0.2)
        return run

    first, other = go(Run("sharded", plan), 6), Run("sharded", plan)
    other.model.load_state_dict(first.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    other.steps = first.steps
    return [go(run, 1).optimizer.hypergradients()[0]["lr"] for run in (first, other)]


def pruned(spread: bool) -> tuple[float, float, set[str]]:
    """The step size of a run on a large matrix of which a row is masked after each step, the largest element of that row at
    the average, and what is remembered of the matrix.
    """
    torch.manual_seed(0)
    model, x, mask = nn.Linear(512, 512), torch.randn(64, 512), torch.ones(512, 512)
    mask[5] = 0
    if spread:
        fully_shard(model)
    optimizer = Hyperoptimizer(model.parameters())
    weight = next(model.parameters())
    if spread:
        mask = distribute_tensor(mask, weight.device_mesh, weight.placements)
    for _ in range(12):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            weight.mul_(mask)
    lr = optimizer.hyperparameters()[0]["lr"]
    optimizer.eval()
    return lr, whole(weight)[5].abs().max().item(), set(optimizer.state[weight])


def grown(tower: Tower) -> float:
    """The step size of a run that was loaded, got another group, and was saved and loaded as a whole."""

    def made(model: nn.Module, groups: int) -> Hyperoptimizer:
        optimizer = Hyperoptimizer(model[0].parameters(), tower)
        if groups > 1:
            optimizer.add_param_group({"params": model[2:].parameters()})
        return optimizer

    model, options, x = network(), StateDictOptions(full_state_dict=True), torch.ones(8, 6)
    fully_shard(model)
    optimizer = made(model, 1)
    for t in range(4):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if t == 1:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.add_param_group({"params": model[2:].parameters()})
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    other = made(model, 2)
    set_optimizer_state_dict(model, other, saved, options=options)
    assert other.hyperparameters() == optimizer.hyperparameters()
    return other.hyperparameters()[0]["lr"]


class Recomputed(nn.Module):
    """A network whose middle is computed again in the backward pass."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        x = self.model[1](self.model[0](x))
        return self.model[4](checkpoint(self.model[2:4], x, use_reentrant=True))


def recomputed(how: str, plans: dict[str, Plan], steps: int) -> dict[str, Any]:
    """Runs like `tuned`; under DDP with a reentrant checkpoint in the model."""
    found = {}
    for name, plan in plans.items():
        run = Run(how, plan)
        if how == "ddp":
            run.called = nn.parallel.DistributedDataParallel(Recomputed(run.model))
        for _ in range(steps):
            run.optimizer.zero_grad()
            run.backward()
            run.optimizer.tune_on(held_out(run))
            run.optimizer.step()
            run.steps += 1
        found[name] = run.result()
    return found


def flat(tower: Tower, orig: bool) -> dict[str, Any]:
    """Some steps under FSDP 1: what it says, or the learned step size and whether it can be saved."""
    with warnings.catch_warnings():  # of torch, about what it deprecates
        warnings.simplefilter("ignore")
        try:
            model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=orig)
            optimizer = Hyperoptimizer(model.parameters(), tower)
            for t in range(4):
                x = torch.randn(8, 6, generator=torch.Generator().manual_seed(2 * t + dist.get_rank()))
                optimizer.zero_grad()
                (model(x) - x.sum(1, keepdim=True).sin()).square().mean().backward()
                optimizer.step()
            copy.deepcopy(optimizer.state_dict())
        except ValueError as e:
            return {"said": str(e)}
        return {"said": None, "lr": optimizer.hyperparameters()[0]["lr"]}


def flat_alone(orig: bool) -> list[list[Tensor]]:
    """The shards under FSDP 1 after some steps of a rule alone, and of its twin."""
    ends = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for make in (lambda ps: Hyperoptimizer(ps, Adam(lr=0.01)), lambda ps: torch.optim.Adam(ps, lr=0.01)):
            model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=orig)
            optimizer = make(model.parameters())
            for t in range(4):
                x = torch.randn(8, 6, generator=torch.Generator().manual_seed(2 * t + dist.get_rank()))
                optimizer.zero_grad()
                (model(x) - x.sum(1, keepdim=True).sin()).square().mean().backward()
                optimizer.step()
            ends.append([p.detach().clone() for p in model.parameters()])
    return ends
