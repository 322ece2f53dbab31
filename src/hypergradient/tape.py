"""Tapes: a function of tensors that is recorded once, and played from then on.

A step of a small model takes less time than to call the operations of which it consists, most of them on single numbers. A
tape plays these in plain floats, and works on elements in as few passes as it can, in place.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_float
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .numerics import on_host, storage

LENGTH = 1013
"""Of the elements on which a function of elements is recorded: no tensor of numbers has it. It is played on any number."""
MOST = 1 << 13
"""Numbers in a tensor at the most."""
BLOCKS = 64
"""In so many blocks, on average, a part is added up at the most: to read their sums takes time, too."""
WORTH = 32
"""To how many numbers an operation may do something, on average: torch does it to more in the same time."""


class Unrecordable(Exception):
    """There is something in a function that a tape cannot hold."""


# ------------------------------------------------------------------------------------------ numbers


def _guarded(name: str, function: Callable[..., float]) -> Callable[..., float]:
    """`function` of floats, and what torch says where Python raises an error."""

    def guarded(*x: float) -> float:
        try:
            return function(*x)
        except (ZeroDivisionError, OverflowError, ValueError):
            return float(getattr(torch, name)(*(torch.tensor(float(y), dtype=torch.float64) for y in x)))

    return guarded


FUNCTIONS: dict[str, Any] = {
    "div": _guarded("div", lambda a, b: a / b),
    "sigmoid": _guarded("sigmoid", lambda x: 1 / (1 + math.exp(-x))),
    **{n: _guarded(n, getattr(math, n)) for n in ("pow", "sqrt", "exp", "expm1", "log")},
    "maximum": lambda a, b: a if a >= b or a != a else b,
    "minimum": lambda a, b: a if a <= b or a != a else b,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "finite": math.isfinite,
    "single": lambda x: c_float(x).value,
    "inf": math.inf,
    "nan": math.nan,
}

COMPARED = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
NUMBERS: dict[str, str] = {
    "add": "{0} + {2} * {1}",
    "sub": "{0} - {2} * {1}",
    "rsub": "{1} - {2} * {0}",
    "mul": "{0} * {1}",
    "div": "div({0}, {1})",
    "reciprocal": "div(1.0, {0})",
    "neg": "-{0}",
    **{n: n + "({0})" for n in ("abs", "sqrt", "exp", "expm1", "log", "sigmoid", "sign")},
    "sgn": "sign({0})",
    **{n: n + "({0}, {1})" for n in ("pow", "maximum")},
    "clamp_min": "maximum({0}, {1})",
    "clamp": "minimum(maximum({0}, {1}), {2})",
    "where": "{1} if {0} else {2}",
    "masked_fill": "{2} if {1} else {0}",
    **{n: f"{{0}} {sign} {{1}}" for n, sign in COMPARED.items()},
    **dict.fromkeys(("bitwise_and", "logical_and"), "{0} and {1}"),
    "bitwise_or": "{0} or {1}",
    "lerp": "{0} + {2} * ({1} - {0})",
    "addcmul": "{0} + {3} * {1} * {2}",
    "nan_to_num": "{0} if finite({0}) else {1} if {0} != {0} else {2} if {0} > 0 else {3}",
    "threshold": "{0} if {0} > {1} or {0} != {0} else {2}",
}
"""What an operation of torch does to single numbers: its arguments, as its schema orders them."""
FACTORIES = "zeros_like", "ones_like", "full_like", "new_zeros", "zeros", "scalar_tensor", "eye"
"""Operations that make what is always the same."""
COPIES = "copy", "clone", "_to_copy"
MOVES = "cat", "stack", "index_select"
"""Operations that put numbers in other places."""
ARRAYS = {torch.float32: "f", torch.float64: "d"}
"""What torch makes a tensor of as it is."""
SUMS = {"sum": (" + ", "0.0"), "all": (" and ", "True")}

# ----------------------------------------------------------------------------------------- elements

TAKES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("mul", "add", "sub", "div", "clamp_min", "rsub", *COMPARED), (1,)),
    "pow": (0, 1),
    **dict.fromkeys(("lerp", "masked_fill"), (2,)),
    **dict.fromkeys(("clamp", "threshold", "nan_to_num"), (1, 2, 3)),
}
"""Which arguments of an operation on elements may be plain numbers."""
FACTORS = "add", "sub", "rsub", "addcmul"
"""Operations whose last argument is a factor, which may be left out."""
INTO = NUMBERS.keys() - {"rsub", "masked_fill", "threshold"}
"""Operations that write their result where they are told to."""


class Name(str):
    """The name of a number."""

    __repr__ = str.__str__  # in the text of a tape


class Elements(Name):
    """The name of elements."""


WRITTEN = {
    "": "{0}",
    "sum": "{0}.sum().item()",
    "parts": "sums({0}, {1})",
    "convert": "{0}.to({dtype})",
    "full": "torch.full_like({0}, {1}, dtype={dtype})",
}
"""Operations that are written in another way."""


class Line(NamedTuple):
    """One operation of the program.

    Args:
        name: of its result.
        what: the operation on elements; "": an expression of numbers; "sum": of elements; "parts": of each part, a list.
        of: its arguments, or the expression in pieces.
        dtype: of elements that result.
        more: arguments by keyword.
    """

    name: str
    what: str
    of: tuple[Any, ...]
    dtype: torch.dtype
    more: Mapping[str, Any] = {}

    def reads(self) -> list[str]:
        return [x for x in (*self.of, *self.more.values()) if isinstance(x, Name)]


class Recorder(TorchDispatchMode):
    """Writes down what is done to the tensors of a function.

    Tensors are told apart by their memory: so views need no care. Of the memory of numbers it is known by what each of them
    is named, in a list; of elements, which are all of one length, what all of them are named.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a step is never traced; to say so again would import the compiler, which takes a second

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Name, Line] = {}
        self.names: dict[int, Any] = {}
        self.captured: dict[int, tuple[Tensor, Tensor]] = {}
        self._same, self._kept, self._done = dict[Any, Name](), list[Any](), 0

    # ---------------------------------------------------------------- what tensors are

    def take(self, x: Tensor, name: Name) -> Tensor:
        """What stands for an argument in the function."""
        many = isinstance(name, Elements)
        x = torch.ones(LENGTH, dtype=x.dtype) if many else x.detach().clone(memory_format=torch.contiguous_format)
        self.names[storage(x)] = name if many else named(name, x)
        self._kept.append(x)
        return x

    def _know(self, x: Tensor) -> None:
        """Take note of a tensor that was there before: of all of its memory."""
        if (memory := storage(x)) in self.names:
            return
        if type(x) not in (Tensor, torch.nn.Parameter) or x.device.type != "cpu":
            raise Unrecordable(f"{type(x)} on {x.device}")
        flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage(), 0, (_size(x),), (1,))
        self.names[memory] = named(f"k{len(self.captured)}", flat)
        self.captured[memory] = flat, flat.clone()

    def undo(self) -> None:
        """Put back what was written to tensors that were there before."""
        for flat, before in self.captured.values():
            flat.copy_(before)

    def atoms(self, x: Any, shape: Sequence[int]) -> list[Any]:
        """The numbers of a tensor or a number, spread to `shape`, one after the other."""
        if not isinstance(x, Tensor):
            return [x] * math.prod(shape)
        cells = self.names[storage(x)]
        return [cells[i] for i in _positions(x, shape)]

    def _element(self, x: Any) -> Any:
        """The name of elements, or of the one number that is the same for all of them."""
        if not isinstance(x, Tensor):
            return x
        if isinstance(name := self.names[storage(x)], Elements):
            if x.shape != (LENGTH,) or x.stride() != (1,):
                raise Unrecordable(f"elements in the shape {tuple(x.shape)}")
            return name
        found = set(self.atoms(x, x.shape))
        if len(found) != 1:
            raise Unrecordable("different numbers for different elements")
        return found.pop()

    # ------------------------------------------------------------------ what is done

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema, given, self._done = function._schema, dict(kwargs or {}), self._done + 1
        if len(self.lines) > WORTH * (self._done + 16):
            raise Unrecordable(f"{len(self.lines)} numbers from {self._done} operations")
        tensors = [x for x in tree_leaves((*args, *given.values())) if isinstance(x, Tensor)]
        for x in tensors:
            self._know(x)
        given.update(zip((a.name for a in schema.arguments), args, strict=False))
        ordered = [given.get(a.name, a.default_value) for a in schema.arguments]
        name = schema.name.removeprefix("aten::")
        if name == "split_with_sizes" and isinstance(self.names[storage(args[0])], Elements):
            return self._parts(*ordered)
        out = function(*args, **(kwargs or {}))
        self._kept.append(out)
        made = tree_leaves(out)
        if not all(isinstance(x, Tensor) for x in made):  # read on the host
            raise Unrecordable(name)
        if schema.is_mutable:
            self._write(args[0], self._value(name.removesuffix("_"), ordered, args[0]))
        elif not all(storage(x) in self.names for x in made):  # no view
            if not isinstance(out, Tensor):
                raise Unrecordable(name)
            self._write(out, self._value(name, ordered, out))
        return out

    def _parts(self, x: Tensor, sizes: Sequence[int], dim: int) -> list[Tensor]:
        """What stands for parts of elements, of which there are as many as there will be: of each the sum, for nothing else is
        made of a part.
        """
        made, number, x = [torch.ones(1, dtype=x.dtype) for _ in sizes], torch.float64, self._element(x)
        each = self._line("parts", (x, tuple(sizes)), number)
        names = [self._line("", (f"{each}[{i}]", each), number) for i in range(len(sizes))]
        self.names.update({storage(y): [name] for y, name in zip(made, names, strict=True)})
        self._kept.append(made)
        return made

    def _write(self, x: Tensor, value: Any) -> None:
        old = self.names.setdefault(storage(x), [0.0] * _size(x) if isinstance(value, list) else value)
        if type(old) is not type(value):
            raise Unrecordable("numbers become elements, or elements numbers")
        if isinstance(value, list):
            for i, cell in zip(_positions(x, x.shape), value, strict=True):
                old[i] = cell
        else:
            self.names[storage(x)] = value

    def _value(self, name: str, given: list[Any], out: Tensor) -> Any:
        """What results: the name of elements, or a list of numbers."""
        if name in FACTORIES and out.numel() <= MOST:
            return out.flatten().tolist()
        if any(isinstance(x, Tensor) and isinstance(self.names[storage(x)], Elements) for x in tree_leaves(given)):
            return self._of_elements(name, given, out)
        if name in COPIES:
            source = given[name == "copy"]
            return [self._converted(x, source.dtype, out.dtype) for x in self.atoms(source, out.shape)]
        if name in MOVES:
            return self._moved(name, given)
        if name in SUMS:
            return self._summed(name, given, out)
        if name not in NUMBERS or any(isinstance(x, str) for x in given):  # a name says to round in another way
            raise Unrecordable(name)
        columns = [self.atoms(x, out.shape) for x in given]
        return [self._number(NUMBERS[name], row, out.dtype) for row in zip(*columns, strict=True)]

    def _converted(self, x: Any, old: torch.dtype, new: torch.dtype) -> Any:
        """A number as one of another dtype."""
        if new == old or (new == torch.float64 and isinstance(x, Name)):
            return x
        if new not in (torch.bool, torch.float32, torch.float64):
            raise Unrecordable(str(new))
        return self._number("{0} != 0" if new == torch.bool else "{0} + 0.0", (x,), new)

    def _number(self, expression: str, row: Sequence[Any], dtype: torch.dtype = torch.float64) -> Any:
        """The name of an expression, the same for the same; or what it is, if that is known. In single precision it is rounded
        as there.
        """
        if None in row:
            raise Unrecordable(expression)
        said = expression.replace("{2} * {1}", "{1}") if len(row) > 2 and row[2] == 1 else expression
        said = said.replace("{3} * ", "") if len(row) > 3 and row[3] == 1 else said
        text = said.format(*(x if isinstance(x, Name) else f"({x!r})" for x in row))
        text = f"single({text})" if dtype == torch.float32 else text
        if not any(isinstance(x, Name) for x in row):
            return eval(text, dict(FUNCTIONS))
        return self._line("", (text, *(x for x in row if isinstance(x, Name))), torch.float64)

    def _line(self, what: str, of: tuple[Any, ...], dtype: torch.dtype) -> Name:
        kind = Elements if what not in ("", "sum", "parts") else Name
        name = self._same.setdefault((what, of, dtype), kind(f"x{len(self.lines)}"))
        self.lines.setdefault(name, Line(name, what, of, dtype))
        return name

    def _moved(self, name: str, given: list[Any]) -> list[Any]:
        """The numbers of an operation that moves them: it is asked where it takes each from."""
        known: list[Any] = []

        def numbered(x: Tensor) -> Any:
            if x is given[-1]:  # an index
                return x
            begin = len(known)
            known.extend(self.atoms(x, x.shape))
            return torch.arange(begin, len(known)).view(x.shape)

        taken = getattr(torch, name)(*tree_map_only(Tensor, numbered, given))
        return [known[i] for i in taken.reshape(-1).tolist()]

    def _summed(self, name: str, given: list[Any], out: Tensor) -> list[Any]:
        x, sign, zero = given[0], *SUMS[name]
        said = [d for y in given[1:2] if isinstance(y, (list, int)) for d in tree_leaves(y)]
        dims = sorted({d % x.ndim for d in said or range(x.ndim)})
        if any(x.shape[d] == LENGTH for d in dims):
            raise Unrecordable("a sum over as many numbers as there are elements")
        cells, last = torch.arange(x.numel()).view(x.shape), range(-len(dims), 0)
        known, many = self.atoms(x, x.shape), math.prod(x.shape[d] for d in dims)
        rows = [[known[i] for i in row] for row in cells.movedim(dims, [*last]).reshape(out.numel(), many).tolist()]
        places = [sign.join(f"{{{i}}}" for i in range(len(row))) or zero for row in rows]
        return [row[0] if len(row) == 1 else self._number(text, row) for text, row in zip(places, rows, strict=True)]

    def _of_elements(self, name: str, given: list[Any], out: Tensor) -> Any:
        first = self._element(given[0])
        if name in COPIES:
            made = self._element(source := given[name == "copy"])
            if isinstance(made, Elements):
                return made if source.dtype == out.dtype else self._line("convert", (made,), out.dtype)
            return self._line("full", (first, made), out.dtype)
        if name == "sum" and out.numel() == 1 and out.dtype == given[0].dtype:
            return [self._line("sum", (first,), torch.float64)]
        if name not in NUMBERS or out.shape != (LENGTH,) or any(isinstance(x, str) for x in given):
            raise Unrecordable(name)
        of = [self._element(x) for x in given]
        if name in FACTORS and of.pop() != 1:
            raise Unrecordable(f"{name} with a factor")
        if name in ("mul", "neg"):
            return self._product(*of, *[-1.0] * (name == "neg"), dtype=out.dtype)
        return self._line(name, tuple(of), out.dtype)

    def _product(self, *of: Any, dtype: torch.dtype) -> Name:
        """In one operation, where one of them is itself times -1."""
        x, y = sorted(of, key=lambda x: not isinstance(x, Elements))
        made = self.lines.get(x)
        if made is not None and made.what == "mul" and made.of[1] == -1 and not isinstance(y, Elements):
            x, y = made.of[0], self._number("-{0}", (y,), dtype)
        return self._line("mul", (x, y), dtype)


