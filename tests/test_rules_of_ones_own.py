"""Rules that users write: what they may hand on, remember and redefine."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pytest
import torch

import hypergradient as hg
from hypergradient import SGD, Averages, Hyperoptimizer, Rule, engine, hyperparameter, nonnegative, probe


@pytest.mark.parametrize("alone", [True, False], ids=["elementwise", "not"])
def test_a_rule_may_hand_on_what_it_is_given(alone):
    @dataclass(frozen=True)
    class Previous(Rule):
        """Heavy ball by the iterate before, and two states that change places."""

        lr: float = hg.hyperparameter(0.1, hg.nonnegative)
        elementwise: ClassVar[bool] = alone

        def init(self, param):
            zero = torch.zeros_like(param)
            return {"before": param, "a": zero, "b": zero}

        def update(self, param, grad, state, c):
            new = param - self.lr * grad + 0.5 * (param - state["before"])
            return new, {"before": param, "a": state["b"] + 1, "b": state["a"]}

    for extra in (0, 1):
        p, *others = (torch.ones(2, requires_grad=True) for _ in range(1 + extra))
        optimizer = Hyperoptimizer([p, *others], Previous(lr=0.1) / SGD(lr=0.0))
        x = before = a = b = 1.0
        a = b = 0.0
        for _ in range(4):
            for q in (p, *others):
                q.grad = q.detach().clone()
            optimizer.step()
            x, before, a, b = x - 0.1 * x + 0.5 * (x - before), x, b + 1, a
        assert p.tolist() == pytest.approx([x, x])
        assert [optimizer.state[p][n][0].item() for n in "ab"] == [a, b]


@dataclass(frozen=True)
class Ratio(Averages):
    """A rule of averages that has no weight decay, and one weight that is a number."""

    lr: float = hyperparameter(0.1, nonnegative)
    beta: float = hyperparameter(0.5, hg.unit_interval)

    def init(self, param):
        return {"m": torch.zeros_like(param), "v": torch.zeros_like(param)}

    def coefficients(self, step):
        return 1 - self.beta, 0.25

    def averages(self, grad, c):
        return {"m": (grad, c[0]), "v": (grad * grad, c[1])}

    def displacement(self, state, c):
        return self.lr * state["m"] / (state["v"] + 1)


@dataclass(frozen=True)
class Clipped(Ratio):
    """Remembers something else than the average."""

    def advance(self, grad, state, c):
        new = super().advance(grad, state, c)
        return {**new, "m": new["m"].clamp(-0.1, 0.1)}


@pytest.mark.parametrize(("rule", "kept"), [(Ratio, {"last_gradient"}), (Clipped, {"last_lr", "last_beta"})])
def test_a_rule_of_averages_of_ones_own(rule, kept):
    def after(lr, beta):
        """The weight after the first step."""
        m = (1 - beta) * 3.0
        return 1.0 - lr * (min(m, 0.1) if rule is Clipped else m) / (0.25 * 9.0 + 1)

    p = torch.ones(1, requires_grad=True)
    optimizer = Hyperoptimizer([p], rule(lr=0.1) / SGD(lr=0.0))
    p.grad = torch.full((1,), 3.0)
    optimizer.step()
    assert p.item() == pytest.approx(after(0.1, 0.5))
    assert kept < optimizer.state[p].keys()
    p.grad = torch.full((1,), 2.0)
    optimizer.step()
    h = 1e-6
    slopes = [(after(0.1 + h, 0.5) - after(0.1 - h, 0.5)) / (2 * h), (after(0.1, 0.5 + h) - after(0.1, 0.5 - h)) / (2 * h)]
    assert list(optimizer.hypergradients()[0].values()) == pytest.approx([2 * x for x in slopes], rel=1e-6)


@dataclass(frozen=True)
class Unbiased(Averages):
    """With the weight of Adafactor, which makes a correction unnecessary."""

    lr: float = hyperparameter(0.1, nonnegative)
    beta: float = hyperparameter(0.9, hg.unit_interval)

    def init(self, param):
        return {"v": torch.zeros_like(param)}

    def coefficients(self, step):
        return self.lr, (1 - self.beta) / (1 - self.beta**step)

    def averages(self, grad, c):
        return {"v": (grad, c[1], grad)}

    def displacement(self, state, c):
        return c[0] * state["v"].sqrt()


def test_the_weight_of_an_average_may_be_any_arithmetic():
    def after(lr, beta):
        """The weight after two steps, along 3 and 2: the second is made with these."""
        v = (1 - 0.9) / (1 - 0.9) * 9.0
        w = (1 - beta) / (1 - beta**2)
        return 1.0 - 0.1 * v**0.5 - lr * (v + w * (4.0 - v)) ** 0.5

    p = torch.ones(1, requires_grad=True)
    optimizer = Hyperoptimizer([p], Unbiased() / SGD(lr=0.0))
    for grad in (3.0, 2.0, 1.0):
        p.grad = torch.full((1,), grad)
        optimizer.step()
        if grad == 2.0:
            assert p.item() == pytest.approx(after(0.1, 0.9))
    h = 1e-6
    slopes = (after(0.1 + h, 0.9) - after(0.1 - h, 0.9)) / (2 * h), (after(0.1, 0.9 + h) - after(0.1, 0.9 - h)) / (2 * h)
    assert list(optimizer.hypergradients()[0].values()) == pytest.approx(slopes, rel=1e-6)


@dataclass(frozen=True)
class Scaled(Rule):
    """What multiplies all that moves a parameter has another name."""

    scale: float = hyperparameter(1e-3, nonnegative)
    multiplier = "scale"

    def update(self, param, grad, state, c):
        return param - self.scale * grad, state


@pytest.mark.parametrize("normalize", [None, "cosine"])
def test_what_multiplies_all_may_have_any_name(normalize):
    """Followed over the whole run, under a schedule, and over a checkpoint edited by hand."""
    found = []
    for name, rule in (("scale", Scaled), ("lr", hg.SGD)):
        how = {"tune": name, "charts": {name: hg.POSITIVE}, "horizon": math.inf, "normalize": normalize}
        p = torch.ones(3, requires_grad=True)
        optimizer = Hyperoptimizer([p], rule(**{name: 1e-3}, **how) / SGD(lr=0.01))
        for t in range(30):
            if t == 20:
                saved = optimizer.state_dict()
                saved["param_groups"][0][name] *= 2
                optimizer.load_state_dict(saved)
            optimizer.param_groups[0][name] = 1e-3 * min(1.0, (t + 1) / 10) if t < 12 else optimizer.param_groups[0][name]
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
        found.append([optimizer.hyperparameters()[0][name], *p.tolist()])
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize(
    "look",
    [lambda s: s.get("v"), lambda s: {**s}["v"], lambda s: dict(s)["v"], lambda s: (s | {})["v"], lambda s: s.copy()["v"]],
)
def test_a_preconditioner_may_look_its_state_up_as_it_likes(look):
    """Of a large parameter no more of the state is read than it looks up."""
    found = []
    for way in (lambda s: s["v"], look):

        @dataclass(frozen=True)
        class Scaled(Rule):
            """Of Adam the second half."""

            lr: float = hyperparameter(0.1, nonnegative)
            multiplier = "lr"

            def init(self, param):
                return {"m": torch.zeros_like(param), "v": torch.ones_like(param)}

            def preconditioner(self, grad, state, step, c, way=way):
                return way(state).sqrt() + 1

            def update(self, param, grad, state, c):
                v = state["v"] + grad * grad
                return param - self.lr * grad / v.sqrt(), {"m": grad, "v": v}

        torch.manual_seed(0)
        p = torch.randn(512, 512).requires_grad_()
        optimizer = Hyperoptimizer([p], hg.auto(Scaled(lr=1e-3)))
        for _ in range(4):
            p.grad = p.detach().clone() + torch.randn(512, 512)
            optimizer.step()
        found.append(optimizer.hyperparameters()[0]["lr"])
    assert found[0] == found[1] != 1e-3


def test_a_preconditioner_may_be_a_matter_of_settings():
    """None says that there is none, as if it had not been written."""

    @dataclass(frozen=True)
    class Plain(Rule):
        lr: float = hyperparameter(0.1, nonnegative)
        multiplier = "lr"

        def update(self, param, grad, state, c):
            return param - self.lr * grad, state

    @dataclass(frozen=True)
    class Either(Plain):
        scaled: bool = False

        def preconditioner(self, grad, state, step, c):
            return grad.abs() + 1 if self.scaled else None

    def path(rule):
        torch.manual_seed(0)
        p, lrs = torch.randn(64, 64).requires_grad_(), []
        optimizer = Hyperoptimizer([p], hg.auto(rule))
        for _ in range(5):
            p.grad = p.detach() + torch.randn(64, 64)
            optimizer.step()
            lrs.append(optimizer.hyperparameters()[0]["lr"])
        return lrs

    plain, off, on = (path(rule) for rule in (Plain(), Either(), Either(scaled=True)))
    assert plain == off != on
    assert (plain[0], on[0]) == (1e-6, pytest.approx(0.1 / 32))


def test_a_preconditioner_that_is_no_tensor_is_named():
    @dataclass(frozen=True)
    class Odd(Rule):
        lr: float = hyperparameter(0.1, nonnegative)

        def preconditioner(self, grad, state, step, c):
            return 2.0

        def update(self, param, grad, state, c):
            return param - self.lr * grad, state

    with pytest.raises(TypeError, match=r"Odd\.preconditioner returns 2\.0; it must return a tensor like grad, or None"):
        hg.auto(Odd())


def test_a_rule_that_needs_a_second_dimension_is_run_parameter_by_parameter():
    @dataclass(frozen=True)
    class Rows(Rule):
        lr: float = hyperparameter(0.1, nonnegative)

        def update(self, param, grad, state, c):
            return param - self.lr * grad / grad.norm(dim=1, keepdim=True), state

    p = torch.nn.Parameter(torch.ones(2, 4))
    optimizer = Hyperoptimizer([p], Rows())
    p.grad = torch.ones(2, 4)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2, 4), 0.95))


@pytest.mark.parametrize("tower", [lambda rule: rule, lambda rule: rule / SGD(lr=1e-3)], ids=["alone", "tuned"])
def test_a_method_that_returns_one_thing_is_named(tower):
    @dataclass(frozen=True)
    class Bare(Scaled):
        def coefficients(self, step):
            return self.scale * step

    @dataclass(frozen=True)
    class Lost(Scaled):
        def update(self, param, grad, state, c):
            return param - self.scale * grad

    for rule, message in ((Bare, r"Bare.coefficients returns a tensor.*\(x,\)"), (Lost, "Lost.update .*new_param, new_state")):
        p = torch.ones(2, requires_grad=True)
        p.grad = torch.ones(2)
        with pytest.raises(TypeError, match=message):
            Hyperoptimizer([p], tower(rule())).step()
        assert p.tolist() == [1, 1]


def test_a_branch_on_what_is_tuned_is_named():
    @dataclass(frozen=True)
    class Branches(Rule):
        lr: float = hyperparameter(0.1, nonnegative)
        momentum: float = hyperparameter(0.5, hg.unit_interval)

        def init(self, param):
            return {"m": torch.zeros_like(param)}

        def update(self, param, grad, state, c):
            m = self.momentum * state["m"] + grad if self.momentum else grad
            return param - self.lr * m, {"m": m}

    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match=r"Branches branches on .* tuned, lr or momentum: write torch\.where"):
        Hyperoptimizer([p], Branches() / SGD(lr=0.01)).step()
    assert p.tolist() == [1, 1, 1]
    for tower in (Branches(), Branches(tune="lr") / SGD(lr=0.01)):
        optimizer = Hyperoptimizer([p], tower)
        for _ in range(3):
            optimizer.step()
    assert optimizer.hyperparameters()[0]["lr"] > 0.1


@pytest.mark.parametrize("above", [(), (SGD(lr=0.0),), (SGD(lr=0.0), SGD(lr=0.0))])
def test_a_rule_may_put_new_tensors_into_the_state_that_it_is_given(above):
    @dataclass(frozen=True)
    class HeavyBall(Rule):
        lr: float = hyperparameter(0.1, nonnegative)
        momentum: float = hyperparameter(0.9, hg.unit_interval)

        def init(self, param):
            return {"m": torch.zeros_like(param)}

        def update(self, param, grad, state, c):
            state["m"] = self.momentum * state["m"] + grad
            return param - self.lr * state["m"], state

    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    for optimizer in (Hyperoptimizer([p], hg.Tower((HeavyBall(), *above))), torch.optim.SGD([q], lr=0.1, momentum=0.9)):
        for _ in range(4):
            optimizer.zero_grad()
            (p.square() + q.square()).sum().backward()
            optimizer.step()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("part", [True, False], ids=["some", "none"])
def test_what_is_tuned_need_not_take_part_in_a_step_of_every_shape(part):
    """Of a rule that is run parameter by parameter."""

    @dataclass(frozen=True)
    class Matrices(Rule):
        lr: float = hyperparameter(0.1, nonnegative)
        weight_decay: float = hyperparameter(0.1, nonnegative)
        elementwise = False

        def update(self, param, grad, state, c):
            if param.ndim > 1:
                grad = grad + self.weight_decay * param
            return param - (self.lr if part or param.ndim > 1 else 0.1) * grad, state

    params = [torch.ones(3, requires_grad=True), torch.ones(2, 2, requires_grad=True)]
    optimizer = Hyperoptimizer(params, Matrices() / SGD(lr=0.0))
    for _ in range(2):
        optimizer.zero_grad()
        sum(p.square().sum() / 2 for p in params).backward()
        optimizer.step()
    found = optimizer.hypergradients()[0]
    assert found["lr"] == pytest.approx(-3 * 0.9 * part - 4 * (1 - 0.11) * 1.1)
    assert found["weight_decay"] == pytest.approx(-4 * (1 - 0.11) * 0.1)


@dataclass(frozen=True)
class Centred(Scaled):
    """Gradient centralization: of vectors nothing."""

    def update(self, param, grad, state, c):
        if grad.ndim > 1:
            grad = grad - grad.mean(dim=tuple(range(1, grad.ndim)), keepdim=True)
        return param - self.scale * grad, state


@dataclass(frozen=True)
class Kernels(Scaled):
    def update(self, param, grad, state, c):
        return param - (2 * self.scale if grad.ndim == 4 else self.scale) * grad, state


@dataclass(frozen=True)
class Clips(Scaled):
    """By a norm that is seldom reached."""

    def update(self, param, grad, state, c):
        return param - self.scale * grad * (1e3 / grad.norm()).clamp(max=1.0), state


@dataclass(frozen=True)
class Unpacks(Scaled):
    def update(self, param, grad, state, c):
        rows, columns = grad.shape[0], grad[0].numel()
        (rows, columns), first = grad.view(rows, columns).shape, grad.shape[1]
        return param - self.scale * grad / (rows * columns * first), state


@dataclass(frozen=True)
class Asserts(Scaled):
    def update(self, param, grad, state, c):
        assert grad.ndim > 1
        return param - self.scale * grad, state


@pytest.mark.parametrize("rule", [Centred, Kernels, Clips, Unpacks, Asserts])
def test_a_rule_that_looks_at_the_shape_sees_it(rule):
    torch.manual_seed(0)
    params = [torch.zeros(shape, requires_grad=True) for shape in ((2, 3), (3, 3), (2, 1, 2, 2))]
    optimizer = Hyperoptimizer(params, rule(scale=0.1) / SGD(lr=0.0))
    for p in params:
        p.grad = 200 * torch.randn(p.shape)
    optimizer.step()
    at = rule(scale=0.1).at({"scale": torch.tensor(0.1)})
    for p in params:
        torch.testing.assert_close(p.detach(), at.update(torch.zeros(p.shape), p.grad, {}, ())[0])


class Views:
    """What is a view of nothing that is written to, or lies where it did."""

    def of_the_gradient(self, param, grad, state, c):
        return param - self.scale * (grad + state["m"]), {"m": grad.detach()}

    def of_itself(self, param, grad, state, c):
        return param - self.scale * (grad + state["m"]), {"m": state["m"].detach()}

    def of_what_is_new(self, param, grad, state, c):
        new = param - self.scale * (grad + state["m"])
        return new, {"m": new.detach()}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("what", ["of_the_gradient", "of_itself", "of_what_is_new"])
def test_a_view_that_stays_as_it_is_is_handed_on(what, apart):
    """That of the parameter at the start among them: a step begins with a copy."""

    @dataclass(frozen=True)
    class Handing(Scaled):
        elementwise = not apart
        update = getattr(Views, what)

        def init(self, param):
            return {"m": param.detach()}

    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer, expected = Hyperoptimizer([p], Handing(scale=0.5)), torch.ones(3, dtype=torch.float64)
    at, state = Handing(scale=0.5).at({"scale": torch.tensor(0.5)}), {"m": torch.ones(3, dtype=torch.float64)}
    for t in range(3):
        p.grad = torch.full((3,), t + 1.0, dtype=torch.float64)
        optimizer.step()
        expected, state = at.update(expected, p.grad.clone(), state, ())
        torch.testing.assert_close(p.detach(), expected)


class Refused:
    """By what is wrong: the methods of a rule, and the message."""

    def writes_param(self, param, grad, state, c):
        return param.sub_(self.scale * grad), state

    def writes_grad(self, param, grad, state, c):
        grad += 0.1 * param
        return param - self.scale * grad, state

    def writes_state(self, param, grad, state, c):
        return param - self.scale * state["m"].mul_(0.9).add_(grad), state

    def hands_on_a_view(self, param, grad, state, c):
        return param - self.scale * (grad + state["m"]), {"m": param.detach()}

    def number(self, param, grad, state, c):
        return param - self.scale * grad, {"m": 0.0}

    def nothing(self, param, grad, state, c):
        param - self.scale * grad

    def no_state(self, param, grad, state, c):
        return param - self.scale * grad, None

    def takes_the_number(self, param, grad, state, c):
        return param.sub(grad, alpha=self.scale), state

    def takes_its_root(self, param, grad, state, c):
        return param - math.sqrt(self.scale) * grad, state

    def takes_an_item(self, param, grad, state, c):
        return param - self.scale.item() * grad, state


REFUSED = {
    "writes_param": r"writes to the parameter; it must return new tensors",
    "writes_grad": r"writes to the gradient; it must return new tensors",
    "writes_state": r"writes to the state 'm'; it must return new tensors",
    "hands_on_a_view": r"update returns the state 'm' as a view of the parameter, .*: \.clone\(\) it",
    "number": r"update returns the state 'm' as 0\.0; it must be a tensor",
    "nothing": r"update returns None; it must return a tuple: new_param, new_state",
    "no_state": r"update returns the state None; it must be a dict of tensors",
    "takes_the_number": r"takes the value of a hyperparameter that is tuned, scale: .*x - lr \* y for x\.sub\(y, alpha=lr\)",
    "takes_its_root": r"takes the value of .* tuned, scale: write torch\.sqrt\(x\) for math\.sqrt\(x\)",
    "takes_an_item": r"takes the value of .* no lr\.item\(\)",
}


@pytest.mark.parametrize(("what", "apart"), [(x, a) for x in REFUSED for a in (False, True) if not (a and x[:5] == "takes")])
def test_an_update_that_is_none_is_told(what, apart):
    @dataclass(frozen=True)
    class Wrong(Scaled):
        elementwise = not apart
        update = getattr(Refused, what)

        def init(self, param):
            return {"m": torch.zeros_like(param)} if what in ("number", "writes_state", "hands_on_a_view") else {}

    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match=rf"Wrong.*{REFUSED[what]}"):
        Hyperoptimizer([p], Wrong() / SGD(lr=1e-3)).step()
    assert p.tolist() == p.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("method", "found", "message"),
    [
        ("coefficients", None, r"coefficients returns None; it must return a tuple: \(x,\)"),
        ("coefficients", {"a": 1.0}, r"coefficients returns \{'a': 1.0\}; it must return a tuple"),
        ("coefficients", (torch.ones(3),), r"coefficients returns tensor.*each must be one number"),
        ("coefficients", (torch.tensor(True),), r"coefficients returns tensor.*compare in update"),
        ("init", None, r"init returns the state None; it must be a dict of tensors"),
    ],
)
def test_a_method_that_returns_another_thing_is_told(method, found, message):
    wrong = dataclass(frozen=True)(type("Wrong", (Scaled,), {method: lambda self, x: found}))
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match=rf"Wrong\.{message}"):
        Hyperoptimizer([p], wrong() / SGD(lr=1e-3)).step()
    assert p.tolist() == [1, 1, 1]


def test_a_setting_that_cannot_be_told_apart_is_told():
    @dataclass(frozen=True)
    class Steps(Scaled):
        steps: object = ()

    with pytest.raises(TypeError, match=r"Steps: steps=\[1, 2\] is not allowed; it must be hashable, such as a tuple"):
        Steps(steps=[1, 2])


@dataclass(frozen=True)
class Ignores(Scaled):
    """Its derivatives are lost, or there are none."""

    momentum: float = hyperparameter(0.5, hg.unit_interval)

    def init(self, param):
        return {"m": torch.zeros_like(param)}

    def update(self, param, grad, state, c):
        with torch.no_grad():
            m = self.momentum * state["m"] + grad
        return param - self.scale * m, {"m": m}


@dataclass(frozen=True)
class IgnoresAll(Ignores):
    @torch.no_grad()
    def update(self, param, grad, state, c):
        return super().update(param, grad, state, c)


@dataclass(frozen=True)
class Mixes(Ignores):
    def update(self, param, grad, state, c):
        return param - self.scale.item() * grad / grad.norm(), {"m": self.momentum * grad}


IDLE = (Ignores, "momentum"), (IgnoresAll, "scale or momentum"), (Mixes, "scale")


@pytest.mark.parametrize(("rule", "names"), IDLE, ids=str)
def test_what_is_tuned_in_vain_is_said(rule, names):
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    for tower in (rule() / SGD(lr=1e-3), *([SGD(lr=0.1) / rule() / SGD(lr=1e-3)] if rule is not Mixes else [])):
        with pytest.warns(RuntimeWarning, match=rf"{rule.__name__}: no step depends on {names}, which is tuned, and so stays"):
            Hyperoptimizer([p], tower).step()


def test_what_acts_now_and_then_is_not_tuned_in_vain():
    @dataclass(frozen=True)
    class Rarely(Scaled):
        late: float = hyperparameter(0.5, nonnegative)

        def coefficients(self, step):
            return (self.late if float(step) > 100 else self.scale,)

        def update(self, param, grad, state, c):
            return param - c[0] * grad, state

    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    Hyperoptimizer([p], Rarely() / SGD(lr=1e-3)).step()  # and no warning


def test_a_number_that_is_no_hyperparameter_is_told():
    @dataclass(frozen=True)
    class Plain(Rule):
        lr: float = 0.1

        def update(self, param, grad, state, c):
            return param - self.lr * grad, state

    with pytest.raises(
        TypeError, match=r"Plain has no hyperparameters.*such as lr: float = hyperparameter\(1e-3, nonnegative\)"
    ):
        Plain() / SGD(lr=1e-3)


def test_a_multiplier_that_is_none_is_told():
    @dataclass(frozen=True)
    class Other(Ratio):
        multiplier = "scale"

    with pytest.raises(ValueError, match=r"Other: multiplier='scale' is not one of its hyperparameters: lr, beta"):
        Other()


HONEST = {
    "velocity": lambda self, p, g, v: (p - (0.9 * v + self.lr * g), 0.9 * v + self.lr * g),
    "decay": lambda self, p, g, v: (p * (1 - self.lr * 0.1) - self.lr * g, v),
    "switched off": lambda self, p, g, v: (p * (1 - self.decay) - self.lr * g, v),
    "constrained": lambda self, p, g, v: (p - self.lr * g * (self.warm - 1).sqrt(), v),
    "random": lambda self, p, g, v: (p - self.lr * g * torch.rand_like(g), v),
    "norm": lambda self, p, g, v: (p - self.lr * g * p.norm() / g.norm(), v),
}


@pytest.mark.parametrize("step", HONEST.values(), ids=HONEST)
def test_a_multiplier_of_all_the_movement_is_not_refused(step):
    @dataclass(frozen=True)
    class Honest(Rule):
        lr: float = hyperparameter(0.1, nonnegative)
        decay: float = hyperparameter(0.0, nonnegative, tuned=False)
        warm: float = hyperparameter(2.0, nonnegative, tuned=False)
        multiplier = "lr"

        def init(self, param):
            return {"v": torch.zeros_like(param)}

        def update(self, param, grad, state, c):
            moved, v = step(self, param, grad, state["v"])
            return moved, {"v": v}

    torch.manual_seed(0)
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    before = torch.get_rng_state()
    optimizer = Hyperoptimizer([p], hg.auto(Honest()))
    print(optimizer)
    assert torch.equal(torch.get_rng_state(), before)
    optimizer.step()
    assert p.lt(1).all()


@pytest.mark.parametrize("count", [3, 60_000], ids=["small", "large"])
@pytest.mark.parametrize(
    "after",
    [
        lambda param, grad, lr: 0.9 * param - lr * grad,
        lambda param, grad, lr: param - (lr * grad).clamp(-0.3, 0.3),
        lambda param, grad, lr: param - grad / (lr + 1),
    ],
    ids=["decay", "clamp", "other"],
)
def test_a_multiplier_of_a_part_of_the_movement_is_told(after, count):
    """Its sensitivity would be taken for the whole of it. Without the declaration it is derived."""

    @dataclass(frozen=True)
    class Part(Rule):
        lr: float = hyperparameter(0.1, nonnegative)

        def update(self, param, grad, state, c):
            return after(param, grad, self.lr), state

    class Declared(Part):
        multiplier = "lr"

    p = torch.ones(count, requires_grad=True)
    p.grad = torch.ones(count)
    with pytest.raises(ValueError, match=r"Declared: multiplier='lr' does not multiply all .* goes [\d.]+ times as far"):
        Hyperoptimizer([p], hg.auto(Declared())).step()
    assert p.eq(1).all()
    Hyperoptimizer([p], hg.auto(Part())).step()
    assert p.lt(1).all()


def test_a_state_of_another_shape_than_the_parameter_comes_back():
    """As docs/rules.md allows it: of a matrix a number for each row."""

    @dataclass(frozen=True)
    class Rows(Rule):
        lr: float = hyperparameter(0.1, nonnegative)
        elementwise = False

        def init(self, param):
            return {"r": torch.zeros_like(param[..., :1])}

        def update(self, param, grad, state, c):
            r = 0.9 * state["r"] + grad.square().mean(-1, keepdim=True)
            return param - self.lr * grad / (r.sqrt() + 1e-3), {"r": r}

    torch.manual_seed(0)
    p, tower = torch.randn(3, 4, requires_grad=True), Rows() / SGD(lr=1e-4)
    optimizer = Hyperoptimizer([p], tower)

    def go(optimizer, p):
        p.grad = p.detach().clone()
        optimizer.step()
        return p.tolist(), optimizer.hyperparameters()

    for _ in range(3):
        go(optimizer, p)
    q = p.detach().clone().requires_grad_()
    twin = Hyperoptimizer([q], tower)
    twin.load_state_dict(optimizer.state_dict())
    assert twin.state[q]["r"].shape == (3, 1)
    assert go(twin, q) == go(optimizer, p)


RAISED = {
    "sensitivities": SGD(lr=0.1, momentum=0.9, horizon=5) / hg.Adam(lr=1e-2) / SGD(lr=1e-3),
    "replays": hg.Adam(lr=0.1) / SGD(lr=1e-3),
    "default": hg.auto(),
}


@pytest.mark.parametrize("tower", RAISED.values(), ids=RAISED)
@pytest.mark.parametrize("when", [1, 3], ids=["reads", "moves"])
@pytest.mark.parametrize("stop", [False, True])
def test_a_step_that_is_interrupted_before_anything_has_moved_is_not_counted(stop, when, tower, monkeypatch):
    """In mid-training, while a parameter rests; made again, or after a checkpoint."""
    done, calls = engine._done, [0]

    def interrupted(found):
        calls[0] -= 1
        if not calls[0]:
            raise KeyboardInterrupt
        return done(found)

    monkeypatch.setattr(engine, "_done", interrupted)

    def go(fails):
        torch.manual_seed(0)
        params, found = [torch.randn(n, dtype=torch.float64).requires_grad_() for n in (3, 4, 5)], []
        optimizer = Hyperoptimizer([{"params": params[:2]}, {"params": params[2:]}], tower)
        for t in range(6):
            for i, p in enumerate(params):
                p.grad = None if i == 1 and t > 2 else p.detach() + 0.1 * t
            if fails and t == 4:
                calls[0] = when
                with pytest.raises(KeyboardInterrupt):
                    optimizer.step()
                if stop:
                    saved, optimizer = optimizer.state_dict(), Hyperoptimizer(optimizer.param_groups, tower)
                    optimizer.load_state_dict(saved)
            optimizer.step()
            found.append(([p.tolist() for p in params], [optimizer.hyperparameters(i) for i in (0, 1)]))
        return found

    assert go(True) == go(False)


@pytest.mark.parametrize("moves", [1, 3], ids=["first", "later"])
def test_a_step_that_a_rule_does_not_make_is_not_counted(moves):
    """One that raises; after it, the steps are those of a rule that has never done so."""

    @dataclass(frozen=True)
    class Raising(Rule):
        lr: float = hyperparameter(0.1, nonnegative)

        def init(self, param):
            return {"m": torch.zeros_like(param)}

        def update(self, param, grad, state, c):
            if broken:
                raise ArithmeticError
            m = 0.9 * state["m"] + grad
            return param - self.lr * m, {"m": m}

    def go(fails):
        p, found = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True), []
        optimizer = Hyperoptimizer([p], Raising() / hg.Adam(lr=1e-2) / SGD(lr=1e-3))
        for t in range(5):
            p.grad = p.detach().clone()
            if fails and t == moves:
                broken.append(True)
                with pytest.raises(ArithmeticError):
                    optimizer.step()
                broken.clear()
            optimizer.step()
            found.append((p.tolist(), optimizer.hyperparameters(), optimizer.state[p]["step"].item()))
        return found

    broken = []
    assert go(True) == go(False)


@dataclass(frozen=True)
class Limited(Rule):
    """Clips the norm of a parameter's gradient."""

    lr: float = hyperparameter(0.1, nonnegative)
    clip: float = hyperparameter(1.0, nonnegative, tuned=False)

    def update(self, param, grad, state, c):
        return param - self.lr * grad * torch.clamp(self.clip / grad.norm(), max=1), state


