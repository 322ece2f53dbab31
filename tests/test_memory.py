"""What a step leaves behind, and what it may not do."""

import gc

import pytest
import torch
from cases import parameters, train
from torch.utils._python_dispatch import TorchDispatchMode

from hypergradient import POSITIVE, SGD, Adam, AdamW, Hyperoptimizer, Muon

HEIGHT_3 = Adam(lr=0.01) / Adam(lr=1e-3) / SGD(lr=1e-5) / SGD(lr=1e-9)


def tensors():
    """How many tensors are alive, and how many bytes they hold."""
    gc.collect()
    alive = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    alive = [x for x in alive if not torch._C._functorch.is_functorch_wrapped_tensor(x)]  # the compiler's, without storage
    return len(alive), sum(x.untyped_storage().nbytes() for x in alive)


def test_two_thousand_steps_leave_nothing_behind():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, HEIGHT_3)
    train(optimizer, mine, 100)
    before = tensors()
    train(optimizer, mine, 2000)
    assert tensors() == before


class NoHostSynchronization(TorchDispatchMode):
    """Fails where a tensor is read on the host: that would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("per", ["all", "tensor"])
@pytest.mark.parametrize(
    "tower",
    [
        HEIGHT_3,
        Adam(lr=0.01, tune="lr", charts={"lr": POSITIVE}, horizon=9, normalize="cosine") / SGD(lr=0.1),
        Muon() / SGD(lr=1e-5),
    ],
    ids=repr,
)
def test_a_step_does_not_wait_for_the_device(tower, per):
    mine = parameters(matrix=isinstance(tower.rules[0], Muon))
    optimizer = Hyperoptimizer(mine, tower, per=per)
    train(optimizer, mine, 3)
    optimizer.param_groups[0]["lr"] *= 0.9
    with NoHostSynchronization():
        optimizer.step()
    with pytest.raises(AssertionError), NoHostSynchronization():
        mine[0].sum().item()


PARTS = {
    "lr alone: what Adam itself remembers": (Adam(tune="lr") / SGD(lr=1e-5), set()),
    "AdamW, lr and decay": (AdamW(tune=("lr", "weight_decay")) / SGD(lr=1e-5), set()),
    "betas: the last gradient": (Adam() / SGD(lr=1e-5), {"last_gradient"}),
    "a horizon: a sensitivity each": (Adam(horizon=9) / SGD(lr=1e-5), {"last_lr", "last_beta1", "last_beta2"}),
    "no tower": (Adam(), set()),
}


@pytest.mark.parametrize(("tower", "more"), PARTS.values(), ids=PARTS.keys())
def test_nothing_is_kept_that_can_be_recovered(tower, more):
    mine = parameters()
    optimizer = Hyperoptimizer(mine, tower)
    train(optimizer, mine, 3)
    for p in mine[1:3]:
        assert {n for n, x in optimizer.state[p].items() if x.shape == p.shape} == {"exp_avg", "exp_avg_sq"} | more
