"""A step does what the reference does: lean and literal, against the reference written out here."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.training import literal as literal_module
from destseg_deploy.training.checkpointing import RunState
from destseg_deploy.training.literal import LiteralSteps
from destseg_deploy.training.loop import (
    LeanSteps,
    StepReport,
    Steps,
    segmentation_loss,
    student_loss,
)
from tests.deploy.training.cases import (
    LONGER,
    TINY,
    SmallNet,
    State,
    equal,
    fit,
    furthest,
    make_loop,
    make_net,
    noise,
    part,
    snapshot,
)


def unit(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (length + 1e-12)


def bilinear(x: Tensor, size: Any) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def reference(net: DeSTSeg, steps: tuple[int, int], mistake: str = "") -> State:
    """Train as the paper's section 3 says, every network in every step, or with a mistake."""
    net.to(memory_format=torch.channels_last)
    decay = 0.0 if mistake == "no weight decay" else 1e-4
    how = {"momentum": 0.9, "weight_decay": decay, "nesterov": mistake == "nesterov"}
    student_sgd = SGD(net.student_net.parameters(), lr=0.4, **how)
    res, head = net.segmentation_net.res, net.segmentation_net.head
    res_lr, head_lr = (0.01, 0.1) if mistake == "rates exchanged" else (0.1, 0.01)
    segmentation_sgd = SGD(
        [{"params": res.parameters(), "lr": res_lr}, {"params": head.parameters(), "lr": head_lr}],
        lr=0.001,
        **how,
    )
    gamma = 2 if mistake == "gamma 2" else 4
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for step, (image, clean, mask) in enumerate(noise(0, sum(steps))):
        first = step < steps[0]
        net.student_net.train(first or mistake == "student not in eval mode")
        net.segmentation_net.train(not first or mistake == "segmentation not in eval mode")
        corrupted, normal = (
            ((x / 255 - mean[:, None, None]) / std[:, None, None]).contiguous(
                memory_format=torch.channels_last
            )
            for x in (image, clean)
        )
        with torch.no_grad():
            seen = [unit(x) for x in net.teacher_net(corrupted)]
            target = [unit(x) for x in net.teacher_net(normal)]
        if mistake == "teacher sees the corrupted image":
            target = seen
        student = [unit(x) for x in net.student_net(corrupted)]
        products = [bilinear(-t * s, (16, 16)) for t, s in zip(seen, student, strict=True)]
        logits = net.segmentation_net(torch.cat(products, 1), logits=True)
        if first:
            loss = torch.zeros(())
            for t, s in zip(target, student, strict=True):
                distance = 1 - (t * s).sum(1)
                loss = loss + distance.sum() / (distance.shape[1] * distance.shape[2])
            if mistake == "mean over the batch":
                loss = loss / 2
            student_sgd.zero_grad()
            torch.autograd.backward(loss)
            student_sgd.step()
        else:
            truth = (bilinear(mask, (16, 16)) >= 0.5).float()
            # In float64: float32 has few probabilities near 1, and their logarithms are coarse.
            segmentation = torch.sigmoid(logits.double())
            p = truth * segmentation + (1 - truth) * (1 - segmentation)
            focal = (-((1 - p) ** gamma) * p.log()).mean()
            distance = (segmentation - truth).abs().mean() * (mistake != "no L1")
            segmentation_sgd.zero_grad()
            torch.autograd.backward(focal + distance)
            segmentation_sgd.step()
    return snapshot(net)


def test_lean_steps_give_the_references_parameters() -> None:
    """No segmentation in phase one and no gradient into the student in phase two: no difference."""
    torch.set_num_threads(1)  # one order of sums; two threads move the reference by 2e-3
    net = make_net(DeSTSeg)
    before = snapshot(net)
    expected = reference(copy.deepcopy(net), (2, 2))
    fit(net, TINY)
    found = snapshot(net)
    assert furthest(found, expected) < 1e-5
    assert furthest(found, before) > 1
    for name in ("student_net", "segmentation_net"):
        assert furthest(part(found, name), part(before, name)) > 0.01


LENGTHS = (LONGER.student_steps, LONGER.segmentation_steps)


@pytest.fixture(scope="module")
def small() -> State:
    """What lean steps make of small networks."""
    net = make_net()
    fit(net, LONGER)
    return snapshot(net)


def test_lean_steps_stay_with_the_reference(small: State) -> None:
    assert furthest(small, reference(make_net(), LENGTHS)) < 1e-5


