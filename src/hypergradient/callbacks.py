"""Callbacks that log every level's values and hypergradients, for frameworks that are imported when they are asked for."""

from __future__ import annotations

from typing import Any

from .history import check_every, records, scalars
from .optimizer import Hyperoptimizer


def current(optimizer: Any) -> dict[str, float]:
    """What there is to see of the last step of `optimizer`, by tag, such as ``hyperparameters/0.Adam.lr``.

        wandb.log(current(optimizer))

    Args:
        optimizer: a Hyperoptimizer, which a framework may have wrapped.

    Returns:
        the values in natural units; nothing before the first step. It waits for the device.

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
        every: after how many steps to log. Default None: as the trainer's `log_every_n_steps`.

    Raises:
        ImportError: Lightning is not installed.
        ValueError: an interval that is not allowed.
    """
    if every is not None:
        check_every(every)
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise ImportError("for_lightning needs Lightning: pip install lightning") from error

    class LogHyperparameters(Callback):
        logged = 0

        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            step, often = trainer.global_step, every or trainer.log_every_n_steps
            if step // often == self.logged // often:  # with several optimizers it counts the steps of all
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

    Args:
        trainer: that of `transformers`, with a Hyperoptimizer.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ImportError("for_trainer needs transformers: pip install 'transformers[torch]'") from error

    class LogHyperparameters(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if control.should_log:
                trainer.log(current(kwargs["optimizer"]))
                control.should_log = True  # what the trainer has to log itself is still to come

        on_epoch_end = on_step_end

    return LogHyperparameters()
