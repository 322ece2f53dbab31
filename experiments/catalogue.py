"""The experiments by name: the paper's, and those that have a page of their own."""

from __future__ import annotations

from .fig2 import FIG2A, FIG2B
from .fig3 import FIG3
from .fig4 import FIG4A, FIG4B, FIG4C, FIG4D, FIG4E
from .fig4f import FIG4F
from .long_study import LONG_STUDY
from .results import Experiment, Study
from .scripts_study import SCRIPTS_STUDY
from .sensitivity import SENSITIVITY
from .table1 import TABLE1

EXPERIMENTS: dict[str, Experiment] = {
    "table1": TABLE1,
    "fig2a": FIG2A,
    "fig2b": FIG2B,
    "fig3": FIG3,
    "fig4a": FIG4A,
    "fig4b": FIG4B,
    "fig4c": FIG4C,
    "fig4d": FIG4D,
    "fig4e": FIG4E,
    "fig4f": FIG4F,
}

STUDIES: dict[str, Study] = {"sensitivity": SENSITIVITY, "scripts": SCRIPTS_STUDY, "long": LONG_STUDY}