@pytest.mark.parametrize(
    ("mistake", "part_of"),
    [
        ("teacher sees the corrupted image", "student_net"),
        ("mean over the batch", "student_net"),
        ("student not in eval mode", "student_net"),
        ("student not in eval mode", "segmentation_net"),
        ("segmentation not in eval mode", "segmentation_net"),
        ("nesterov", "student_net"),
        ("nesterov", "segmentation_net"),
        ("no weight decay", "student_net"),
        ("rates exchanged", "segmentation_net"),
        ("gamma 2", "segmentation_net"),
        ("no L1", "segmentation_net"),
    ],
)
def test_the_comparison_notices_a_mistake(mistake: str, part_of: str, small: State) -> None:
    wrong = reference(make_net(), LENGTHS, mistake)
    assert furthest(part(small, part_of), part(wrong, part_of)) > 1e-4


@pytest.mark.parametrize("kind", [SmallNet, DeSTSeg])
def test_lean_and_literal_loops_give_the_same_bits(kind: type[DeSTSeg]) -> None:
    recipe = LONGER if kind is SmallNet else TINY
    lean, literal = make_net(kind), make_net(kind)
    losses = fit(lean, recipe).losses
    loop = make_loop(literal, recipe, literal=True)
    assert isinstance(loop.steps, LiteralSteps)
    assert loop.order is torch.contiguous_format
    loop.order = torch.channels_last  # as lean steps; sums in another order differ in last bits
    literal.to(memory_format=torch.channels_last)
    state = RunState.fresh(recipe.steps)
    loop.fit(noise, state)
    assert np.array_equal(state.losses, losses)
    assert equal(snapshot(lean), snapshot(literal))


def passes(net: DeSTSeg, monkeypatch: pytest.MonkeyPatch, literal: bool) -> list[Counter[str]]:
    """Train two and two steps; return what each step computes."""
    done: list[Counter[str]] = []
    count: Counter[str] = Counter()

    def counted(name: str) -> Any:
        return lambda *arguments: count.update([name])

    def report(progress: StepReport) -> None:
        done.append(count.copy())
        count.clear()

    for name in ("teacher_net", "student_net", "segmentation_net"):
        getattr(net, name).register_forward_hook(counted(name))
    plain = literal_module.dest_map
    monkeypatch.setattr(
        literal_module, "dest_map", lambda *a: (count.update(["dest_map"]), plain(*a))[1]
    )
    fit(net, TINY, literal=literal, report=report)
    return done


def test_lean_steps_compute_nothing_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = {"teacher_net": 1, "student_net": 1}, {"segmentation_net": 1}
    assert passes(make_net(), monkeypatch, literal=False) == [one] * 2 + [{**one, **two}] * 2


def test_literal_steps_do_the_dead_work(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {"teacher_net": 2, "student_net": 1, "segmentation_net": 1, "dest_map": 1}
    assert passes(make_net(), monkeypatch, literal=True) == [everything] * 4


def gradients(kind: type[LeanSteps] | type[LiteralSteps], phase: str) -> dict[str, bool]:
    """Do one backward pass; tell in which networks a gradient arrived."""
    net = make_net()
    rule: Steps = kind(4.0)
    rule.enter(net, phase)
    image, clean, mask = next(noise(0, 1))
    torch.autograd.backward(rule.loss(net, phase, image / 99 - 1, clean / 99 - 1, mask))

    def arrived(part: nn.Module) -> bool:
        return any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())

    return {name: arrived(child) for name, child in net.named_children()}


@pytest.mark.parametrize(
    ("kind", "phase", "expected"),
    [
        (LeanSteps, "student", {"student_net"}),
        (LiteralSteps, "student", {"student_net"}),
        (LeanSteps, "segmentation", {"segmentation_net"}),
        (LiteralSteps, "segmentation", {"student_net", "segmentation_net"}),
    ],
)
def test_where_gradients_arrive(kind: Any, phase: str, expected: set[str]) -> None:
    assert {name for name, arrived in gradients(kind, phase).items() if arrived} == expected


@pytest.mark.parametrize("kind", [LeanSteps, LiteralSteps])
def test_modes_follow_the_phase(kind: Any) -> None:
    net = make_net()
    for phase in ("student", "segmentation", "student"):
        kind(4.0).enter(net, phase)
        assert net.student_net.training is (phase == "student")
        assert net.segmentation_net.training is (phase == "segmentation")
        assert not net.teacher_net.training
        assert not any(p.requires_grad for p in net.teacher_net.parameters())


# ---------------------------------------------------------------------------- losses


def features(seed: int) -> list[NDArray[np.float64]]:
    """Unit-length features of three levels, (2, C, H, W)."""
    rng = np.random.default_rng(seed)
    levels = [rng.standard_normal((2, c, s, s)) for c, s in ((6, 8), (12, 4), (24, 2))]
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in levels]


def test_student_loss_sums_over_levels_and_images() -> None:
    teacher, student = features(0), features(1)
    expected = 0.0
    for t, s in zip(teacher, student, strict=True):
        for image in range(2):
            expected += float(np.mean(1 - (t[image] * s[image]).sum(axis=0)))
    as_tensors = [[torch.from_numpy(x) for x in levels] for levels in (teacher, student)]
    assert abs(float(student_loss(*as_tensors)) - expected) < 1e-9
    assert expected > 1  # a mean over images or levels would be half or a third of it
    assert abs(float(student_loss(as_tensors[0], as_tensors[0]))) < 1e-9