def _positions(x: Tensor, shape: Sequence[int]) -> Sequence[int]:
    """Where in its memory each element of a tensor lies, spread to `shape`."""
    begin = int(x.storage_offset())
    if x.numel() == 1:
        return [begin] * math.prod(shape)
    if x.shape == shape and x.is_contiguous():
        return range(begin, begin + x.numel())
    return torch.arange(_size(x)).as_strided(x.shape, x.stride(), begin).expand(tuple(shape)).flatten().tolist()


def _size(x: Tensor) -> int:
    """How many elements there are in its memory."""
    return x.untyped_storage().nbytes() // x.element_size()


# --------------------------------------------------------------------------------------- the program


@on_host()
@torch.no_grad()
def record(function: Callable[..., Any], tensors: Sequence[Tensor], elements: Sequence[bool]) -> Callable[..., Any]:
    """A tape of ``function(*tensors)``.

    Args:
        function: one that does nothing but to operate on tensors, and depends on nothing else that changes. It returns
            tensors of numbers, and may write to tensors that it is given or knows.
        tensors: such as it is called with.
        elements: which of them are elements, all of one length, that may be another each time; the others are numbers.

    Raises:
        Unrecordable: it cannot be.
    """
    recorder = Recorder()
    names = [Elements(f"t{i}") if many else Name(f"t{i}") for i, many in enumerate(elements)]
    inside = [recorder.take(x, name) for x, name in zip(tensors, names, strict=True)]
    try:
        with recorder:
            out = function(*inside)
    finally:
        recorder.undo()
    program = Program(recorder)
    for name, x in zip(names, inside, strict=True):
        program.take(name, x)
    for i, (flat, _) in enumerate(recorder.captured.values()):
        program.know(Name(f"k{i}"), flat)
    return program.played(names, program.result(out))