@dataclass(frozen=True)
class Trusted(Rule):
    """A trust ratio that is switched off by default."""

    lr: float = hyperparameter(0.1, nonnegative)
    trust: float = hyperparameter(0.0, nonnegative, tuned=False)

    def update(self, param, grad, state, c):
        ratio = torch.where(self.trust > 0, self.trust * param.norm() / grad.norm(), 1.0)
        return param - self.lr * ratio * grad, state


@dataclass(frozen=True)
class FromThreeOn(Rule):
    """Centres rows of three and more."""

    lr: float = hyperparameter(0.1, nonnegative)

    def update(self, param, grad, state, c):
        return param - self.lr * (grad - grad.mean(-1, keepdim=True) if grad.shape[-1] >= 3 else grad), state


@dataclass(frozen=True)
class Convolutional(Rule):
    """Another thing for the kernels of one-dimensional convolutions."""

    lr: float = hyperparameter(0.1, nonnegative)

    def update(self, param, grad, state, c):
        return param - self.lr * (grad.flip(2) if grad.ndim == 3 else grad), state


@dataclass(frozen=True)
class Normed(Rule):
    """Has the norm of a parameter's gradient as a term that may be off."""

    lr: float = hyperparameter(0.1, nonnegative)
    norm: float = hyperparameter(0.0, nonnegative, tuned=False)

    def update(self, param, grad, state, c):
        return param - self.lr * (self.norm * grad / grad.norm() if self.uses("norm") else grad), state


