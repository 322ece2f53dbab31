"""PyTorch optimizers that tune their own hyperparameters by gradient descent while they train."""

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

__version__ = "0.1.0"