class Program:
    """The text of a tape.

    Attributes:
        known: what it knows by name.
        head: which numbers it takes from where; `tail`: where it leaves them.
        needed: the names that have to be there in the end.
        changed: elements that are given, and what is to be in their place in the end; `dtypes`: of what is given.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.known: dict[str, Any] = {**FUNCTIONS, "torch": torch, "tensor": torch.tensor, "cpu": torch.device("cpu")}
        self.known |= {"array": array, "frombuffer": torch.frombuffer, "sums": sums}
        self.head: list[tuple[list[Any], str]] = []
        self.tail: list[str] = []
        self.needed: set[Any] = set()
        self.changed: dict[str, Elements] = {}
        self.dtypes: dict[str, torch.dtype] = {}

    def take(self, name: Name, x: Tensor) -> None:
        """Begin and end with an argument, for which `x` stood in the function."""
        if isinstance(name, Elements):
            self.dtypes[name] = x.dtype
            if (value := self.recorder.names[storage(x)]) != name:
                self.changed[name] = value
            return
        cells, mine = self.recorder.names[storage(x)], named(name, x)
        if mine:
            self.head.append((mine, f"{nested(mine, x.shape)} = {name}.{'tolist' if x.ndim else 'item'}()"))
        if cells != mine:
            self.tail.append(f"{name}.copy_({self._tensor(cells, x)})")

    def know(self, name: Name, x: Tensor) -> None:
        """The same of a tensor that the function knew: numbers that it does not write to never change."""
        mine = named(name, x)
        if self.recorder.names[storage(x)] == mine:
            self.known.update(zip(mine, x.tolist(), strict=True))
        else:
            self.known[name] = x
            self.take(name, x)

    def result(self, x: Any) -> str:
        if isinstance(x, (tuple, list)):
            return f"({''.join(self.result(y) + ', ' for y in x)})"
        if x is None:
            return "None"
        if not isinstance(x, Tensor) or not isinstance(self.recorder.names.get(storage(x)), list):
            raise Unrecordable("a result that is not numbers")
        return self._tensor(self.recorder.atoms(x, x.shape), x)

    def _tensor(self, cells: Sequence[Any], like: Tensor) -> str:
        """The text that makes a tensor of numbers. (Of an array torch makes one in a third of the time.)"""
        self.needed.update(cells)
        text = f"[{', '.join(map(repr, cells))}]"
        if cells and (code := ARRAYS.get(like.dtype)):
            text = f"frombuffer(array({code!r}, {text}), dtype={like.dtype})"
        else:
            text = f"tensor({text}, dtype={like.dtype}, device=cpu)"
        return text if like.ndim == 1 else f"{text}.view({tuple(like.shape)})"

    def played(self, names: Sequence[Name], result: str) -> Callable[..., Any]:
        all_lines, used, lines = self.recorder.lines.values(), {*self.needed, *self.changed.values()}, list[Line]()
        uses = Counter([x for line in all_lines for x in line.reads()] + [*used])
        for line in reversed(all_lines):
            if line.name in used:
                lines.insert(0, self._fused(line, uses))
                used.update(lines[0].reads())
        body = [text for mine, text in self.head if used & set(mine)]
        body += self._body(lines) + self.tail
        text = "\n    ".join([f"def played({', '.join(names)}):", *body, f"return {result}"])
        exec(text, self.known)  # of nothing but what stands above
        return cast(Callable[..., Any], self.known["played"])

    def _fused(self, line: Line, uses: Counter[str]) -> Line:
        """The same in one operation, where what it adds is elements times a number, and serves for nothing else. (The sum of a
        product stays two: a dot product depends on where in memory its vectors begin.)
        """
        swapped = [line.of[::-1]] if line.what == "add" else []
        for first, x, *others in [line.of, *swapped] if line.what in ("add", "sub", "addcmul") else ():
            made = self.recorder.lines.get(x)
            if made is not None and made.what == "mul" and uses[x] == 1 and not isinstance(made.of[1], Elements):
                return line._replace(of=(first, made.of[0], *others), more={"value" if others else "alpha": made.of[1]})
        return line

    def _body(self, lines: Sequence[Line]) -> list[str]:
        """The operations; elements that are to change are written at once where nobody reads them any more."""
        into = self._places(lines)
        text = [f"{line.name} = {self._operation(line, into.get(line.name))}" for line in lines]
        ends = {target: value for target, value in self.changed.items() if into.get(value) != target}
        olds = {value: f"old_{value}" for value in ends.values() if value in ends}  # given elements that change places
        text += [f"{new} = {old}.clone()" for old, new in olds.items()]
        return text + [f"{target}.copy_({olds.get(value, value)})" for target, value in ends.items()]

    def _places(self, lines: Sequence[Line]) -> dict[str, str]:
        """Which elements that result are written where: to those that are given, or to others that have served."""
        last = {x: i for i, line in enumerate(lines) for x in line.reads()}
        made = {line.name: i for i, line in enumerate(lines)}
        into, wanted = dict[str, str](), Counter(self.changed.values())
        home = {value: target for target, value in self.changed.items() if wanted[value] == 1 and target not in wanted}
        for i, line in reversed([*enumerate(lines)]):
            served = [x for x in line.of if isinstance(x, Elements) and x in made and last[x] == i and x not in wanted]
            target = home.get(line.name, "")
            if line.what not in INTO:
                continue
            if self.dtypes.get(target) == line.dtype and last.get(target, -1) <= i:
                into[line.name] = target  # what becomes of it on the way may stand there, too
                home.update([(x, target) for x in served if last.get(target, -1) <= made[x]][:1])
            elif alike := [x for x in served if lines[made[x]].dtype == line.dtype]:
                into[line.name] = alike[0]
        return into

    def _operation(self, line: Line, target: str | None) -> str:
        if line.what in WRITTEN:
            return WRITTEN[line.what].format(line.of[0], *map(repr, line.of[1:]), dtype=line.dtype)
        self.known[f"each_{line.what}"] = getattr(torch, line.what, None) or getattr(torch.ops.aten, line.what)
        plain, of = TAKES.get(line.what, ()), list[str]()
        for i, x in enumerate(line.of):
            kind = torch.bool if line.what == "where" and i == 0 else line.dtype
            number = not (isinstance(x, Elements) or i in plain or x is None)
            of.append(f"tensor({x!r}, dtype={kind}, device=cpu)" if number else repr(x))
        more = [f"{n}={x!r}" for n, x in line.more.items()] + ([f"out={target}"] if target else [])
        return f"each_{line.what}({', '.join([*of, *more])})"


def sums(x: Tensor, sizes: Sequence[int]) -> list[float]:
    """Of elements, over parts of so many: sooner in blocks, if all parts but the last one consist of a few that are alike."""
    *first, _ = sizes
    end, size = sum(first), math.gcd(*first)
    if not (len(first) > 1 and 0 < end <= BLOCKS * len(first) * size):
        return [part.sum().item() for part in x.split(sizes)]
    each = iter(x[:end].view(-1, size).sum(1).tolist())
    return [*[sum(islice(each, n // size)) for n in first], x[end:].sum().item()]


def nested(names: Sequence[Any], shape: Sequence[int]) -> str:
    """Names as the targets of what `Tensor.tolist` returns."""
    if not shape:
        return repr(names[0])
    each = len(names) // shape[0]
    return f"[{', '.join(nested(names[i * each : (i + 1) * each], shape[1:]) for i in range(shape[0]))}]"


def named(name: str, x: Tensor) -> list[Any]:
    """The names of the numbers of a tensor. Raises Unrecordable where they are too many."""
    if x.numel() > MOST:
        raise Unrecordable(f"{x.numel()} numbers")
    return [Name(f"{name}_{i}") for i in range(x.numel())]