@dataclass(frozen=True)
class Projected(Rule):
    """Keeps parameters in a ball that none of the elements that are tried leaves."""

    lr: float = hyperparameter(0.1, nonnegative)
    radius: float = 1e4

    def update(self, param, grad, state, c):
        new = param - self.lr * grad.sign()
        return new * torch.clamp(self.radius / new.norm(), max=1.0), state


@dataclass(frozen=True)
class Begun(Rule):
    """Moves parameters that are 1 everywhere, as none that is tried, the other way."""

    lr: float = hyperparameter(0.1, nonnegative)

    def update(self, param, grad, state, c):
        return param - self.lr * torch.where((param == 1).all(), -grad, grad), state


def look_at(rule):
    """Have what is found of a rule found with these values."""
    probe._found.clear()
    p = torch.ones(1, requires_grad=True)
    p.grad = torch.ones(1)
    Hyperoptimizer([p], rule).step()


SELDOM = [
    (Limited(lr=0.0), {"lr": 0.1}, [(2,), (3,)]),
    (Limited(clip=1e15), {"clip": 1.0}, [(2,), (3,)]),
    (Trusted(), {"trust": 0.01}, [(2,), (3,)]),
    (Normed(), {"norm": 1.0}, [(2,), (3,)]),
    (Projected(), {"lr": 1e4}, [(2,), (3,)]),
    (Begun(), {}, [(1,), (3,)]),
    (FromThreeOn(), {}, [(4, 3), (2,)]),
    (Convolutional(), {}, [(2, 1, 3), (2,)]),
]