def plain_segmentation_loss(
    p: NDArray[np.float64], mask: NDArray[np.float64], gamma: float
) -> float:
    """Masks are four times as large; bilinear then takes the middle two by two of each four."""
    n, _, h, w = p.shape
    blocks = mask.reshape(n, 1, h, 4, w, 4)[:, :, :, 1:3, :, 1:3]
    target = (blocks.mean(axis=(3, 5)) >= 0.5).astype(float)
    total = 0.0
    for probability, truth in zip(p.ravel(), target.ravel(), strict=True):
        right = probability if truth else 1 - probability
        total += -((1 - right) ** gamma) * math.log(right) + abs(probability - truth)
    return total / p.size


@pytest.mark.parametrize("gamma", [1.0, 2.0, 4.0])
def test_segmentation_loss_is_focal_plus_l1(gamma: float) -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.01, 0.99, (2, 1, 8, 6))
    mask = (rng.random((2, 1, 32, 24)) > 0.7).astype(float)
    logits = torch.from_numpy(np.log(p / (1 - p)))
    loss = segmentation_loss(logits, torch.from_numpy(mask), gamma)
    assert abs(float(loss) - plain_segmentation_loss(p, mask, gamma)) < 1e-9
    assert abs(float(loss) - plain_segmentation_loss(p, mask, gamma + 1)) > 1e-3
    assert abs(float(loss) - plain_segmentation_loss(p, 1 - mask, gamma)) > 1e-3


def official_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The official code's focal loss and L1: binary_cross_entropy cuts the logarithm at -100."""
    p = torch.sigmoid(logits)
    cross_entropy = functional.binary_cross_entropy(p, target, reduction="none")
    right = p * target + (1 - p) * (1 - target)
    return (cross_entropy * (1 - right) ** 4).mean() + functional.l1_loss(p, target)


def clamped_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The mistake: the logarithm cut at 1e-7, which is a logit of -16.1."""
    p = torch.sigmoid(logits)
    right = torch.where(target > 0, p, 1 - p)
    focal = -((1 - right) ** 4) * right.clamp_min(1e-7).log()
    return focal.mean() + functional.l1_loss(p, target)


def loss_and_gradient(loss: Any, logit: float, defect: bool, kind: Any) -> tuple[float, float]:
    logits = torch.full((1, 1, 2, 2), logit, dtype=kind, requires_grad=True)
    value = loss(logits, torch.full((1, 1, 2, 2), float(defect), dtype=kind))
    torch.autograd.backward(value)
    assert logits.grad is not None
    return float(value.detach()), float(logits.grad.sum())


def ours(logits: Tensor, target: Tensor) -> Tensor:
    return segmentation_loss(logits, target, 4.0)


@pytest.mark.parametrize("defect", [True, False])
@pytest.mark.parametrize("logit", [-12.0, -5.0, -1.0, 0.0, 0.3, 2.0, 7.0, 12.0])
def test_the_loss_and_its_gradient_are_the_official_ones(logit: float, defect: bool) -> None:
    expected = loss_and_gradient(official_loss, logit, defect, torch.float64)
    assert np.allclose(loss_and_gradient(ours, logit, defect, torch.float64), expected, rtol=1e-9)
    assert np.allclose(
        loss_and_gradient(ours, logit, defect, torch.float32), expected, rtol=1e-5, atol=1e-12
    )


@pytest.mark.parametrize(("logit", "defect"), [(-20.0, True), (20.0, False), (-80.0, True)])
def test_a_pixel_that_is_wrong_by_far_keeps_its_gradient(logit: float, defect: bool) -> None:
    wanted = -1.0 if defect else 1.0
    for kind in (torch.float32, torch.float64):
        value, gradient = loss_and_gradient(ours, logit, defect, kind)
        assert abs(gradient - wanted) < 1e-6
        assert abs(value - (abs(logit) + 1)) < 1e-4
    _, clamped = loss_and_gradient(clamped_loss, logit, defect, torch.float64)
    assert abs(clamped) < 1e-6, "control: the mistake is seen"


def test_segmentation_loss_is_zero_when_right_and_finite_when_wrong() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, :8] = 1
    right = (mask[:, :, ::4, ::4] - 0.5) * 1000
    assert float(segmentation_loss(right, mask, 4.0)) == 0
    wrong = (-right).requires_grad_()
    loss = segmentation_loss(wrong, mask, 4.0)
    torch.autograd.backward(loss)
    assert wrong.grad is not None
    assert wrong.grad.isfinite().all()
    assert float(loss.detach()) > 10
