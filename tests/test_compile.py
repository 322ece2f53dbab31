"""compile=True: the same steps, compiled once."""

import contextlib
import gc
import re
import weakref
from dataclasses import dataclass
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from cases import loss, parameters, train
from helpers import EVERY, TOWER, clones, compiler, crossed
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hypergradient import (
    POSITIVE,
    SGD,
    Adagrad,
    Adam,
    Hyperoptimizer,
    Muon,
    RMSprop,
    Rule,
    auto,
    engine,
    hyperparameter,
    nonnegative,
)
from hypergradient.compiled import Compiled, of_tensors, taken_apart

pytestmark = [compiler, pytest.mark.usefixtures("fresh_compiler")]

TOWERS = [
    TOWER,
    SGD(lr=0.1, momentum=0.5, charts={"lr": POSITIVE}, horizon=5, normalize="cosine") / RMSprop(lr=0.01),
    Adagrad(lr=0.1) / SGD(lr={"lr": 0.01}) / SGD(lr=1e-3),
    auto(),
]


def pair(tower, steps=12, matrix=False, **options):
    """Losses and towers of the same training, eager and compiled."""
    runs = []
    for compile in (False, True):
        mine = parameters(matrix)
        optimizer = Hyperoptimizer(mine, tower, compile=compile, **options)
        runs.append((train(optimizer, mine, steps), optimizer.hyperparameters(), optimizer.hypergradients()))
    return runs


def agree(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one[1], other[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one[2], other[2], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("tower", "several"), crossed(TOWERS[:: min(EVERY, 3)], (False, True)), ids=repr)
def test_a_compiled_step_is_the_eager_one(tower, several):
    agree(*(of_several_buckets if several else pair)(tower))


@pytest.mark.parametrize("options", [{"per": "tensor"}, {"maximize": True}, {"per": "all"}], ids=str)
def test_a_compiled_step_takes_the_options(options):
    agree(*pair(Adam(lr=1e-3) / SGD(lr=1e-5), steps=5, **options))


def halves(mine):
    """Two groups, so that a step is more than one bucket."""
    return [{"params": mine[:2]}, {"params": mine[2:], "lr": 0.02, "weight_decay": 0.1}]


def test_a_compiled_rule_alone_is_the_eager_one():
    agree(*of_several_buckets(Adam(lr=0.01)))


@pytest.mark.usefixtures("without_tapes")
def test_where_there_are_no_tapes_all_of_a_step_is_compiled():
    agree(*of_several_buckets(auto()))


@pytest.mark.parametrize("height", [2, 11])
def test_the_compiler_is_spared_what_tapes_can_do(height):
    """Of levels it would take seconds each."""
    mine, tower = parameters(), Adam(lr=0.01)
    for _ in range(height):
        tower = tower / SGD(lr=1e-4)
    optimizer = Hyperoptimizer(halves(mine) if height == 2 else mine, tower, compile=True)
    train(optimizer, mine, 3)
    compiled = {function.__name__ for function, _ in optimizer._own.engine._compiled}
    assert compiled == {"read", "move"}
    assert optimizer._own.engine.tapes


def of_several_buckets(tower):
    """As `pair`."""
    runs = []
    for compile in (False, True):
        mine = parameters()
        optimizer = Hyperoptimizer(halves(mine), tower, compile=compile)
        losses = train(optimizer, mine, 6)
        runs.append((losses, optimizer.hyperparameters(1), optimizer.hypergradients(1)))
    return runs


def test_a_compiled_step_takes_another_loss_to_tune_on():
    runs = []
    for compile in (False, True):
        mine = parameters()
        optimizer = Hyperoptimizer(mine, SGD(lr=0.1) / SGD(lr=1e-3), compile=compile)
        losses = []
        for t in range(6):
            losses += train(optimizer, mine, 1, t)
            if t % 2:
                optimizer.tune_on(loss(mine, 100 + t))
        runs.append((losses, optimizer.hyperparameters(), optimizer.hypergradients()))
    agree(*runs)


def test_a_rule_that_is_not_elementwise_runs_beside_compiled_levels():
    agree(*pair(Muon(lr=0.01) / SGD(lr=1e-4), steps=5, matrix=True))


def counted(monkeypatch):
    """A list to which each program that is made is added; it is not compiled."""
    made = []
    monkeypatch.setattr(
        "torch._inductor.compile_fx.compile_fx", lambda graph, inputs, **options: (made.append(graph), graph)[1]
    )
    return made


def test_values_schedules_and_steps_do_not_compile_again(monkeypatch):
    """Only what is new in kind is compiled: a group is, a learned value, ``group["lr"]`` or another length is not."""
    made = counted(monkeypatch)
    mine = parameters()
    optimizer = Hyperoptimizer(mine[:2], TOWER, compile=True)
    train(optimizer, mine, 3)
    assert (before := len(made)) > 0
    for t in range(5):
        optimizer.param_groups[0]["lr"] *= 0.9
        train(optimizer, mine, 1, 3 + t)
    optimizer.state_dict()
    assert len(made) == before
    optimizer.add_param_group({"params": mine[2:3]})
    train(optimizer, mine, 2)
    before = len(made)
    optimizer.param_groups[1]["lr"] *= 0.9
    train(optimizer, mine, 4)
    assert len(made) == before


def test_without_a_compiler_one_warning_then_eager(monkeypatch):
    """Or with one of a version that cannot take the step."""

    def broken(graph, inputs, **options):
        raise OSError("no C++ compiler found")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    mine, twin = parameters(), parameters()
    optimizer = Hyperoptimizer(mine, TOWER, compile=True)
    with pytest.warns(RuntimeWarning, match=r"compile=True: .* going on without .*no C\+\+ compiler found") as caught:
        losses = train(optimizer, mine, 4)
    assert len(caught) == 1
    assert losses == train(Hyperoptimizer(twin, TOWER), twin, 4)


TOLD = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"), reason="torch before 2.8 cannot tell of hooks"
)