@pytest.mark.parametrize(("rule", "values", "shapes"), SELDOM, ids=[f"{type(r).__name__} {v}" for r, v, _ in SELDOM])
def test_what_a_rule_seldom_does_is_found_by_the_probe(rule, values, shapes):
    """With other values, and from some size on."""
    look_at(rule)
    params = [torch.arange(1.0, 1 + math.prod(shape)).view(shape).requires_grad_() for shape in shapes]
    optimizer = Hyperoptimizer([{"params": params, **values}], rule)
    expected = []
    for p in params:
        p.grad = p.detach() * p.detach()
        at = rule.at({n: torch.tensor(values.get(n, getattr(rule, n))) for n in rule.hyperparameters()})
        expected.append(at.update(p.detach(), p.grad, {}, ())[0])
    optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], expected)


@dataclass(frozen=True)
class Renormed(Rule):
    """Divides by the norm of a parameter in every sixteenth step."""

    lr: float = hyperparameter(0.1, nonnegative)

    def coefficients(self, step):
        return (torch.remainder(step, 16),)

    def update(self, param, grad, state, c):
        new = param - self.lr * grad
        return torch.where(c[0] == 0, new / new.norm(), new), state


HARMLESS = {
    "another number": lambda lr, g: torch.maximum(g, g.new_tensor(-1.0)),
    "another dtype": lambda lr, g: g * lr.to(g),
    "the most of some": lambda lr, g: torch.stack([g, -g, 2 * g, -2 * g]).amax(0),
    "nothing": lambda lr, g: g + g.new_zeros(()),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_only_looks_like_a_sum_moves_each_element_by_itself(what):
    @dataclass(frozen=True)
    class Each(Rule):
        lr: float = hyperparameter(0.1, nonnegative)

        def update(self, param, grad, state, c):
            return param - self.lr * HARMLESS[what](self.lr, grad), state

    assert probe.elementwise(Each())


@pytest.mark.parametrize("mix", [lambda g: torch.mean(input=g), lambda g: torch._foreach_norm([g])[0], torch.median])
def test_a_sum_that_is_made_in_some_steps_is_found_however_it_is_written(mix):
    @dataclass(frozen=True)
    class Seldom(Rule):
        lr: float = hyperparameter(0.1, nonnegative)

        def coefficients(self, step):
            return (step,)

        def update(self, param, grad, state, c):
            return param - self.lr * torch.where(c[0] == 77, mix(grad), grad), state

    assert not probe.elementwise(Seldom())


def test_what_a_rule_does_in_some_steps_is_found_before_the_first():
    params = [torch.ones(n, requires_grad=True) for n in (4, 9)]
    optimizer = Hyperoptimizer(params, Renormed())
    for _ in range(16):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert [p.norm().item() for p in params] == pytest.approx([1, 1])


@pytest.mark.parametrize("how", ["by itself", "of a group", "later"])
def test_a_term_that_mixes_elements_is_found_though_it_was_off(how):
    look_at(Normed())
    params = [torch.zeros(n, requires_grad=True) for n in (9, 16)]
    entry = {"params": params, **({"norm": 1.0} if how == "of a group" else {})}
    optimizer = Hyperoptimizer([entry], Normed(norm=1.0 if how == "by itself" else 0.0))
    for p in params:
        p.grad = torch.zeros_like(p) if how == "later" else torch.ones_like(p)
    if how == "later":
        optimizer.step()
        optimizer.param_groups[0]["norm"] = 1.0
        for p in params:
            p.grad.fill_(1.0)
    optimizer.step()
    assert [p.norm().item() for p in params] == pytest.approx([0.1, 0.1])


def test_a_rule_of_averages_needs_no_coefficients():
    @dataclass(frozen=True)
    class Heavy(Averages):
        lr: float = hyperparameter(0.01, nonnegative)

        def init(self, param):
            return {"m": torch.zeros_like(param)}

        def averages(self, grad, c):
            return {"m": (grad, 0.1)}

        def displacement(self, state, c):
            return self.lr * state["m"]

    p = torch.ones(3, requires_grad=True)
    optimizer = Hyperoptimizer([p], Heavy() / SGD(lr=0.0))
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
    assert optimizer.hypergradients()[0]["lr"] == pytest.approx(-3 * 0.19)  # m after two steps


def test_a_state_that_not_every_shape_has_is_told():
    @dataclass(frozen=True)
    class Factored(Rule):
        lr: float = hyperparameter(0.1, nonnegative)
        elementwise: ClassVar[bool] = False

        def init(self, param):
            return {"rows": torch.zeros_like(param)} if param.ndim > 1 else {}

        def update(self, param, grad, state, c):
            return param - self.lr * grad, dict(state)

    params = [torch.ones(shape, requires_grad=True) for shape in ((4, 3), (3,))]
    optimizer = Hyperoptimizer(params, Factored())
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(
        ValueError, match=r"Factored: init returns a state of \[\] for a parameter of shape \(3,\), of \['rows'\]"
    ):
        optimizer.step()
    assert all((p == 1).all() for p in params)


@pytest.mark.parametrize("name", ["horizon", "charts", "at", "off", "uses"])
def test_a_field_with_the_name_of_what_every_rule_has_is_told(name):
    kind = hyperparameter(20.0, nonnegative, tuned=False) if name == "horizon" else hyperparameter(1.0, nonnegative)
    body = {"__annotations__": {name: float}, name: kind, "update": lambda self, param, grad, state, c: (param, state)}
    named = dataclass(frozen=True)(type(Rule)("Named", (Rule,), body))
    with pytest.raises(TypeError, match=f"Named has a field '{name}', a name that is kept for every rule"):
        named()


@pytest.mark.parametrize("name", ["average", "gradient", "displacement"])
def test_a_field_that_hides_a_method_of_averages_is_told(name):
    body = {"__annotations__": {name: float}, name: hyperparameter(1.0, nonnegative)}
    with pytest.raises(TypeError, match=f"Named has a field '{name}', a name that is kept for every rule"):
        dataclass(frozen=True)(type(Rule)("Named", (Ratio,), body))()


def test_a_term_that_is_none_is_told():
    @dataclass(frozen=True)
    class Misspelt(Rule):
        lr: float = hyperparameter(0.1, nonnegative)
        weight_decay: float = hyperparameter(0.1, nonnegative)

        def update(self, param, grad, state, c):
            return param - self.lr * (grad + self.weight_decay * param if self.uses("weight_decy") else grad), state

    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match=r"Misspelt: uses\('weight_decy'\) names none of lr, weight_decay"):
        Hyperoptimizer([p], Misspelt()).step()


