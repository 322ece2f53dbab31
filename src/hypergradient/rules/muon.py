from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rule import Number, Rule, State, closed_unit_interval, hyperparameter, nonnegative

FITS = None, "original", "spectral_unclamped", "match_rms_adamw"


@dataclass(frozen=True)
class Muon(Rule):
    """Momentum, orthogonalized by Newton–Schulz iterations; for matrices; as `torch.optim.Muon`.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.

    One update has a spectral norm of about lr * sqrt(max(1, rows / columns)). The iterations run in the dtype of
    the parameter, float32 for half precision (torch: always bfloat16). It is run parameter by parameter, and cannot stand
    above another rule. Tuned by default: lr, momentum.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, in units of the spectral norm of the parameter per step; at least 0. Default 0.001.
        weight_decay: decoupled: each step shrinks the parameter by the part lr * weight_decay; at least 0. Default 0.1.
        momentum: coefficient of the average gradient; in [0, 1]. Default 0.95.
        nesterov: look ahead along the momentum. Default True.
        eps: least norm by which the momentum is divided, in units of the gradient; at least 0. Default 1e-07.
        ns_coefficients: of the polynomial that is iterated. Default (3.4445, -4.775, 2.0315).
        ns_steps: how many iterations, 1 to 99. Default 5.
        adjust_lr_fn: factor for the shape: None or "original": sqrt(max(1, rows / columns)); "spectral_unclamped":
            sqrt(rows / columns); "match_rms_adamw": 0.2 sqrt(max(rows, columns)), for step sizes made for AdamW. Default None.

    Raises:
        ValueError: another `adjust_lr_fn`, `ns_steps` out of bounds; a parameter that is no real matrix.
    """

    lr: Number = hyperparameter(1e-3, nonnegative)
    weight_decay: Number = hyperparameter(0.1, nonnegative, tuned=False)
    momentum: Number = hyperparameter(0.95, closed_unit_interval)
    nesterov: bool = True
    eps: Number = hyperparameter(1e-7, nonnegative, tuned=False)
    ns_coefficients: tuple[float, ...] = (3.4445, -4.775, 2.0315)
    ns_steps: int = 5
    adjust_lr_fn: str | None = None
    elementwise: ClassVar[bool] = False
    multiplier: ClassVar[str] = "lr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adjust_lr_fn not in FITS or not 0 < self.ns_steps < 100:
            raise ValueError(f"Muon: adjust_lr_fn={self.adjust_lr_fn!r} must be in {FITS}, ns_steps={self.ns_steps!r} in 1…99")

    @classmethod
    def accepts(cls, param: Tensor) -> str | None:
        if param.ndim == 2 and not param.is_complex():
            return None
        return "Muon moves real matrices only; give the others a group and a rule, {…, 'rule': AdamW(lr=3e-4)} or auto(AdamW())"

    def init(self, param: Tensor) -> State:
        return {"momentum_buffer": torch.zeros_like(param)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return (1 - self.momentum,)

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        buffer = self.momentum * state["momentum_buffer"] + c[0] * grad
        x = c[0] * grad + self.momentum * buffer if self.nesterov else buffer
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / torch.maximum(x.norm(), self.eps)
        for p, q, r in [self.ns_coefficients] * self.ns_steps:
            gram = x @ x.T
            x = p * x + (q * gram + r * gram @ gram) @ x
        rows, columns = param.shape
        least = 0.0 if self.adjust_lr_fn == "spectral_unclamped" else 1.0
        fit = 0.2 * max(rows, columns) ** 0.5 if self.adjust_lr_fn == "match_rms_adamw" else max(least, rows / columns) ** 0.5
        new = param * (1 - self.lr * self.weight_decay) - self.lr * fit * (x.T if tall else x)
        return new, {"momentum_buffer": buffer}
