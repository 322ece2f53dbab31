"""History: what every level did in each step, to be looked at, kept, and repeated."""

from __future__ import annotations

import csv
import json
import math
import os
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .optimizer import Hyperoptimizer
from .report import Snapshot
from .rule import Rule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIELDS = ("step", "group", "level", "rule", "name", "value", "hypergradient")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by all eyes (Okabe & Ito)
LINES = ("-", "--", ":", "-.")


def check_every(every: Any) -> None:
    """Raise ValueError where that is no interval in steps."""
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every={every!r} is not allowed; it must be an integer of at least 1")


class History:
    """A record of every level's values and hypergradients.

        history = History(optimizer, every=10)

    In a step it only clones a few numbers where they are; they are read on the host when somebody asks for them.

    Args:
        optimizer: whose steps are recorded from now on.
        every: the interval, in steps, 1 by default: step 0 is recorded, step `every`, and so on. The optimizer counts, so that
            after a resume the count goes on; where it went back to an earlier checkpoint, what came after that is written
            over.

    Raises:
        TypeError, ValueError: another kind of optimizer; an interval that is not an integer of at least 1.
    """

    def __init__(self, optimizer: Hyperoptimizer, every: int = 1) -> None:
        if not isinstance(optimizer, Hyperoptimizer):
            raise TypeError(f"optimizer={type(optimizer).__name__} is not allowed; it must be a Hyperoptimizer")
        check_every(every)
        self.optimizer, self.every = optimizer, every
        self._told: dict[int, Any] = {}  # by step: a Snapshot, or once it has been read the records
        self._before, self._hooks = optimizer.made(), self._listen()

    def _listen(self) -> list[Any]:
        return [self.optimizer.register_step_pre_hook(self._begin), self.optimizer.register_step_post_hook(self._record)]

    def _begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._before = self.optimizer.made()

    def _record(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        step = self.optimizer.made() - 1
        if step == self._before - 1 or step % self.every:  # nothing has moved, or it is not its turn
            return
        while self._told and next(reversed(self._told)) >= step:
            self._told.popitem()
        self._told[step] = self.optimizer.snapshot()

    def close(self) -> None:
        """Stop recording; what has been recorded stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_hooks": bool(self._hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy records the steps of the copy of its optimizer, which has come without hooks, as in torch."""
        vars(self).update(state)
        self._hooks = self._listen() if self._hooks else []

    def records(self) -> list[dict[str, Any]]:
        """All that has been recorded, step by step.

        Returns:
            dicts. `step` counts from 0; `value` was in force in that step, in natural units; `hypergradient` was read in
            it, of the value of the step before: None for what is not tuned, NaN where none was read. With ``per="tensor"``
            both are lists on level 0, with an entry per parameter of the group. Levels above are shared: their `group` is
            None. A level with a value per hyperparameter of the level below has names such as ``lr.beta1``.
        """
        self._told = {step: records(told, step) if isinstance(told, Snapshot) else told for step, told in self._told.items()}
        return [record for told in self._told.values() for record in told]

    def _recorded(self, which: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """The records of `which` that is true. Raises RuntimeError where there are none."""
        if not (found := list(filter(which, self.records()))):
            raise RuntimeError("history: nothing has been recorded; make a step first")
        return found

    # ------------------------------------------------------------------ to keep

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a table to the file `path`, with a row per record; in it lists are JSON."""
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows({n: json.dumps(x) if isinstance(x, list) else x for n, x in r.items()} for r in self.records())

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the tower and the records to the file `path`; what is not finite becomes null."""
        content = {"tower": repr(self.optimizer.tower), "every": self.every, "records": self.records()}
        with open(path, "w") as file:
            json.dump(_finite(content), file, allow_nan=False)

    def to_tensorboard(self, writer: Any) -> None:
        """Write the `scalars` of each step to `writer`, a `SummaryWriter` or whatever has ``add_scalar(tag, value, step)``."""
        for step, told in groupby(self.records(), lambda record: record["step"]):
            for tag, value in scalars(told).items():
                writer.add_scalar(tag, value, step)

    def state_dict(self) -> dict[str, Any]:
        """All that has been recorded, for a run that is resumed."""
        return {"records": self.records()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the records of `state_dict` in the place of one's own."""
        self._told = {step: list(told) for step, told in groupby(state_dict["records"], lambda record: record["step"])}

    # --------------------------------------------------------- to see, to repeat

    def plot(self) -> Figure:
        """A figure with a row per level: what is tuned there, step sizes and the like beside coefficients in (0, 1).

        With ``per="tensor"`` a line is the median of the group's parameters, in a band from the least to the greatest.

        Raises:
            RuntimeError: nothing has been recorded.
            ImportError: matplotlib is not installed.
        """
        bounds = {rule.__name__: {n for n in rule.hyperparameters() if _most(rule, n) <= 1} for rule in _kinds(Rule)}
        rows: dict[int, dict[bool, dict[Any, dict[int, list[float]]]]] = {}
        for r in self._recorded(shown):
            bounded = r["name"].split(".")[0] in bounds.get(r["rule"], ())
            curve = rows.setdefault(r["level"], {}).setdefault(bounded, {}).setdefault((r["group"], r["rule"], r["name"]), {})
            curve[r["step"]] = _listed(r["value"])
        figure = _figure(len(rows))
        figure.suptitle(textwrap.fill(repr(self.optimizer.tower), 100), fontsize=11)
        grid = figure.add_gridspec(len(rows), 2)
        for row, (level, kinds) in enumerate(sorted(rows.items())):
            for column, (bounded, curves) in enumerate(sorted(kinds.items())):
                axes = figure.add_subplot(grid[row, column] if len(kinds) == 2 else grid[row, :])
                _draw(axes, curves, not bounded)
                if column == 0:
                    doing = f"tunes level {level - 1}" if level else "moves the weights"
                    title = f"level {level}, which {doing}: {', '.join(dict.fromkeys(rule for _, rule, _ in curves))}"
                    axes.set_title(title, loc="left", fontsize=10)
        return figure

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """The same run again without a tower: a scheduler that gives an optimizer of torch the recorded values.

            optimizer = torch.optim.Adam(model.parameters())
            scheduler = history.scheduler(optimizer)  # scheduler.step() after every optimizer.step()

        It sets all values of the rule on the weights that the groups have too; so of another rule than `optimizer` is, it is
        a schedule at best. Between recorded steps it interpolates; after the last it stays. What was tuned with
        ``per="tensor"`` needs an optimizer with a group per parameter.

        Raises:
            RuntimeError: nothing has been recorded.
            ValueError: an optimizer with another number of groups.
        """
        tracks: dict[tuple[int, int], dict[str, list[tuple[int, float]]]] = {}
        for r in self._recorded(lambda record: record["level"] == 0):
            for i, value in enumerate(_listed(r["value"])):
                tracks.setdefault((r["group"], i), {}).setdefault(r["name"], []).append((r["step"], value))
        if (have := len(optimizer.param_groups)) != len(tracks):
            raise ValueError(f"optimizer has {have} groups, which is not allowed; {len(tracks)} have been recorded")
        return Replay(optimizer, [tracks[k] for k in sorted(tracks)])


class Replay(LRScheduler):
    """Gives each group in each step the values of its track: by name, pairs of step and value."""

    def __init__(self, optimizer: Optimizer, tracks: list[dict[str, list[tuple[int, float]]]], last_epoch: int = -1) -> None:
        self.tracks = tracks
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The step sizes of this step; the other values are set."""
        for group, track in zip(self.optimizer.param_groups, self.tracks, strict=True):
            now = {n: _interpolated(pairs, self.last_epoch) for n, pairs in track.items()}
            group.update({n: now[n] for n in now.keys() & group.keys() - {"lr"}})
            if "betas" in group:
                group["betas"] = tuple(now.get(n, old) for n, old in zip(("beta1", "beta2"), group["betas"], strict=True))
        pairs = zip(self.optimizer.param_groups, self.tracks, strict=True)
        return [_interpolated(track["lr"], self.last_epoch) if "lr" in track else group["lr"] for group, track in pairs]


def _figure(rows: int) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("History.plot needs matplotlib: pip install matplotlib") from error
    return Figure(figsize=(9, 1.2 + 2.8 * rows), dpi=150, layout="constrained")


def _draw(axes: Any, curves: Mapping[Any, Mapping[int, list[float]]], wide: bool) -> None:
    """A line for each curve, by group, rule and name; `wide`: on a logarithmic axis, where the values allow it."""
    from matplotlib.ticker import LogFormatter

    names = list(dict.fromkeys(name for _, _, name in curves))
    several, ends = len({group for group, _, _ in curves}) > 1, [0.0]
    for (group, rule, name), curve in curves.items():
        middle, least, most = ([of(values) for values in curve.values()] for of in (median, min, max))
        label = f"{name}: {middle[0]:.3g} → {middle[-1]:.3g}" + f", group {group} ({rule})" * several
        color, line = COLORS[names.index(name) % len(COLORS)], LINES[(group or 0) % len(LINES)]
        if least != most:
            label += ", median in its range"
            axes.fill_between(list(curve), least, most, color=color, alpha=0.15, linewidth=0)
        axes.plot(list(curve), middle, label=label, color=color, linestyle=line, marker="." * (len(curve) == 1))
        ends += [min(least), max(most)]
    axes.set(xlabel="step", ylabel=", ".join(names))
    if wide and min(ends) == 0 < max(ends):
        axes.set_yscale("log")
        axes.yaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter())
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def records(snapshot: Snapshot, step: int) -> list[dict[str, Any]]:
    """What `snapshot` says; see `History.records`."""
    found = []
    for group in range(len(snapshot.groups)):
        rules = [snapshot.groups[group][0].rule, *(h.rule for h in snapshot.above)]
        told = zip(rules, snapshot.hyperparameters(group), snapshot.hypergradients(group), strict=True)
        for level, (rule, values, slopes) in enumerate(told):
            flat, slope = _flat(values), _flat(slopes)
            if level == 0 or group == 0:
                where = step, group if level == 0 else None, level, type(rule).__name__
                found += [dict(zip(FIELDS, (*where, n, value, slope.get(n)), strict=True)) for n, value in flat.items()]
    return found


def shown(record: Mapping[str, Any]) -> bool:
    """Whether there is something to see: what is tuned, and the step size of the weights, which may have a schedule."""
    tuned = record["hypergradient"] is not None
    return record["value"] != [] and (tuned or (record["level"] == 0 and record["name"] == "lr"))


def scalars(told: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What there is to see of one step's records, by tag: ``hypergradients/0.Adam.lr``, with many groups ``….group1``.

    Of lists the least, the median and the greatest.
    """
    told = [record for record in told if shown(record)]
    several = any(record["group"] for record in told)
    found = {}
    for r in told:
        tail = f".group{r['group']}" if several and r["group"] is not None else ""
        for what in ("value", "hypergradient"):
            tag = f"{'hyperparameters' if what == 'value' else 'hypergradients'}/{r['level']}.{r['rule']}.{r['name']}{tail}"
            if isinstance(r[what], list):
                some = [x for x in r[what] if not math.isnan(x)] or [math.nan]
                found.update({f"{tag}.{end.__name__}": end(some) for end in (min, median, max)})
            elif r[what] is not None:
                found[tag] = r[what]
    return {tag: value for tag, value in found.items() if not math.isnan(value)}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """With a name of its own for each value in a dict of dicts."""
    nested = {n: {f"{n}.{b}": x for b, x in v.items()} if isinstance(v, Mapping) else {n: v} for n, v in values.items()}
    return {n: x for inner in nested.values() for n, x in inner.items()}


def _listed(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def _interpolated(pairs: list[tuple[int, float]], step: int) -> float:
    """The value at `step` between those that are known; outside, the nearest."""
    i = bisect_right(pairs, step, key=lambda pair: pair[0])
    if i in (0, len(pairs)):
        return pairs[max(i - 1, 0)][1]
    (s, v), (s1, v1) = pairs[i - 1], pairs[i]
    return v + (step - s) / (s1 - s) * (v1 - v)


def _finite(x: Any) -> Any:
    """With None for numbers that JSON does not have."""
    if isinstance(x, dict):
        return {n: _finite(v) for n, v in x.items()}
    if isinstance(x, list):
        return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _kinds(rule: Any) -> list[type[Rule]]:
    """All classes of rules: also of groups that have been taken away since."""
    return [kind for each in rule.__subclasses__() for kind in (each, *_kinds(each))]


def _most(rule: type[Rule], name: str) -> float:
    """The upper bound of a hyperparameter."""
    most: float = getattr(rule.constraint(name), "upper_bound", math.inf)
    return most