@dataclass(frozen=True)
class Rooted(Rule):
    """RMSprop as one writes it: its root has an infinite slope at 0."""

    lr: float = hyperparameter(0.01, nonnegative)
    beta: float = hyperparameter(0.9, hg.unit_interval)

    def init(self, param):
        return {"v": torch.zeros_like(param)}

    def update(self, param, grad, state, c):
        v = self.beta * state["v"] + (1 - self.beta) * grad * grad
        return param - self.lr * grad / (torch.sqrt(v) + 1e-8), {"v": v}


@pytest.mark.parametrize("horizon", [1, 2])
def test_an_element_that_never_moves_does_not_hold_the_others(horizon):
    found = []
    for grads in ([2.0, 1.0, 3.0], [2.0, 1.0, 3.0, 0.0]):
        p = torch.ones(len(grads), requires_grad=True)
        optimizer = Hyperoptimizer([p], Rooted(horizon=horizon) / SGD(lr=1e-5))
        for t in range(5):
            p.grad = torch.tensor(grads) * (1 + t)
            optimizer.step()
        found.append((optimizer.hyperparameters()[0], optimizer.hypergradients()[0]))
    assert found[0] == found[1]
    assert found[0][0]["lr"] != 0.01


@dataclass(frozen=True)
class Late(Rule):
    """What is tuned acts from the fourth step on."""

    lr: float = hyperparameter(0.1, nonnegative)
    late: float = hyperparameter(0.5, nonnegative)

    def coefficients(self, step):
        return (self.lr * self.late if step > 3 else self.lr * 1.0,)

    def update(self, param, grad, state, c):
        return param - c[0] * grad, state


