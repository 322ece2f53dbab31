"""What several test files need: a small network, towers of every kind, copies, and judges of derivatives and of memory."""

import copy
import gc
import io
import math
import os
from itertools import pairwise

import pytest
import torch
from cases import loss
from oracle import Entry
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hypergradient import POSITIVE, SGD, UNIT, Adagrad, Adam, Hyperoptimizer, Lion, RMSprop

EXACT = {"rtol": 0, "atol": 0, "equal_nan": True}
"""Options of `assert_close`: to the last bit."""

EVERY = 1 if os.environ.get("HYPERGRADIENT_ALL") else 5
"""Of combinations one in so many is tested: all with HYPERGRADIENT_ALL=1, as `make everything` has it."""


everything = pytest.mark.skipif(EVERY > 1, reason="others go the same way: `make everything` has it")


def crossed(one, other):
    """Combinations of two kinds of things: each of `one` with one in `EVERY` of `other`, and with one at least."""
    every = min(EVERY, len(other))
    return [(x, y) for i, x in enumerate(one) for j, y in enumerate(other) if (i + j) % every == 0]


# the compiler of torch 2.13 itself imports what torch 2.13 deprecates
compiler = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

TOWER = Adam(lr=0.01) / Adam(lr=1e-3) / SGD(lr=1e-5)
TOWERS = [
    Adam(lr=0.01, amsgrad=True),
    TOWER,
    Adam(lr=1e-3, tune="lr", charts={"lr": POSITIVE}, horizon=20, normalize="cosine") / SGD(lr=0.2),
    SGD(lr=0.1, momentum=0.9, charts={"momentum": UNIT}) / SGD(lr={"lr": 1e-3, "momentum": 1e-2}) / SGD(lr=1e-5),
    Lion(lr=1e-3) / RMSprop(lr=1e-5) / Adagrad(lr=1e-7),
]
HEIGHT_3 = Adam(lr=0.01) / Adam(lr=1e-3) / SGD(lr=1e-5) / SGD(lr=1e-9)


# -------------------------------------------------------------------- a problem


def network(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, bias=bias), nn.Tanh(), nn.Linear(5, 2, bias=bias))


def forward(model, seed):
    """The loss on a batch."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    return (model(x) - x[:, :2].sin()).square().mean()


def fit(optimizer, model, steps, start=0):
    for t in range(start, start + steps):
        optimizer.zero_grad()
        forward(model, t).backward()
        optimizer.step()


def scalars(*sizes, **options):
    """Parameters of ones with gradients of ones."""
    params = [torch.ones(n, requires_grad=True, **options) for n in sizes]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


# ----------------------------------------------------------------------- copies


def clones(params):
    """The same parameters as other tensors."""
    return [p.detach().clone().requires_grad_() for p in params]


def stored(content):
    """What another process reads: through torch.save and torch.load(weights_only=True)."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(optimizer, params):
    """What a new process would go on with."""
    twin = Hyperoptimizer(params, optimizer.tower, per=optimizer.per)
    twin.load_state_dict(stored(optimizer.state_dict()))
    return twin


def refusal(action):
    """The message of the ValueError that `action` raises, or None."""
    try:
        action()
    except ValueError as e:
        return str(e)
    return None


# ----------------------------------------------------------------------- judges


STEPS = 7
"""After how many `difference` looks."""


def difference(oracle, key, judge=lambda weights: loss(weights, STEPS)):
    """How the next loss, or what else `judge` says, changes with a value in this step alone: central differences of
    fourth order.

    Too small a step drowns in rounding, too large a one in curvature: of a ladder, the two neighbours that agree best.

    Returns:
        the difference, as a pytest.approx that is as wide as these disagree, if that is little.
    """

    def after(bump):
        # a copy shares the tensors that have a graph
        twin = copy.deepcopy(oracle, {id(x): x for x in oracle.leaves()})
        twin.step(loss(twin.weights, STEPS - 1), {key: bump})
        return judge(twin.weights).item()

    value = abs(oracle.value(key[0], Entry(key[1], None)).item())
    sizes = [value * 5.0**-k for k in range(1, 7)]
    ladder = [(after(-2 * s) - 8 * after(-s) + 8 * after(s) - after(2 * s)) / (12 * s) for s in sizes]
    first, second = min(pairwise(ladder), key=lambda pair: math.inf if math.isnan(sum(pair)) else abs(pair[0] - pair[1]))
    doubt = abs(first - second)
    assert doubt <= 1e-4 * abs(second) + 1e-9
    return pytest.approx(second, rel=1e-6, abs=10 * doubt + 5e-13)  # neighbours agree better than they are right, by luck


def levels(optimizer):
    """What each level above the weights remembers."""
    known = [optimizer._own.levels.of(level) for level in optimizer._own.levels.levels]
    assert len(known) == optimizer.tower.height
    return {str(k): rows.clone() for k, rows in enumerate(known, 1)}


def tensors():
    """How many tensors are alive, and how many bytes they hold."""
    gc.collect()
    alive = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    alive = [x for x in alive if not torch._C._functorch.is_functorch_wrapped_tensor(x)]  # the compiler's, without storage
    return len(alive), sum(x.untyped_storage().nbytes() for x in alive)


class NoHostSynchronization(TorchDispatchMode):
    """Fails where a tensor is read on the host: that would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))
