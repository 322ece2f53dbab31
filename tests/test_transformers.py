"""The Trainer of Hugging Face: a small Llama on bytes of real text, with its own groups, schedule and checkpoints."""

import pytest
import torch
import transformers
from frameworks import FINE, llama, trainer

from hypergradient import POSITIVE, SGD, Adam, AdamW, Hyperoptimizer, Muon

pytestmark = pytest.mark.usefixtures("float32")


def inner(trainer):
    """The optimizer that Accelerate has wrapped."""
    return trainer.optimizer.optimizer


def test_trainer_with_an_optimizer_of_ours(tmp_path, lines):
    """``optimizers=(optimizer, None)``; its default schedule, linear to 0, multiplies."""
    model = llama()
    optimizer = Hyperoptimizer(model.parameters(), FINE)
    run = trainer(tmp_path, lines, model, optimizers=(optimizer, None))
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    assert inner(run) is optimizer
    assert optimizer.param_groups[0]["lr"] == optimizer.hyperparameters()[0]["lr"] == 0.0  # the end of the schedule
    optimizer.param_groups[0]["lr"] = 3e-3
    assert optimizer.hyperparameters()[0]["lr"] > 3.3e-3


def test_trainer_is_as_with_torch_when_nothing_is_learned(tmp_path, lines):
    runs = []
    for kind in (lambda ps: Hyperoptimizer(ps, AdamW(lr=3e-3) / SGD(lr=0.0)), lambda ps: torch.optim.AdamW(ps, lr=3e-3)):
        model = llama()
        trainer(tmp_path, lines, model, steps=8, optimizers=(kind(model.parameters()), None)).train()
        runs.append(list(model.parameters()))
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tune", [("lr",), ("lr", "weight_decay")], ids=str)
def test_trainer_with_decay_groups(tmp_path, lines, tune):
    """``optimizer_cls_and_kwargs=``: its groups with and without decay; where weight_decay is 0, it stays 0."""
    charts = dict.fromkeys(tune, POSITIVE)
    tower = AdamW(lr=3e-3, tune=tune, charts=charts, normalize="cosine") / SGD(lr=0.05)
    run = trainer(tmp_path, lines, weight_decay=0.1, optimizer_cls_and_kwargs=(Hyperoptimizer, {"tower": tower}))
    run.train()
    optimizer = inner(run)
    assert type(optimizer) is Hyperoptimizer
    decays = [optimizer.hyperparameters(g)[0]["weight_decay"] for g in (0, 1)]
    assert decays[1] == optimizer.param_groups[1]["weight_decay"] == 0.0
    assert (decays[0] != pytest.approx(0.1)) == ("weight_decay" in tune)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert {p.ndim for p in optimizer.param_groups[1]["params"]} == {1}


@pytest.mark.parametrize("tower", [FINE, Adam(lr=3e-3) / Adam(lr=1e-3) / SGD(lr=1e-5), AdamW(lr=3e-3)], ids=repr)
def test_trainer_resumes_from_its_checkpoint(tmp_path, lines, tower):
    """To the last bit as without the interruption, through its own optimizer.pt and scheduler.pt."""
    how = {"optimizer_cls_and_kwargs": (Hyperoptimizer, {"tower": tower, "per": "tensor"}), "weight_decay": 0.1}
    whole = trainer(tmp_path / "whole", lines, steps=12, save_strategy="steps", save_steps=6, **how)
    whole.train()
    again = trainer(tmp_path / "again", lines, steps=12, **how)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    for told in ("hyperparameters", "hypergradients"):
        one, other = ([getattr(inner(r), told)(g) for g in (0, 1)] for r in (again, whole))
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


OPTIONS = {
    "accumulation": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "no clipping": {"max_grad_norm": 0.0},
    "cosine, warm-up": {"lr_scheduler_type": "cosine", "warmup_steps": 10},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 10},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_trainer_with_its_options(tmp_path, lines, options):
    model = llama()
    run = trainer(tmp_path, lines, model, steps=20, optimizers=(Hyperoptimizer(model.parameters(), FINE), None), **options)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    inner(run).param_groups[0]["lr"] = 3e-3
    assert inner(run).hyperparameters()[0]["lr"] != pytest.approx(3e-3, rel=1e-3)


def test_trainer_with_muon_and_a_rule_for_the_rest(tmp_path, lines):
    model = llama()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "head" not in n]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    groups = [{"params": matrices}, {"params": rest, "rule": AdamW(lr=3e-3)}]
    run = trainer(tmp_path, lines, model, optimizers=(Hyperoptimizer(groups, Muon(lr=0.01) / SGD(lr=1e-5)), None))
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


def test_trainer_evaluates_the_default_at_its_average(tmp_path, lines):
    """It calls ``optimizer.eval()`` and ``optimizer.train()`` by itself, also in the middle of a training."""
    model = llama()
    optimizer = Hyperoptimizer(model.parameters())
    options = {"eval_strategy": "steps", "eval_steps": 10, "lr_scheduler_type": "constant"}
    run = trainer(tmp_path, lines, model, steps=40, optimizers=(optimizer, None), **options)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    run.evaluate()
    average = [p.detach().clone() for p in model.parameters()]
    optimizer.train()
    assert not all(torch.equal(p, x) for p, x in zip(model.parameters(), average, strict=True))
    optimizer.eval()
    torch.testing.assert_close([p.detach() for p in model.parameters()], average, rtol=0, atol=0)


def test_trainer_of_a_subclass_that_makes_its_optimizer(tmp_path, lines):
    """``create_optimizer`` overridden: embeddings in a group of their own; the same bits as with ``optimizers=``."""

    def made(model):
        own = {id(p) for p in model.get_input_embeddings().parameters()}
        groups = [[p for p in model.parameters() if (id(p) in own) == inside] for inside in (False, True)]
        return Hyperoptimizer([{"params": ps, **({"weight_decay": 0.0} if i else {})} for i, ps in enumerate(groups)])

    class Own(transformers.Trainer):
        def create_optimizer(self, model=None):
            self.optimizer = self.optimizer or made(self.model if model is None else model)
            return self.optimizer

    runs = [trainer(tmp_path, lines, kind=Own)]
    model = llama()
    runs.append(trainer(tmp_path, lines, model, optimizers=(made(model), None)))
    for run in runs:
        run.train()
    assert len(inner(runs[0]).param_groups) == 2
    assert inner(runs[0]).hyperparameters(1) == inner(runs[1]).hyperparameters(1)
    torch.testing.assert_close(*(r.model.state_dict() for r in runs), rtol=0, atol=0)


MODES = {"no evaluation": {}, "evaluated before it is saved": {"eval_strategy": "steps", "eval_steps": 17}}


@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
def test_trainer_resumes_the_default_in_mid_epoch(tmp_path, lines, options):
    """After 17 steps of two batches, of which an epoch has 10, to the last bit; saved at the average, if it is there."""
    lines = lines[:160]
    how = {"optimizer_cls_and_kwargs": (Hyperoptimizer, {}), "gradient_accumulation_steps": 2, **options}
    whole = trainer(tmp_path / "whole", lines, steps=24, save_strategy="steps", save_steps=17, **how)
    whole.train()
    again = trainer(tmp_path / "again", lines, steps=24, **how)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-17"))
    assert again.state.epoch == whole.state.epoch == pytest.approx(2.4)
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert inner(again).hyperparameters() == inner(whole).hyperparameters()