def test_what_acts_from_some_step_on_has_its_derivative():
    p = torch.ones(1, requires_grad=True)
    optimizer = Hyperoptimizer([p], Late() / SGD(lr=0.0))
    for _ in range(5):
        p.grad = torch.full((1,), 2.0)
        optimizer.step()
    assert optimizer.hypergradients()[0] == pytest.approx({"lr": -4.0 * 0.5, "late": -4.0 * 0.1})


def test_a_rule_is_a_value_that_can_be_hashed_and_read_back():
    rules = [hg.Adam(), hg.Adam(horizon=math.inf, charts={"lr": hg.POSITIVE}), hg.auto().rules[0], hg.auto().rules[1]]
    assert len({*rules, *(hg.Adam(), SGD())}) == 5
    names = {**vars(hg), "math": math}
    assert all(eval(repr(rule), names) == rule for rule in rules)
    assert hash(SGD() / SGD()) == hash(SGD() / SGD())


@dataclass(frozen=True)
class Cautious(Rule):
    """Moves along a momentum where the gradient has its sign, by so much more as that is seldom."""

    lr: float = hyperparameter(0.1, nonnegative)

    def init(self, param):
        return {"m": torch.zeros_like(param)}

    def update(self, param, grad, state, c):
        m = 0.9 * state["m"] + 0.1 * grad
        mask = (m * grad > 0).to(grad.dtype)
        return param - self.lr * m * mask / mask.mean().clamp_min(1e-3), {"m": m}


