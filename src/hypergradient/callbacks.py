"""Callbacks that log every level's values and hypergradients, for frameworks that are imported when they are asked for."""

from __future__ import annotations

from typing import Any

from .history import records, scalars
from .optimizer import Hyperoptimizer


def current(optimizer: Any) -> dict[str, float]:
    """The `scalars` of the last step of `optimizer`, which a framework may have wrapped.

    Raises:
        TypeError: there is no Hyperoptimizer in it.
    """
    inner = optimizer
    while not isinstance(inner, Hyperoptimizer):
        if not hasattr(inner, "optimizer"):
            raise TypeError(f"optimizer={type(optimizer).__name__} is not allowed; it must be a Hyperoptimizer")
        inner = inner.optimizer
    return scalars(records(inner.snapshot(), inner.made() - 1)) if inner.made() else {}


def for_lightning(every: int | None = None) -> Any:
    """A callback for the Trainer of Lightning: ``Trainer(callbacks=[for_lightning()])``.

    Args:
        every: after how many steps to log; None: as the trainer's `log_every_n_steps`.
    """
    from lightning.pytorch import Callback

    class LogHyperparameters(Callback):
        logged = 0

        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            step = trainer.global_step
            if step == self.logged or step % (every or trainer.log_every_n_steps):
                return
            self.logged = step
            mine = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, Hyperoptimizer)]
            for i, optimizer in enumerate(mine):
                found = {f"{tag}.optimizer{i}" if i else tag: value for tag, value in current(optimizer).items()}
                for logger in trainer.loggers:
                    logger.log_metrics(found, step=step)

        def __reduce__(self) -> Any:  # a class within a function has no name to be found by
            return for_lightning, (every,)

    return LogHyperparameters()


def for_trainer(trainer: Any) -> Any:
    """A callback for the Trainer of Hugging Face: ``trainer.add_callback(for_trainer(trainer))``.

    It logs when `trainer` does, through ``trainer.log``, and so to all that `trainer` reports to.
    """
    from transformers import TrainerCallback

    class LogHyperparameters(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if control.should_log:
                trainer.log(current(kwargs["optimizer"]))
                control.should_log = True  # what the trainer has to log itself is still to come

    return LogHyperparameters()