@pytest.mark.parametrize("how", ["disabled", "stance", "operations", pytest.param("hooks", marks=TOLD)])
def test_where_the_compiler_would_be_in_the_way_a_step_goes_without(monkeypatch, how):
    """Switched off by who looks for a mistake; or something sees operations, or what is saved, which a compiler cannot see."""
    mine, twin = parameters(), parameters()
    optimizer = Hyperoptimizer(mine, TOWER, compile=True)
    expected = train(Hyperoptimizer(twin, TOWER), twin, 6)
    around = {
        "disabled": lambda: torch._dynamo.config.patch(disable=True),
        "stance": lambda: torch.compiler.set_stance("force_eager"),
        "operations": lambda: FlopCounterMode(display=False),
        "hooks": torch.autograd.graph.save_on_cpu,
    }
    with around[how]():
        losses = train(optimizer, mine, 3)
    x = torch.ones(2, requires_grad=True)
    checkpoint(torch.tanh, x, use_reentrant=False).sum().backward()  # these hooks work as before
    made = counted(monkeypatch)
    torch.testing.assert_close(losses + train(optimizer, mine, 3, 3), expected, rtol=1e-9, atol=0)
    assert made


def test_where_gradients_come_and_go_no_more_than_some_forms_are_compiled(monkeypatch):
    """As those of experts: other parameters are read in each step; what has no program goes on without the compiler."""
    monkeypatch.setattr(engine, "FORMS", 3)
    made = []

    class Counted(Uncompiled):
        def __init__(self, function, form, dynamic):
            super().__init__(function, form, dynamic)
            made.append(function.__name__)

    monkeypatch.setattr(engine, "Compiled", Counted)

    def go(compile):
        torch.manual_seed(0)
        params = [torch.randn(64, 40 + 8 * i).requires_grad_() for i in range(8)]
        optimizer = Hyperoptimizer(params, auto(Adam()), compile=compile)
        for t in range(30):
            for i, p in enumerate(params):
                p.grad = p.detach() + 0.1 * t if (t + 1) % (i + 2) else None
            optimizer.step()
        return params, optimizer.hyperparameters()

    with pytest.warns(RuntimeWarning, match="compile=True: 3 forms of a step have been compiled") as said:
        compiled = go(True)
    assert len(said) == 1
    assert max(map(made.count, made)) == 3
    torch.testing.assert_close(compiled, go(False), rtol=1e-9, atol=0)


@pytest.mark.parametrize("tower", [TOWER, auto()][::EVERY], ids=repr)
def test_a_step_that_is_interrupted_while_it_is_compiled_has_not_been_made(monkeypatch, tower):
    through, waiting = Compiled.compile, [True]

    def interrupted(self, tensors):
        if waiting and waiting.pop():
            raise KeyboardInterrupt
        return through(self, tensors)

    monkeypatch.setattr(Compiled, "compile", interrupted)
    runs = []
    for compile in (True, False):
        mine = parameters()
        optimizer = Hyperoptimizer([{"params": [p]} for p in mine], tower, compile=compile)
        if compile:
            with pytest.raises(KeyboardInterrupt):
                train(optimizer, mine, 1)
        runs.append((train(optimizer, mine, 5), optimizer.hyperparameters(), [optimizer.state[p]["step"].item() for p in mine]))
    torch.testing.assert_close(*runs, rtol=1e-9, atol=0)
    assert not waiting