@dataclass(frozen=True)
class Guarded(Rule):
    """Stands still where a gradient is not finite."""

    lr: float = hyperparameter(0.1, nonnegative)

    def update(self, param, grad, state, c):
        return torch.where(grad.isfinite().all(), param - self.lr * grad, param), state


@dataclass(frozen=True)
class AfterWarmUp(Rule):
    """Divides by a norm from the sixth step on."""

    lr: float = hyperparameter(0.1, nonnegative)

    def coefficients(self, step):
        return ((step > 5).to(torch.float64),)

    def update(self, param, grad, state, c):
        return param - self.lr * (c[0] * grad / grad.norm() + (1 - c[0]) * grad), state


@dataclass(frozen=True)
class Counting(Rule):
    lr: float = hyperparameter(0.1, nonnegative)

    def update(self, param, grad, state, c):
        return param - (self.lr if torch.numel(grad) > 10 else 2 * self.lr) * grad, state


@dataclass(frozen=True, kw_only=True)
class Flagged(Rule):
    """All of its fields by keyword alone."""

    lr: float = hyperparameter(0.1, nonnegative)
    norm: bool = False

    def update(self, param, grad, state, c):
        return param - self.lr * (grad / grad.norm() if self.norm else grad), state


@pytest.mark.parametrize("rule", [Cautious(), Guarded(), AfterWarmUp(), Counting(), Flagged(norm=True)], ids=repr)
def test_parameters_of_a_rule_that_mixes_move_together_as_they_do_apart(rule):
    def trained(groups):
        chance = torch.Generator().manual_seed(0)
        optimizers = [Hyperoptimizer(params, rule) for params in groups]
        for t in range(8):
            for p in (p for params in groups for p in params):
                p.grad = torch.randn(p.shape, generator=chance)
                if t == 3 and len(p) == 6:
                    p.grad[0] = math.nan if isinstance(rule, Guarded) else 0.0
            for optimizer in optimizers:
                optimizer.step()
        return [p.detach() for params in groups for p in params]

    Hyperoptimizer([torch.ones(1, requires_grad=True)], type(rule)())
    a, b, c, d = (torch.ones(n, requires_grad=True) for n in (6, 7, 6, 7))  # together more than 10
    torch.testing.assert_close(trained([[a, b]]), trained([[c], [d]]))


def test_flags_by_keyword_alone_are_of_each_group():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = Hyperoptimizer([{"params": [a]}, {"params": [b], "rule": Flagged(norm=True)}], Flagged())
    for p in (a, b):
        p.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert a.tolist() == pytest.approx([0.7, 0.6])
    assert b.tolist() == pytest.approx([0.94, 0.92])


@dataclass(frozen=True)
class Biased(Rule):
    """A rule that mixes elements, and needs 1 - beta exactly."""

    lr: float = hyperparameter(0.1, nonnegative)
    beta: float = hyperparameter(0.9999999, hg.unit_interval)
    elementwise = False

    def init(self, param):
        return {"v": torch.zeros_like(param)}

    def coefficients(self, step):
        return 1 - self.beta, self.lr * 2

    def update(self, param, grad, state, c):
        v = state["v"] + c[0] * (grad * grad - state["v"])
        return param - c[1] * self.lr * grad / grad.norm(), {"v": v}


def test_the_coefficients_of_a_rule_that_mixes_are_as_exact_when_it_is_tuned():
    found = []
    for tower in (Biased(), Biased() / SGD(lr=0.0)):
        p = torch.ones(2, dtype=torch.float32, requires_grad=True)
        optimizer = Hyperoptimizer([p], tower)
        for _ in range(3):
            p.grad = torch.full_like(p, 3.0)
            optimizer.step()
        found.append((p.tolist(), optimizer.state[p]["v"].tolist()))
    assert found[0] == found[1]
    expected = -2 * 2 * 0.1 * 3 / 18**0.5 * 3 * 2  # of lr * 2 * lr
    assert optimizer.hypergradients()[0]["lr"] == pytest.approx(expected, rel=1e-5)


