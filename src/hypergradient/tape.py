"""Tapes: a function of tensors that is recorded once, and played from then on.

A step of a small model takes less time than to call the operations of which it consists, most of them on single numbers. A
tape plays these in plain floats, and works on elements in as few passes as it can, in place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .numerics import on_host

LENGTH = 13
"""Of the elements on which a function of elements is recorded. It is played on any number of them."""
MOST = 512
"""Numbers in a tensor at the most."""


class Unrecordable(Exception):
    """There is something in a function that a tape cannot hold."""


# ------------------------------------------------------------------------------------------ numbers


def _guarded(function: Callable[..., float], beyond: Callable[..., float]) -> Callable[..., float]:
    """`function` of floats, and what torch would say where Python raises an error."""

    def guarded(*x: float) -> float:
        try:
            found = function(*x)
        except (ZeroDivisionError, OverflowError, ValueError):
            return beyond(*x)
        return found if isinstance(found, (int, float)) else math.nan  # a root of a negative number

    return guarded


def _by_torch(name: str) -> Callable[..., float]:
    return lambda *x: float(getattr(torch, name)(*(torch.tensor(float(y), dtype=torch.float64) for y in x)))


def _maximum(a: float, b: float) -> float:
    return a if a >= b or a != a else b


def _minimum(a: float, b: float) -> float:
    return a if a <= b or a != a else b


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= -700 else 0.0 if x == x else x


FUNCTIONS: dict[str, Any] = {
    "div": _guarded(lambda a, b: a / b, _by_torch("div")),
    **{n: _guarded(getattr(math, n), _by_torch(n)) for n in ("pow", "sqrt", "exp", "expm1", "log", "log1p", "tanh")},
    "maximum": _maximum,
    "minimum": _minimum,
    "sigmoid": _sigmoid,
    "sign": lambda x: (x > 0) - (x < 0) + 0.0 * x,
    "finite": math.isfinite,
    "inf": math.inf,
    "nan": math.nan,
}

NUMBERS: dict[str, str] = {
    "add": "{0} + {2} * {1}",
    "sub": "{0} - {2} * {1}",
    "rsub": "{1} - {2} * {0}",
    "mul": "{0} * {1}",
    "div": "div({0}, {1})",
    "reciprocal": "div(1.0, {0})",
    "neg": "-{0}",
    "abs": "abs({0})",
    **{n: n + "({0})" for n in ("sqrt", "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sign")},
    "pow": "pow({0}, {1})",
    "maximum": "maximum({0}, {1})",
    "minimum": "minimum({0}, {1})",
    "clamp_min": "maximum({0}, {1})",
    "clamp_max": "minimum({0}, {1})",
    "clamp": "minimum(maximum({0}, {1}), {2})",
    "where": "{1} if {0} else {2}",
    "masked_fill": "{2} if {1} else {0}",
    **{
        n: f"{{0}} {x} {{1}}"
        for n, x in zip(["eq", "ne", "lt", "le", "gt", "ge"], ["==", "!=", "<", "<=", ">", ">="], strict=True)
    },
    **dict.fromkeys(("bitwise_and", "logical_and"), "bool({0}) and bool({1})"),
    **dict.fromkeys(("bitwise_not", "logical_not"), "not {0}"),
    "isfinite": "finite({0})",
    "lerp": "{0} + {2} * ({1} - {0})",
    "addcmul": "{0} + {3} * {1} * {2}",
    "addcdiv": "{0} + {3} * div({1}, {2})",
    "nan_to_num": "{0} if finite({0}) else 0.0",
    "sigmoid_backward": "{0} * (1.0 - {1}) * {1}",
    "threshold": "{0} if {0} > {1} or {0} != {0} else {2}",
    "copy": "{1}",
    "fill": "{1}",
    "zero": "0.0",
}
"""What an operation of torch does to single numbers: its arguments, as its schema orders them."""
FACTORIES = {"zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0, "zeros": 0.0, "ones": 1.0}
MOVES = "cat", "stack", "clone", "index_select", "index", "repeat"
"""Operations that put numbers in other places."""
SUMS = {"sum": (" + ", "0.0"), "all": (" and ", "True"), "any": (" or ", "False")}

# ----------------------------------------------------------------------------------------- elements

TAKES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("mul", "add", "sub", "div", "clamp_min", "clamp_max", "rsub", *["eq", "ne", "lt", "le", "gt", "ge"]), (1,)
    ),
    "pow": (0, 1),
    "lerp": (2,),
    "clamp": (1, 2),
    "masked_fill": (2,),
    "threshold": (1, 2),
}
"""Which arguments of an operation on elements may be plain numbers."""
INTO = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "reciprocal",
        "neg",
        "abs",
        "sqrt",
        "exp",
        "expm1",
        "log",
        "log1p",
        "sign",
        "pow",
        "maximum",
        "minimum",
    ]
) | frozenset(["clamp", "clamp_min", "clamp_max", "lerp", "addcmul", "addcdiv", "nan_to_num", "sigmoid", "tanh"])
"""Operations that write their result where they are told to."""


class Name(str):
    """The name of a number."""


class Elements(Name):
    """The name of elements."""


class Line(NamedTuple):
    """One operation of the program.

    Args:
        name: of its result.
        what: the operation on elements; "": an expression of numbers; "sum": of elements.
        of: its arguments, or the expression in pieces.
        more: arguments by keyword.
        dtype: of elements that result.
    """

    name: str
    what: str
    of: tuple[Any, ...]
    more: dict[str, Any] = {}  # noqa: RUF012
    dtype: torch.dtype = torch.float64

    def reads(self) -> list[str]:
        """The names that it needs."""
        return [x for x in (*self.of, *self.more.values()) if isinstance(x, Name)]


class Recorder(TorchDispatchMode):
    """Writes down what is done to the tensors of a function.

    Tensors are told apart by their memory: so views need no care. Of the memory of numbers it is known by what each of them
    is named; of elements, which are all of one length, what all of them are named.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a step is never traced; to say so again would import the compiler, which takes a second

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Line] = []
        self.numbers: dict[int, list[Any]] = {}
        self.elements: dict[int, Elements] = {}
        self.captured: dict[int, tuple[Tensor, list[Any], Tensor]] = {}
        self._names, self._same, self._kept = count(), dict[Any, Name](), list[Any]()

    # ---------------------------------------------------------------- what tensors are

    def take(self, x: Tensor, name: str, elements: bool) -> Tensor:
        """What stands for an argument in the function."""
        if elements:
            x = torch.ones(LENGTH, dtype=x.dtype)
            self.elements[_memory(x)] = Elements(name)
        else:
            if x.numel() > MOST:
                raise Unrecordable(f"{x.numel()} numbers")
            x = x.detach().clone(memory_format=torch.contiguous_format)
            self.numbers[_memory(x)] = [Name(f"{name}_{i}") for i in range(x.numel())]
        self._kept.append(x)
        return x

    def _know(self, x: Tensor) -> None:
        """Take note of a tensor that was there before."""
        memory = _memory(x)
        if memory in self.elements or memory in self.numbers:
            return
        size = x.untyped_storage().nbytes() // x.element_size()
        if size > MOST or type(x) not in (Tensor, torch.nn.Parameter) or x.device.type != "cpu":
            raise Unrecordable(f"a tensor of {size} elements")
        flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage(), 0, (size,), (1,))
        names = [Name(f"k{len(self.captured)}_{i}") for i in range(size)]
        self.captured[memory] = flat, names, flat.clone()
        self.numbers[memory] = list(names)

    def atoms(self, x: Any, shape: Sequence[int]) -> list[Any]:
        """The numbers of a tensor or a number, spread to `shape`, one after the other."""
        if not isinstance(x, Tensor):
            return [x] * math.prod(shape)
        cells, where = self.numbers[_memory(x)], _positions(x).expand(tuple(shape)).reshape(-1).tolist()
        return [cells[i] for i in where]

    def _element(self, x: Any) -> Any:
        """The name of elements, or of the one number that is the same for all of them."""
        if isinstance(x, Tensor) and (name := self.elements.get(_memory(x))) is not None:
            if x.shape != (LENGTH,):
                raise Unrecordable(f"elements in the shape {tuple(x.shape)}")
            return name
        if not isinstance(x, Tensor):
            return x
        found = set(self.atoms(x, x.shape))
        if len(found) != 1:
            raise Unrecordable("different numbers for different elements")
        return found.pop()

    # ------------------------------------------------------------------ what is done

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it, and write it down."""
        schema, given = function._schema, dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, given)) if isinstance(x, Tensor)]
        for x in tensors:
            self._know(x)
        names = [a.name for a in schema.arguments]
        given.update(zip(names, args, strict=False))
        ordered = [given.get(a.name, a.default_value) for a in schema.arguments]
        out = function(*args, **(kwargs or {}))
        self._kept.append(out)
        name = schema.name.removeprefix("aten::")
        if schema.is_mutable:
            self._write(args[0], self._value(name.removesuffix("_"), ordered, args[0]))
        elif not all(_memory(x) in self.numbers or _memory(x) in self.elements for x in tree_leaves(out)):
            if not isinstance(out, Tensor):
                raise Unrecordable(name)
            self._write(out, self._value(name, ordered, out))
        return out

    def _write(self, x: Tensor, value: Any) -> None:
        memory = _memory(x)
        if isinstance(value, list):
            if memory in self.elements:
                raise Unrecordable("different numbers for different elements")
            cells = self.numbers.setdefault(memory, [0.0] * (x.untyped_storage().nbytes() // x.element_size()))
            for i, cell in zip(_positions(x).reshape(-1).tolist(), value, strict=True):
                cells[i] = cell
        elif memory in self.numbers:
            raise Unrecordable("numbers become elements")
        else:
            self.elements[memory] = value

    def _value(self, name: str, given: list[Any], out: Tensor) -> Any:
        """What results: the name of elements, or a list of numbers."""
        tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
        if name == "_to_copy":
            given = [given[0]]
        if any(_memory(x) in self.elements for x in tensors):
            return self._of_elements(name, given, out)
        if name in FACTORIES or name in ("full_like", "full", "scalar_tensor", "new_full"):
            value = FACTORIES.get(name, given[0 if name == "scalar_tensor" else 1])
            return [value] * out.numel()
        if name == "eye":
            return out.flatten().tolist()
        if name == "_to_copy":
            return [self._converted(x, out.dtype) for x in self.atoms(given[0], out.shape)]
        if name in MOVES:
            return self._moved(name, given)
        if name in SUMS:
            return self._summed(name, given, out)
        if name not in NUMBERS:
            raise Unrecordable(name)
        columns = [self.atoms(x, out.shape) for x in given if not isinstance(x, (str, torch.memory_format))]
        return [self._number(NUMBERS[name], row) for row in zip(*columns, strict=True)]

    def _converted(self, x: Any, dtype: torch.dtype) -> Any:
        return self._number("{0} != 0" if dtype == torch.bool else "{0} + 0.0", (x,)) if not dtype.is_complex else x

    def _number(self, expression: str, row: Sequence[Any]) -> Any:
        """The name of an expression, the same for the same; or what it is, if that is known."""
        if expression == "clamp" or None in row:  # a clamp at one end
            expression, row = ("minimum({0}, {1})", (row[0], row[2])) if row[1] is None else ("maximum({0}, {1})", row[:2])
        if expression in ("{0} + 0.0", "{1}"):
            return row[0] + 0.0 if expression == "{0} + 0.0" and not isinstance(row[0], Name) else row[expression == "{1}"]
        said = expression.replace("{2} * {1}", "{1}") if len(row) > 2 and row[2] == 1 else expression
        said = said.replace("{3} * ", "") if len(row) > 3 and row[3] == 1 else said
        text = said.format(*(x if isinstance(x, Name) else f"({x!r})" for x in row))
        if not any(isinstance(x, Name) for x in row):
            return eval(text, dict(FUNCTIONS))
        return self._line("", (text, *(x for x in row if isinstance(x, Name))), {}, torch.float64)

    def _line(self, what: str, of: tuple[Any, ...], more: dict[str, Any], dtype: torch.dtype) -> Name:
        key = what, of, tuple(more.items()), dtype
        if key not in self._same:
            kind = Elements if what not in ("", "sum") else Name
            self._same[key] = kind(f"x{next(self._names)}")
            self.lines.append(Line(self._same[key], what, of, more, dtype))
        return self._same[key]

    def _moved(self, name: str, given: list[Any]) -> list[Any]:
        """The numbers of an operation that moves them: it is asked where it takes each from."""
        known: list[Any] = []

        def numbered(x: Any) -> Any:
            if isinstance(x, (list, tuple)):
                return [numbered(y) for y in x]
            if not isinstance(x, Tensor) or (name.startswith("index") and x is not given[0]):
                return x
            begin = len(known)
            known.extend(self.atoms(x, x.shape))
            return torch.arange(begin, len(known)).view(x.shape)

        operation = getattr(torch.ops.aten, name)
        taken = operation(*[numbered(x) for x in (given[:1] if name == "clone" else given)])
        return [known[i] for i in taken.reshape(-1).tolist()]

    def _summed(self, name: str, given: list[Any], out: Tensor) -> list[Any]:
        x = given[0]
        dims = given[1] if len(given) > 1 and isinstance(given[1], (list, int)) else list(range(x.ndim))
        dims = [d % x.ndim for d in ([dims] if isinstance(dims, int) else dims or range(x.ndim))] if x.ndim else []
        if any(x.shape[d] == LENGTH for d in dims):
            raise Unrecordable("a sum over as many numbers as there are elements")
        rest = [d for d in range(x.ndim) if d not in dims]
        where = (
            _positions(x).permute(*rest, *dims).reshape(out.numel(), math.prod(x.shape[d] for d in dims)).tolist()
            if x.ndim
            else [[x.storage_offset()]]
        )
        cells, (sign, zero) = self.numbers[_memory(x)], SUMS[name]
        found = []
        for row in where:
            mine = [cells[i] for i in row]
            places = sign.join(f"{{{i}}}" for i in range(len(mine))) or zero
            found.append(mine[0] if len(mine) == 1 and name == "sum" else self._number(places + " ", mine))
        return found

    def _of_elements(self, name: str, given: list[Any], out: Tensor) -> Any:
        if name in ("copy", "fill"):
            made = self._element(given[1])
            if not isinstance(made, Elements):
                made = self._line("full", (self._element(given[0]), made), {}, out.dtype)
            return made
        if name == "sum" and out.numel() == 1:
            return [self._line("sum", (self._element(given[0]),), {}, torch.float64)]
        if name in FACTORIES or name == "full_like":
            return self._line("full", (self._element(given[0]), FACTORIES.get(name, given[1])), {}, out.dtype)
        if name == "clone" or name == "_to_copy":
            same = self._element(given[0])
            return same if given[0].dtype == out.dtype else self._line("convert", (same,), {}, out.dtype)
        if name not in NUMBERS or out.shape != (LENGTH,):
            raise Unrecordable(name)
        of, more = [self._element(x) if x is not None else None for x in given], {}
        if name in ("add", "sub", "rsub"):
            of, more = of[:2], {} if of[2] == 1 else {"alpha": of[2]}
        elif name in ("addcmul", "addcdiv"):
            of, more = of[:3], {} if of[3] == 1 else {"value": of[3]}
        elif name == "div":
            of = of[:2]
        if name in ("add", "mul") and not isinstance(of[0], Elements) and not more:
            of.reverse()
        if name == "sub" and not isinstance(of[0], Elements) and not more:
            name, of = "rsub", of[::-1]
        return self._line(name, tuple(of), more, out.dtype)


def _memory(x: Tensor) -> int:
    return cast(int, x.untyped_storage()._cdata)


def _positions(x: Tensor) -> Tensor:
    """Where in its memory each element lies. shape: that of `x`"""
    size = x.untyped_storage().nbytes() // x.element_size()
    return torch.arange(size).as_strided(x.shape, x.stride(), x.storage_offset())


# --------------------------------------------------------------------------------------- the program


@on_host()
def record(function: Callable[..., Any], tensors: Sequence[Tensor], elements: Sequence[bool]) -> Callable[..., Any]:
    """A tape of ``function(*tensors)``.

    Args:
        function: one that does nothing but to operate on tensors, and depends on nothing else that changes.
        tensors: such as it is called with.
        elements: which of them are elements, all of one length, that may be another each time; the others are numbers.

    Raises:
        Unrecordable: it cannot be.
    """
    names = [Elements(f"t{i}") if many else Name(f"t{i}") for i, many in enumerate(elements)]
    recorder = Recorder()
    inside = [recorder.take(x, name, many) for x, name, many in zip(tensors, names, elements, strict=True)]
    try:
        with recorder:
            out = function(*inside)
    finally:
        for flat, _, before in recorder.captured.values():
            flat.copy_(before)
    known: dict[str, Any] = {**FUNCTIONS, "torch": torch, "tensor": torch.tensor, "cpu": torch.device("cpu")}
    head, tail, needed = [], [], list[Any]()
    changed: dict[str, Any] = {}
    for name, x in zip(names, inside, strict=True):
        if isinstance(name, Elements):
            if (value := recorder.elements[_memory(x)]) != name:
                changed[name] = value
            continue
        cells = recorder.numbers[_memory(x)]
        mine = [Name(f"{name}_{i}") for i in range(x.numel())]
        head.append((mine, f"{name}.{'tolist()' if x.ndim == 1 else 'reshape(-1).tolist()'}"))
        if cells != mine:
            tail.append(f"{name}.copy_({_tensor(cells, x)})")
            needed += cells
    for i, (memory, (flat, mine, before)) in enumerate(recorder.captured.items()):
        cells = recorder.numbers[memory]
        if cells == mine:
            known.update(zip(mine, before.tolist(), strict=True))
        else:
            known[f"k{i}"] = flat
            head.append((mine, f"k{i}.tolist()"))
            tail.append(f"k{i}.copy_({_tensor(cells, flat)})")
            needed += cells

    def told(x: Any) -> str:
        if isinstance(x, (tuple, list)):
            return f"({''.join(told(y) + ', ' for y in x)})"
        if x is None:
            return "None"
        if not isinstance(x, Tensor) or _memory(x) not in recorder.numbers:
            raise Unrecordable("a result that is not numbers")
        cells = recorder.atoms(x, x.shape)
        needed.extend(cells)
        return _tensor(cells, x)

    result = told(out)
    lines = _shortened(recorder.lines, {*needed, *changed.values()})
    used = {*needed, *changed.values(), *(x for line in lines for x in line.reads())}
    body = [f"{', '.join(mine)}, = {text}" for mine, text in head if used & set(mine)]
    body += [*_printed(lines, changed, {n: x.dtype for n, x in zip(names, inside, strict=True)}, known), *tail]
    text = "\n    ".join([f"def played({', '.join(names)}):", *body, f"return {result}"])

    exec(text, known)  # of nothing but what stands above
    played: Callable[..., Any] = known["played"]
    return played


def _tensor(cells: Sequence[Any], like: Tensor) -> str:
    """The text that makes a tensor of numbers."""
    text = f"tensor([{', '.join(x if isinstance(x, Name) else repr(x) for x in cells)}], dtype={like.dtype}, device=cpu)"
    return text if like.ndim == 1 else f"{text}.view({tuple(like.shape)})"


def _shortened(lines: Sequence[Line], needed: Iterable[Any]) -> list[Line]:
    """The same with fewer operations on elements, and without those that nobody needs."""
    made = {line.name: line for line in lines}
    uses = Counter([x for line in lines for x in line.reads()] + list(needed))

    def scaled(x: Any) -> Line | None:
        """The line of ``elements * number``, if it serves for nothing else."""
        line = made.get(x)
        one = line is not None and line.what == "mul" and uses[x] == 1 and not isinstance(line.of[1], Elements)
        return line if one else None

    for line in lines:
        new, (first, *others) = line, line.of
        if line.what in ("add", "sub") and not line.more and others:
            if by := scaled(others[0]):
                new = line._replace(of=(first, by.of[0]), more={"alpha": by.of[1]})
            elif line.what == "add" and isinstance(others[0], Elements) and (by := scaled(first)):
                new = line._replace(of=(others[0], by.of[0]), more={"alpha": by.of[1]})
        elif line.what == "addcmul" and not line.more and (by := scaled(others[0])):
            new = line._replace(of=(first, by.of[0], others[1]), more={"value": by.of[1]})
        elif line.what == "sum" and (by := made.get(first)) and by.what == "mul" and uses[first] == 1:
            new = line._replace(what="dot", of=by.of) if isinstance(by.of[1], Elements) else line
        made[line.name] = new
    wanted, found = set(needed), list[Line]()
    for line in reversed([made[line.name] for line in lines]):
        if line.name in wanted:
            wanted.update(line.reads())
            found.append(line)
    return found[::-1]


def _printed(
    lines: Sequence[Line], changed: dict[str, Any], inputs: dict[Any, torch.dtype], known: dict[str, Any]
) -> list[str]:
    """The text of the program; results are written where there is room for them.

    Args:
        changed: elements that are given, and what is to be in their place in the end.
    """
    last = {x: i for i, line in enumerate(lines) for x in line.reads()}
    made = {line.name: i for i, line in enumerate(lines)}
    into: dict[str, str] = {}
    wanted = Counter(changed.values())

    def settle(value: str, target: str) -> None:
        """Let what becomes `value` be written to `target` at once, if that is not read any more."""
        i = made.get(value)
        if i is None or lines[i].what not in INTO or lines[i].dtype != inputs[Name(target)] or last.get(target, -1) > i:
            return
        into[value] = target
        for x in lines[i].of:
            j = made.get(x) if isinstance(x, Elements) and last.get(x) == i else None
            if j is not None and lines[j].dtype == lines[i].dtype and x not in wanted and last.get(target, -1) <= j:
                return settle(x, target)

    for target, value in changed.items():
        if wanted[value] == 1 and target not in wanted:
            settle(value, target)
    room, text = dict[str, str](), list[str]()
    for i, line in enumerate(lines):
        if line.what in INTO and line.name not in into:
            free = (x for x in line.of if isinstance(x, Elements) and last[x] == i and x in made)
            free = (x for x in free if x not in into and x not in wanted and lines[made[x]].dtype == line.dtype)
            if (x := next(free, None)) is not None:
                room[line.name] = x
        text.append(f"{line.name} = {_operation(line, into.get(line.name) or room.get(line.name), known)}")
    ends = {target: value for target, value in changed.items() if into.get(value) != target}
    copies = {value: f"old_{value}" for value in ends.values() if value in ends}  # given elements that change places
    text += [f"{new} = {old}.clone()" for old, new in copies.items()]
    return text + [f"{target}.copy_({copies.get(value, value)})" for target, value in ends.items()]


def _operation(line: Line, target: str | None, known: dict[str, Any]) -> str:
    if line.what == "":
        return str(line.of[0])
    if line.what == "sum":
        return f"{line.of[0]}.sum().item()"
    known[f"each_{line.what}"] = getattr(torch, line.what, None) or getattr(torch.ops.aten, line.what, None)
    if line.what == "dot":
        return f"each_dot({line.of[0]}, {line.of[1]}).item()"
    if line.what == "convert":
        return f"{line.of[0]}.to({line.dtype})"
    if line.what == "full":
        return f"torch.full_like({line.of[0]}, {line.of[1]}, dtype={line.dtype})"
    plain, of = TAKES.get(line.what, ()), list[str]()
    for i, x in enumerate(line.of):
        kind = torch.bool if line.what == "where" and i == 0 else line.dtype
        of.append(str(x) if isinstance(x, Elements) or i in plain or x is None else f"tensor({x}, dtype={kind}, device=cpu)")
    more = [f"{n}={x}" for n, x in line.more.items()] + ([f"out={target}"] if target else [])
    return f"each_{line.what}({', '.join([*of, *more])})"