def test_a_resumed_optimizer_compiles_too():
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER, compile=True)
    train(optimizer, mine, 3)
    copies = clones(mine)
    twin = Hyperoptimizer(copies, TOWER, compile=True)
    twin.load_state_dict(optimizer.state_dict())
    assert train(twin, copies, 3, 3) == train(optimizer, mine, 3, 3)  # a warning would be an error


def test_an_optimizer_compiles_for_its_own_sizes(monkeypatch):
    """Though there was one of other sizes before, whose functions are the same."""
    made, begin = [], ShapeEnv.__init__
    monkeypatch.setattr(ShapeEnv, "__init__", lambda self, *a, **k: (begin(self, *a, **k), made.append(self))[0])
    for width in (3, 4):
        model = torch.nn.Linear(width, 2)
        optimizer = Hyperoptimizer(model.parameters(), SGD(lr=0.1) / SGD(lr=1e-3), compile=True)
        for _ in range(3):
            model(torch.ones(2, width)).square().sum().backward()
            optimizer.step()
    assert len(made) >= 2
    assert not [name for shapes in made for name in shapes.var_to_range if str(name).startswith("s")]  # sizes that vary


class Uncompiled:
    """In the place of `Compiled`."""

    def __init__(self, function, form, dynamic):
        self.function, self.made = of_tensors(function, form), []

    def program(self, tensors):
        return self.made[0] if self.made else None

    def compile(self, tensors):
        self.made.append(lambda tensors: self.function(*tensors))
        return self.made[0]


@pytest.mark.usefixtures("without_tapes")
@pytest.mark.parametrize("per", ["group", "tensor"])
def test_levels_that_are_no_more_are_let_go(per, monkeypatch):
    """With all that was compiled of them. (Nothing is, here: it would take long.)"""
    monkeypatch.setattr(engine, "Compiled", Uncompiled)
    mine = parameters()
    optimizer = Hyperoptimizer(mine, TOWER, per=per, compile=True)
    train(optimizer, mine, 3)
    levels, known = weakref.ref(optimizer._own.levels), len(optimizer._own.engine._compiled)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    train(optimizer, mine, 3)
    gc.collect()
    assert known
    assert levels() is None


class Known:
    """Functions of tensors, that know another."""

    def __init__(self):
        self.memory = torch.tensor([1.0, 2.0])

    def sums(self, x, others):
        self.memory.add_(x.sum())
        others[0].mul_(2)
        return x.sum() + self.memory, [others[0] + x, x * 2], None

    def same(self, x, others):
        return x, others[0] + 1

    def counts(self, x):
        self.memory.add_(1)
        return x


def test_a_program_called_by_itself_does_what_the_compiler_would():
    """Of other sizes, strides and dtypes too, and with what the function knows as it is now."""
    plain, known = Known(), Known()
    compiled = Compiled(known.sums, taken_apart((torch.ones(1), [torch.ones(1)]), []), True)
    kinds = [
        lambda: torch.rand(5),
        lambda: torch.rand(7),
        lambda: torch.rand(5, dtype=torch.float32),
        lambda: torch.rand(10)[::2],
        lambda: torch.rand(1),
    ]
    for _ in range(3):
        for make in kinds:
            x, y = make(), make()
            twins = x.clone(), y.clone()
            expected = plain.sums(twins[0], [twins[1]])
            found = run(compiled, x, y)
            torch.testing.assert_close([found[0], *found[1]], [expected[0], *expected[1]])
            assert found[2] is None
            torch.testing.assert_close([x, y, known.memory], [*twins, plain.memory])
    assert len(compiled.made) == len(kinds) - 1  # one for two sizes


def run(compiled, *tensors):
    return (compiled.program(tensors) or compiled.compile(tensors))(tensors)


