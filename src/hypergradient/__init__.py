"""PyTorch optimizers that tune their own hyperparameters by gradient descent while they train.

    from hypergradient import Hyperoptimizer

    optimizer = Hyperoptimizer(model.parameters())  # was: torch.optim.AdamW(model.parameters(), lr=…)

It finds its own step size: no warm-up, no schedule, no number of steps. ``optimizer.eval()`` puts the average of the weights
into the model, for validation and for saving it; ``optimizer.train()`` goes back. ``print(optimizer)`` says what it has found.

    from_torch(torch.optim.SGD(params, lr=0.1))                    an optimizer that you have
    Hyperoptimizer(params, auto(SGD(momentum=0.9)))                the same around another rule
    Hyperoptimizer(params, Adam(lr=1e-3) / SGD(lr=1e-5))           a tower as in the paper: SGD tunes Adam

Optimizers: Hyperoptimizer, from_torch, auto, Tower.
Rules: SGD, Adam, AdamW, RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam, Lion, Muon; AdamWScheduleFree, SGDScheduleFree,
which average; Tuner, for the top of a tower.
How a hyperparameter is moved: REAL as it is, POSITIVE by its logarithm, UNIT by its logit, Chart for others; Age, a horizon.
Rules of your own: Rule, Averages, hyperparameter, and what its values must be: real, nonnegative, positive, unit_interval,
closed_unit_interval, open_unit_interval.
To see what it does: History, and `callbacks` for Lightning and the Trainer of Hugging Face.

The method is that of Chandra, Xie, Ragan-Kelley & Meijer 2022, *Gradient Descent: The Ultimate Optimizer* (arXiv 1909.13371).
"""

import types as _types

from . import callbacks as callbacks
from .auto import auto as auto
from .averages import Averages as Averages
from .charts import POSITIVE as POSITIVE
from .charts import REAL as REAL
from .charts import UNIT as UNIT
from .charts import Chart as Chart
from .convert import from_torch as from_torch
from .history import History as History
from .optimizer import Hyperoptimizer as Hyperoptimizer
from .rule import Age as Age
from .rule import Rule as Rule
from .rule import closed_unit_interval as closed_unit_interval
from .rule import hyperparameter as hyperparameter
from .rule import nonnegative as nonnegative
from .rule import open_unit_interval as open_unit_interval
from .rule import positive as positive
from .rule import real as real
from .rule import unit_interval as unit_interval
from .rules.adadelta import Adadelta as Adadelta
from .rules.adagrad import Adagrad as Adagrad
from .rules.adam import Adam as Adam
from .rules.adamax import Adamax as Adamax
from .rules.adamw import AdamW as AdamW
from .rules.adamw_schedule_free import AdamWScheduleFree as AdamWScheduleFree
from .rules.lion import Lion as Lion
from .rules.muon import Muon as Muon
from .rules.nadam import NAdam as NAdam
from .rules.radam import RAdam as RAdam
from .rules.rmsprop import RMSprop as RMSprop
from .rules.sgd import SGD as SGD
from .rules.sgd_schedule_free import SGDScheduleFree as SGDScheduleFree
from .rules.tuner import Tuner as Tuner
from .tower import Tower as Tower

__version__ = "0.2.0"
__all__ = ["callbacks", *(n for n, x in vars().items() if n[0] != "_" and not isinstance(x, _types.ModuleType))]