def test_a_rule_of_ones_own_may_have_the_name_of_another():
    @dataclass(frozen=True)
    class Other(SGD):
        def update(self, param, grad, state, c):
            return param - self.lr * grad.sign() * 1e-3, state

    same = dataclass(frozen=True)(type("SGD", (Other,), {"__module__": __name__}))
    learned = []
    for kind in (Other, same):
        p = torch.ones(2, requires_grad=True)
        optimizer = Hyperoptimizer([p], SGD(lr=0.1) / SGD(lr=1e-3) / kind(lr=1.0) / SGD(lr=1e-6))
        for _ in range(6):
            p.grad = p.detach().clone()
            optimizer.step()
        learned.append([level["lr"] for level in optimizer.hyperparameters()])
    assert learned[0] == learned[1]


@dataclass(frozen=True)
class TrustSign(Rule):
    lr: float = hyperparameter(1e-3, nonnegative)
    beta: float = hyperparameter(0.9, hg.unit_interval)

    def init(self, param):
        return {"m": torch.zeros_like(param)}

    def update(self, param, grad, state, c):
        m = self.beta * state["m"] + (1 - self.beta) * grad
        return param - self.lr * param.norm() * torch.sign(m), {"m": m}


def test_what_has_a_derivative_of_0_in_a_rule_that_mixes_elements_stays():
    p = torch.ones(3, 2, requires_grad=True)
    optimizer = Hyperoptimizer([p], TrustSign() / SGD(lr=1e-5))
    for _ in range(3):
        p.grad = torch.ones(3, 2)
        optimizer.step()
    assert optimizer.hypergradients()[0]["beta"] == 0
    assert optimizer.hypergradients()[0]["lr"] != 0


@dataclass(frozen=True)
class Once(Rule):
    lr: float = hyperparameter(1e-3, nonnegative)

    def init(self, param):
        return {"seen": torch.zeros_like(param, dtype=torch.bool)}

    def update(self, param, grad, state, c):
        return param - self.lr * torch.where(state["seen"], grad, 0.1 * grad), {"seen": state["seen"] | (grad != 0)}


@pytest.mark.parametrize(
    ("n", "tower"), [(4, Once() / SGD(lr=1e-3)), (4, SGD(lr=0.1, momentum=0.5) / Once()), (1 << 18, hg.auto(Once()))]
)
def test_a_state_of_truth_values_is_one_everywhere(n, tower):
    p = torch.ones(n, requires_grad=True)
    optimizer = Hyperoptimizer([p], tower)
    for _ in range(3):
        p.grad = torch.ones(n)
        optimizer.step()
    assert math.isfinite(optimizer.hyperparameters()[0]["lr"])


@dataclass(frozen=True)
class Langevin(Rule):
    lr: float = hyperparameter(1e-2, nonnegative)

    def update(self, param, grad, state, c):
        return param - self.lr * grad + (2 * self.lr).sqrt() * torch.randn_like(param), state


def test_to_look_at_a_rule_draws_no_random_numbers():
    def run():
        torch.manual_seed(0)
        p = torch.ones(3, requires_grad=True)
        optimizer = Hyperoptimizer([p], Langevin())
        for _ in range(2):
            p.grad = p.detach().clone()
            optimizer.step()
        return p.tolist()

    assert run() == run()


@dataclass(frozen=True)
class Warm(Rule):
    lr: float = hyperparameter(1e-3, nonnegative)

    def coefficients(self, step):
        return (self.lr * min(1.0, step / 10),)

    def update(self, param, grad, state, c):
        return param - c[0] * grad, state


def test_a_rule_that_looks_at_the_number_of_the_step_is_told_so_above_several():
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    Hyperoptimizer([p], SGD(lr=0.1) / Warm()).step()
    with pytest.raises(TypeError, match=r"Warm branches on the number of the step, or a hyperparameter, .*write torch\.where"):
        Hyperoptimizer([p], hg.Adam() / Warm()).step()


@pytest.mark.parametrize("rule", [hg.AdamWScheduleFree, hg.SGDScheduleFree])
def test_a_rule_that_averages_begins_above_where_its_decay_draws_to(rule):
    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = Hyperoptimizer([p], hg.Adam(lr=1e-3) / rule(lr=1e-12, weight_decay=1e-6))
    before = optimizer.hyperparameters()[0]
    for _ in range(4):
        p.grad = 2 * p.detach()
        optimizer.step()
    assert optimizer.hyperparameters()[0] == pytest.approx(before, rel=1e-6)


def test_a_chart_that_ends_at_one_side_ends_at_the_other_too():
    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    tower = SGD(lr=0.1) / SGD(lr=0.01, charts={"lr": torch.distributions.transforms.TanhTransform()}) / SGD(lr=0.1)
    optimizer = Hyperoptimizer([p], tower)
    for sign in (1.0, 1.0, -1.0, -1.0):
        p.grad = torch.full_like(p, sign)
        optimizer.step()
    assert optimizer.hyperparameters()[1]["lr"] >= 0


def momentum_rule(slots, kind):
    """The class of a rule whose class is written in one of several ways, which all mean the same."""

    @dataclass(frozen=True, slots=slots)
    class Momentum(Rule):
        lr: float = hyperparameter(0.01, nonnegative)
        momentum: float = hyperparameter(0.9, hg.unit_interval)
        bounded: bool = True

        @kind
        def rest(self):
            return 1 - self.momentum

        def init(self, param):
            return {"m": torch.zeros_like(param)}

        def coefficients(self, step):
            return (self.rest,)

        def update(self, param, grad, state, c):
            m = self.momentum * state["m"] + c[0] * grad
            return param - self.lr * (torch.tanh(m) if self.bounded else m), {"m": m}

    return Momentum


@pytest.mark.parametrize(("slots", "kind"), [(True, property), (False, cached_property)])
def test_a_rule_may_be_written_with_slots_or_with_a_cached_property(slots, kind):
    """What it has cached of its own values is not what is in force."""
    found = []
    for rule in (momentum_rule(False, property)(), momentum_rule(slots, kind)()):
        assert rule.rest == pytest.approx(0.1)
        p = torch.ones(3, dtype=torch.float64, requires_grad=True)
        optimizer = Hyperoptimizer([p], rule / SGD(lr=0.01))
        for _ in range(9):
            p.grad = p.detach() * torch.arange(3)
            optimizer.step()
        found.append((p.tolist(), optimizer.hyperparameters()[0]))
    assert found[0] == found[1]
    assert found[0][1]["momentum"] != 0.9