@pytest.mark.skipif(torch.__version__ < "2.9", reason="the compilers of before keep less")
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_has_been_compiled_is_found_again(monkeypatch, tmp_path, dynamic):
    """In the folder of the compiler: the graphs that torch keeps there, and not only the code that is made of them."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = torch._dynamo.utils.counters["aot_autograd"]
    for hits in (0, 1):
        found.clear()
        Compiled(lambda x: x.mul_(3).sum(), (Tensor,), dynamic).compile([torch.ones(7)])
        assert (found["autograd_cache_hit"], found["autograd_cache_miss"]) == (hits, 1 - hits)


def test_what_writes_to_what_it_knows_is_not_compiled():
    """To write that down would do it."""
    known, x = Known(), torch.ones(3)
    with pytest.raises(RuntimeError, match="writes to a tensor that is none of the arguments"):
        Compiled(known.counts, (Tensor,), True).compile([x])
    assert known.memory.tolist() == [1.0, 2.0]


def test_which_tensors_are_the_same_is_seen():
    compiled = Compiled(lambda x, y, z: x + 10 * y + 100 * z, (Tensor,) * 3, True)
    a, b = torch.rand(3), torch.rand(3)
    for _ in range(2):
        for x, y, z in ((a, a, b), (a, b, b), (b, a, b)):
            torch.testing.assert_close(run(compiled, x, y, z), x + 10 * y + 100 * z)


def test_groups_that_share_what_is_learned_move_by_their_own_lr():
    """Whichever of them have a history of their own: as many tensors, of which others are the same."""

    def run(compile):
        params = [torch.nn.Parameter(torch.full((3,), i + 1.0)) for i in range(4)]
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 1e-4}]
        optimizer = Hyperoptimizer(groups, Adam(lr=1e-2) / SGD(lr=1e-5), per="all", compile=compile)
        for moving in ([0], [0, 2], [0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 2, 3]):
            for i, p in enumerate(params):
                p.grad = p.detach().clone() if i in moving else None
            optimizer.step()
        return params

    torch.testing.assert_close(run(False), run(True))


def test_a_program_returns_what_it_was_given():
    compiled = Compiled(Known().same, taken_apart((torch.ones(1), [torch.ones(1)]), []), True)
    for _ in range(3):
        x, y = torch.rand(4), torch.rand(4)
        same, more = run(compiled, x, y)
        assert same is x
        torch.testing.assert_close(more, y + 1)


def test_what_is_remembered_of_sizes_has_an_end(monkeypatch):
    monkeypatch.setattr("hypergradient.compiled.MOST", 2)
    compiled = Compiled(lambda x: x + 1, (Tensor,), True)
    for n in (3, 4, 5, 6, 3):
        torch.testing.assert_close(run(compiled, torch.ones(n)), torch.full((n,), 2.0))
        assert len(compiled._known) <= 2
    assert len(compiled.made) == 1


@pytest.mark.parametrize("compile", [False, True])
def test_a_gradient_that_is_negated_on_paper_alone(compile):
    p, twin = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizers = [Hyperoptimizer([x], SGD(lr=0.1) / SGD(lr=0.01), compile=compile) for x in (p, twin)]
    for _ in range(3):
        p.grad = torch.complex(p.detach(), 2 * p.detach()).conj().imag
        twin.grad = -2 * twin.detach()
        assert p.grad.is_neg()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(p, twin)


def test_a_rule_that_the_compiler_cannot_follow_goes_without():
    """It asks for the number of the step."""

    @dataclass(frozen=True)
    class Halves(Rule):
        lr: float = hyperparameter(0.1, nonnegative)

        def coefficients(self, step):
            return (self.lr if float(step) < 3 else self.lr / 2,)

        def update(self, param, grad, state, c):
            return param - c[0] * grad, state

    p = torch.nn.Parameter(torch.ones(4))
    optimizer = Hyperoptimizer([p], Halves() / SGD(lr=0.0), compile=True)
    p.grad = p.detach().clone()
    with pytest.warns(RuntimeWarning, match="compile=True: the step cannot be compiled, going on without"):
        optimizer.step()
    for _ in range(2):
        p.grad = p.detach().clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((4,), 0.9 * 0.9 * 0.95))


def test_a_rule_in_any_python_is_compiled():
    """It asks for names, exceptions and identities; what it knows is read anew in each step."""

    @dataclass(frozen=True)
    class Odd(Rule):
        lr: float = hyperparameter(0.1, nonnegative)
        known = torch.ones(())

        def update(self, param, grad, state, c):
            with contextlib.suppress(ValueError):
                raise ValueError(re.sub("a", "b", f"{id(state):x}"))
            return param - self.lr * grad * self.known, dict(sorted(vars(SimpleNamespace(**state)).items()))

    p = torch.nn.Parameter(torch.ones(4))
    optimizer = Hyperoptimizer([p], Odd() / SGD(lr=0.0), compile=True)
    for times in (1.0, 2.0, 4.0):
        Odd.known.fill_(times)
        p.grad = torch.ones(4)
        optimizer.step()
    assert p[0].item() == pytest.approx(0.3)
    assert optimizer._own.engine.compile
    assert optimizer._own.engine._compiled


KNOWN = torch.ones(())


@pytest.mark.parametrize(
    "read",
    [
        float,
        Tensor.item,
        Tensor.tolist,
        lambda x: 2.0 if x - 1 else 1.0,
        lambda x: 2.0 if x > 2 else 1.0,
        lambda x: torch.add(torch.ones(()), 1, alpha=float(x)),
    ],
)
def test_what_a_rule_reads_of_a_tensor_that_it_knows_may_change(read):
    @dataclass(frozen=True)
    class Reads(Rule):
        lr: float = hyperparameter(0.1, nonnegative)

        def update(self, param, grad, state, c):
            return param - self.lr * grad * read(KNOWN), state

    def run(compile):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimizer = Hyperoptimizer([p], Reads() / SGD(lr=1e-4), compile=compile)
        for t in range(4):
            KNOWN.fill_(1.0 + t)
            p.grad = 0.3 * p.detach() + 0.1
            optimizer.step()
        return p.detach()

    with pytest.warns(RuntimeWarning, match="the step cannot be compiled"):
        found = run(True)
    torch.testing.assert_close(found, run(False))


@pytest.mark.skipif(
    not hasattr(torch.compiler, "_compile_session_context"), reason="compilers of before do not tell threads that one works"
)
def test_several_threads_compile_at_once():
    """Beside one that uses the compiler itself."""
    rules, made, others = [Adam(lr=1e-3), SGD(lr=1e-2, momentum=0.9), RMSprop(lr=1e-3)], {}, []

    def steps(i):
        mine = parameters()
        optimizer = Hyperoptimizer(mine, rules[i] / SGD(lr=1e-5), compile=True)
        train(optimizer, mine, 3)
        made[i] = optimizer._own.engine.compile and bool(optimizer._own.engine._compiled)

    def compiles():
        for k in range(60):
            others.append(torch.compile(lambda x, k=k % 6: x.sin() * k, backend="eager")(torch.ones(3 + k % 2)))

    threads = [Thread(target=steps, args=(i,)) for i in range(3)] + [Thread(target=compiles)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == dict.fromkeys(range(3), True)
    assert len(others) == 60


@dataclass(frozen=True)
class Exchanged(Rule):
    """Two states that change places, and the parameter as it was before."""

    lr: float = hyperparameter(0.1, nonnegative)

    def init(self, param):
        return {"a": torch.zeros_like(param), "b": torch.ones_like(param), "before": torch.zeros_like(param)}

    def update(self, param, grad, state, c):
        return param - self.lr * grad, {"a": state["b"], "b": state["a"], "before": param}


@pytest.mark.parametrize("tower", [Exchanged(), Exchanged() / SGD(lr=0.0)], ids=repr)
def test_a_compiled_step_may_hand_on_what_it_was_given(tower):
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = Hyperoptimizer([p], tower, compile=True)
    for _ in range(3):
        p.grad = torch.ones(4)
        optimizer.step()
    assert optimizer._own.engine.compile
    assert [optimizer.state[p][n][0].item() for n in ("a", "b", "before")] == pytest.approx([1.0, 0.0, 0.8])


def test_what_is_asked_and_exchanged_in_a_compiled_function_is_not_traced():
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = Hyperoptimizer([p])
    p.grad = torch.ones(4)
    optimizer.step()
    counter = CompileCounter()

    @torch.compile(backend=counter)
    def validate(x):
        optimizer.eval()
        y = (p * x).sum() * optimizer.hyperparameters()[0]["r"]
        optimizer.train()
        return y

    with torch.no_grad():
        validate(torch.ones(4))
    assert counter.op_count <= 3


def test_where_the_compiler_has_had_enough_a_step_goes_on_without(monkeypatch):
    params = [torch.nn.Parameter(torch.ones(300, 500)), torch.nn.Parameter(torch.ones(300, 1000)[:, ::2])]
    optimizer = Hyperoptimizer(params, SGD(lr=0.5), compile=True)
    for p in params:
        p.grad = torch.ones_like(p)
    monkeypatch.setattr(engine, "FORMS", 1)
    with pytest.warns(RuntimeWarning, match="others go on without"):
        optimizer.step()
    assert all((p == 0.5).all() for p in params)
