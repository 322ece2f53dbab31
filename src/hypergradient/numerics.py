"""The only home of numerical tricks, each with its reason."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from ctypes import CDLL, CFUNCTYPE, c_int, c_size_t, c_void_p
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

REACH = torch.finfo(torch.float32)
"""What hyperparameters must stay within: elements are worked on in no less."""


def sqrt(x: Tensor) -> Tensor:
    """Square root of ``x >= 0`` with a finite slope at 0.

    The slope of the square root at 0 is infinite, and 0 * inf turns the hypergradients of a tower NaN in its first
    steps. The smallest normal number, added, changes nothing that is not nearly as small.
    """
    return (x + torch.finfo(x.dtype).tiny).sqrt_() if torch.is_grad_enabled() else x.sqrt()


def usual_square(x: Tensor, average: Tensor, beta: Tensor, step: Tensor) -> Tensor:
    """An average of squares after x, too, without the bias of its beginning at 0.

    Args:
        step: how many squares there are in `average` then.
    """
    return torch.addcmul(beta * average, (1 - beta) * x, x) / (1 - beta**step).clamp_min(torch.finfo(x.dtype).eps)


def power_less_1(base: Tensor, exponent: Tensor) -> Tensor:
    """``base**exponent - 1`` for ``0 <= base < 1``, to the last digits also where the base is near 1.

    The rounding of a power near 1 is large beside what is left when 1 is taken off.
    """
    return torch.expm1(exponent * torch.log(base + torch.finfo(base.dtype).tiny))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator`` for nonnegative denominators, with 0 / 0 = 0."""
    return numerator / denominator.clamp_min(torch.finfo(denominator.dtype).tiny)


def added(terms: Sequence[Tensor], start: Tensor) -> Tensor:
    """``sum(terms, start)``, and 0 where that is no more than the rounding of them.

    In the first step of Adam nothing depends on its betas: the terms of ``dU/dbeta`` cancel. They leave up to four units in
    the last place, and a cosine, which is free of scale, would take these for a direction.
    """
    if not terms:
        return start
    total, size = sum(terms, start), sum((x.abs() for x in terms), start.abs())
    return total.masked_fill_(total.abs() <= 8 * torch.finfo(total.dtype).eps * size, 0.0)


def totals(terms: Sequence[Tensor], cuts: Sequence[int]) -> Tensor:
    """The sums of each over parts of so many elements; over all of them where there are no `cuts`, or over a number, itself.

    shape of each: (elements,) -> (terms, parts)
    """
    if not cuts:
        return torch.stack([x.sum() if x.ndim else x for x in terms]).unsqueeze(1)
    if compiling() or not terms[0].is_cpu:
        return _parts([x.view(-1) for x in terms], cuts)
    return torch.stack([part.sum() for x in terms for part in x.view(-1).split([*cuts])]).view(len(terms), -1)


def _parts(terms: Sequence[Tensor], cuts: Sequence[int]) -> Tensor:
    """The sums of parts, in few operations: the compiler takes long for each sum of many numbers, and each of a few takes long.
    The last part has any length, the others are multiples of one, mostly a large one, and several of them are alike.
    """
    size, end = math.gcd(*cuts[:-1]) or 1, sum(cuts[:-1])  # 0 of a shard with nothing in it
    runs = [(n // size, len([*run])) for n, run in groupby(cuts[:-1])]
    blocks = torch.stack([x[:end].view(-1, size).sum(1) for x in terms]).split([n * times for n, times in runs], 1)
    parts = [x.view(len(terms), times, n).sum(2) for x, (n, times) in zip(blocks, runs, strict=True)]
    return torch.cat([*parts, torch.stack([x[end:].sum() for x in terms]).unsqueeze(1)], 1)


def compiling() -> bool:
    """Whether what is done is written down for the compiler."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def copied(x: Tensor) -> Tensor:
    """A copy. (Of a clone, the compiler of torch 2.13 makes nothing where two tensors change places.)"""
    return torch.maximum(x, x) if compiling() else x.clone()


def finite(x: Tensor) -> Tensor:
    """Whether every element is a number in single precision, as a tensor: asking must not wait for the device. shape: ()"""
    return (x.abs() <= REACH.max).all()


def finite_or_zero(x: Tensor) -> Tensor:
    if compiling():  # it makes six times slower code of `nan_to_num`
        return torch.where(x - x == 0, x, 0.0)
    return torch.nan_to_num(x, 0.0, 0.0, 0.0)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The real dtype in which elements of `dtype` are worked on: half precision cannot hold a long sum."""
    return torch.promote_types(dtype.to_real(), torch.float32)


def exact(device: torch.device) -> torch.dtype:
    """The dtype of hyperparameters on `device`: float64 where there is one.

    Of ``1 - beta``, single precision keeps hardly a digit where beta is near 1.
    """
    try:
        return torch.empty((), dtype=torch.float64, device=device).dtype
    except (TypeError, RuntimeError):
        return torch.float32


def sent(numbers: Any, like: Tensor) -> Tensor:
    """A tensor of `numbers`, in dtype and on the device of `like`; a GPU is not waited for."""
    pinned = like.is_cuda and readable(like)
    there = torch.tensor(numbers, dtype=like.dtype, device="cpu" if pinned else like.device, pin_memory=pinned)
    return there.to(like.device, non_blocking=True)


def plain(device: str) -> AbstractContextManager[Any]:
    """For arithmetic that is none of a model: no gradients, inference mode, autocast, or search for what is not finite."""
    around, autocast = ExitStack(), device != "meta" and torch.is_autocast_enabled(device)
    if not (autocast or torch.is_inference_mode_enabled() or torch.is_anomaly_enabled()):
        return torch.no_grad()
    off = torch.autocast(device, enabled=False) if autocast else nullcontext()
    for context in (torch.inference_mode(False), torch.no_grad(), torch.autograd.set_detect_anomaly(False), off):
        around.enter_context(context)
    return around


def storage(x: Tensor) -> int:
    """By what the memory of a tensor is told from all other memory."""
    return cast(int, x.untyped_storage()._cdata)


def owns_memory(x: Tensor) -> bool:
    """Whether it has its memory for itself: what is written to a part of it counts as written to all."""
    return x.untyped_storage().nbytes() == x.nbytes


def alike(x: Any, y: Tensor) -> bool:
    """Whether `x` is a tensor with the numbers of `y`."""
    return isinstance(x, Tensor) and x.shape == y.shape and torch.equal(x.to(y), y)


_compare = None if sys.platform == "win32" else CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)(("memcmp", CDLL(None)))


def same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors on the CPU, alike in all else, hold the same bits. (`torch.equal` takes longer, one by one.)"""
    if _compare is None or not (x.is_contiguous() and y.is_contiguous()):
        return torch.equal(x, y)
    return bool(_compare(x.data_ptr(), y.data_ptr(), x.nbytes) == 0)


def readable(x: Tensor) -> bool:
    """Whether the host can read `x`: it has numbers."""
    return not x.is_meta and type(x) is Tensor


@contextmanager
def on_host() -> Iterator[None]:
    """For arithmetic whose result is read at once: on the CPU, whatever default device or mode there is."""
    elsewhere = torch._C._len_torch_function_stack() > 0  # what sees every call, such as a default device, which costs time
    there, drawn = torch.device("cpu") if elsewhere else nullcontext(), torch.random.fork_rng(devices=[])  # by a rule, perhaps
    with torch.inference_mode(False), _disable_current_modes(), there, drawn:
        yield
