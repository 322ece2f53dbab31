from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rule import Number, Rule, State, closed_unit_interval, hyperparameter, nonnegative


@dataclass(frozen=True)
class Muon(Rule):
    """Jordan et al. 2024: momentum, orthogonalized by `ns_steps` Newton–Schulz iterations; as `torch.optim.Muon`.

    One update has a spectral norm of about lr * sqrt(max(1, rows / columns)). The iterations run in the dtype of
    the parameter, float32 for half precision (torch: always bfloat16).
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
        if self.adjust_lr_fn not in (None, "original", "match_rms_adamw") or not 0 < self.ns_steps < 100:
            raise ValueError(
                f"Muon: adjust_lr_fn={self.adjust_lr_fn!r} must be None, 'original' or 'match_rms_adamw', "
                f"ns_steps={self.ns_steps!r} in 1…99"
            )

    @classmethod
    def accepts(cls, param: Tensor) -> str | None:
        if param.ndim == 2 and not param.is_complex():
            return None
        return "Muon moves real matrices only; give the others a group and a rule: {'params': …, 'rule': AdamW(lr=3e-4)}"

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
        p, q, r = self.ns_coefficients
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = p * x + (q * gram + r * gram @ gram) @ x
        rows, columns = param.shape
        fit = 0.2 * max(rows, columns) ** 0.5 if self.adjust_lr_fn == "match_rms_adamw" else max(1.0, rows / columns) ** 0.5
        new = param * (1 - self.lr * self.weight_decay) - self.lr * fit * (x.T if tall else x)
        return new, {"momentum_buffer": buffer}
