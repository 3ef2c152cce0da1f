"""Training: the paper's two phases, each step what the reference does and no more."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from destseg_deploy import training
from destseg_deploy.data.images import read_image
from destseg_deploy.data.loader import AnomalyDataset, batches, list_textures
from destseg_deploy.data.mvtec import list_train
from destseg_deploy.errors import (
    BackendError,
    DataError,
    DestsegError,
    TrainingError,
    WeightsError,
)
from destseg_deploy.models.destseg import DeSTSeg, Teacher
from destseg_deploy.models.weights import fit_statistics, load_checkpoint, load_teacher
from destseg_deploy.predictor import Predictor
from destseg_deploy.recipe import Recipe
from destseg_deploy.runtime.pytorch import PyTorchRuntime
from destseg_deploy.spec import ModelSpec
from destseg_deploy.training import (
    Progress,
    pick_device,
    segmentation_loss,
    split_holdout,
    student_loss,
    train,
)

State = dict[str, Tensor]
TINY = Recipe(
    name="tiny",
    size=64,
    batch_size=2,
    student_steps=2,
    segmentation_steps=2,
    rotation="slight",
    holdout=0.3,
)


def snapshot(net: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def part(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key.startswith(name)}


def equal(a: State, b: State) -> bool:
    return list(a) == list(b) and all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def furthest(a: State, b: State) -> float:
    """Return the largest difference of two states, of values around 0.01 to 1."""
    return max(float((tensor.double() - b[key].double()).abs().max()) for key, tensor in a.items())


@dataclass
class Trained:
    """What a run left, and what its networks were before, between and after the phases."""

    path: Path
    spec: ModelSpec
    before: State
    between: State
    after: State
    reports: list[Progress] = field(default_factory=list)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose features differ between images, though nobody trained it."""
    torch.manual_seed(3)
    teacher = Teacher()
    fit_statistics(teacher, torch.randn(8, 3, 64, 64))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(teacher.encoder.state_dict(), path)
    return path


def run(category: Path, output: Path, teacher_file: Path, recipe: Recipe = TINY) -> Trained:
    """Train, and look at the networks on the way."""
    nets: list[DeSTSeg] = []
    states: list[State] = []
    reports: list[Progress] = []

    def build() -> DeSTSeg:
        nets.append(DeSTSeg())
        states.append(snapshot(nets[0]))
        return nets[0]

    def report(progress: Progress) -> None:
        reports.append(progress)
        if progress.done == recipe.student_steps:
            states.append(snapshot(nets[0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "DeSTSeg", build)
        spec = train(
            category,
            output,
            recipe,
            teacher_weights=teacher_file,
            device="cpu",
            precision="fp32",
            report=report,
        )
    before, between = states
    return Trained(output, spec, before, between, snapshot(nets[0]), reports)


@pytest.fixture(scope="module")
def trained(
    category: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    """A whole run, written to disk."""
    result = run(category, tmp_path_factory.mktemp("run") / "new/cable.safetensors", teacher_file)
    yield result
    result.path.unlink()  # 140 MB


@pytest.fixture(scope="module")
def used(trained: Trained, category: Path) -> list[Path]:
    """The images that the run was trained on."""
    held_out = trained.spec.training["held_out"]
    return [path for path in list_train(category) if path.name not in held_out]


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are not written, to save time."""
    monkeypatch.setattr(training, "save_checkpoint", lambda model, spec, path: spec)


# ---------------------------------------------------------------------------- a whole run


@pytest.mark.usefixtures("unwritten")
def test_the_same_seed_gives_the_same_bits(
    trained: Trained, category: Path, teacher_file: Path, tmp_path: Path
) -> None:
    again = run(category, tmp_path / "cable.safetensors", teacher_file)
    assert equal(trained.after, again.after)
    assert trained.spec.training["losses"] == again.spec.training["losses"]
    assert trained.spec.threshold == again.spec.threshold


@pytest.mark.usefixtures("unwritten")
def test_another_seed_gives_another_model(
    trained: Trained, category: Path, teacher_file: Path, tmp_path: Path
) -> None:
    recipe = replace(TINY, seed=1)
    other = run(category, tmp_path / "cable.safetensors", teacher_file, recipe)
    for name in ("student_net", "segmentation_net"):
        assert furthest(part(trained.before, name), part(other.before, name)) > 0.01
        assert furthest(part(trained.after, name), part(other.after, name)) > 0.01
    assert other.reports[0].loss != trained.reports[0].loss


def test_the_teacher_is_the_files_and_never_changes(trained: Trained, teacher_file: Path) -> None:
    teacher = Teacher()
    load_teacher(teacher, teacher_file)
    expected = {f"teacher_net.{name}": tensor for name, tensor in teacher.state_dict().items()}
    assert equal(part(trained.between, "teacher_net"), expected)
    assert equal(part(trained.after, "teacher_net"), expected)


def test_phase_one_trains_the_student_alone(trained: Trained) -> None:
    assert equal(
        part(trained.before, "segmentation_net"), part(trained.between, "segmentation_net")
    )
    student = part(trained.between, "student_net")
    moved = [name for name, t in student.items() if not torch.equal(t, trained.before[name])]
    assert len(moved) == len(student)
    assert {int(t) for n, t in student.items() if n.endswith("num_batches_tracked")} == {2}


def test_phase_two_trains_the_segmentation_alone(trained: Trained) -> None:
    assert equal(part(trained.between, "student_net"), part(trained.after, "student_net"))
    segmentation = part(trained.after, "segmentation_net")
    moved = [name for name, t in segmentation.items() if not torch.equal(t, trained.before[name])]
    assert len(moved) == len(segmentation)
    assert {int(t) for n, t in segmentation.items() if n.endswith("num_batches_tracked")} == {2}


def test_progress_counts_both_phases(trained: Trained) -> None:
    assert [(p.phase, p.done, p.total) for p in trained.reports] == [
        ("student", 1, 4),
        ("student", 2, 4),
        ("segmentation", 3, 4),
        ("segmentation", 4, 4),
    ]
    assert all(math.isfinite(p.loss) for p in trained.reports)


def test_the_checkpoint_is_what_was_trained(trained: Trained) -> None:
    model, spec = load_checkpoint(trained.path)
    assert equal(snapshot(model), trained.after)
    assert spec == trained.spec
    assert (spec.category, spec.size, spec.precision) == ("cable", (64, 64), "fp32")
    assert spec.teacher["file"] == "teacher.safetensors"
    assert {path.name for path in trained.path.parent.iterdir()} == {
        "cable.safetensors",
        "cable.json",
    }


def test_the_spec_says_how_it_was_trained(trained: Trained, category: Path) -> None:
    record = trained.spec.training
    assert Recipe(**record["recipe"]) == TINY
    assert record["data"] == str(category)
    assert record["images"] == 4
    assert len(record["held_out"]) == 2
    assert record["textures"] == "procedural"
    assert (record["device"], record["precision"]) == ("cpu", "fp32")
    assert record["seconds"] > 0
    assert record["losses"] == {
        "student": trained.reports[1].loss,
        "segmentation": trained.reports[3].loss,
    }


def test_a_holdout_gives_a_threshold(trained: Trained) -> None:
    threshold = trained.spec.threshold
    assert threshold is not None
    assert threshold.images == 2
    assert "2 normal images" in threshold.rule


@pytest.mark.usefixtures("unwritten")
def test_the_threshold_comes_from_the_images_held_out(
    model: DeSTSeg, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored by a model that tells images apart, as four steps of training do not."""
    net = copy.deepcopy(model)
    monkeypatch.setattr(training, "DeSTSeg", lambda: net)
    monkeypatch.setattr(training, "fit_statistics", lambda teacher, images: None)
    monkeypatch.setattr(training._Run, "fit", lambda run, stream, report: {})
    recipe = replace(TINY, holdout=0.5)
    spec = train(
        category, tmp_path / "a", recipe, teacher="random", device="cpu", false_reject_rate=0.5
    )
    held_out = [p for p in list_train(category) if p.name in spec.training["held_out"]]
    frames = [read_image(path) for path in held_out]
    prediction = Predictor(PyTorchRuntime(copy.deepcopy(model), spec))(frames)
    assert len(set(prediction.score.tolist())) == 3
    assert spec.threshold is not None
    assert spec.threshold.score == pytest.approx(sorted(prediction.score)[1], abs=2e-4)
    peaks = prediction.anomaly_map.max(axis=(1, 2))
    assert spec.threshold.pixel == pytest.approx(sorted(peaks)[1], abs=2e-4)
    assert np.diff(sorted(prediction.score)).min() > 1e-3


# ---------------------------------------------------------------------------- lean or literal


def unit(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (length + 1e-12)


def bilinear(x: Tensor, size: Any) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def literal(images: list[Path], teacher_file: Path, recipe: Recipe, mistake: str = "") -> State:
    """Train as methods.md 3.1.7 has it, every network in every step, or with a mistake in it."""
    torch.manual_seed(recipe.seed)
    net = DeSTSeg()
    load_teacher(net.teacher_net, teacher_file)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    res, head = net.segmentation_net.res, net.segmentation_net.head
    student_sgd = SGD(net.student_net.parameters(), lr=0.4, momentum=0.9, weight_decay=1e-4)
    segmentation_sgd = SGD(
        [{"params": res.parameters(), "lr": 0.1}, {"params": head.parameters(), "lr": 0.01}],
        lr=0.001,
        momentum=0.9,
        weight_decay=1e-4,
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    samples = AnomalyDataset(
        images, None, (64, 64), rotation=str(recipe.rotation), seed=recipe.seed, samples=8
    )
    for step, (image, clean, mask) in enumerate(batches(samples, 2)):
        first = step < 2
        net.student_net.train(first or mistake == "student not in eval mode")
        net.segmentation_net.train(not first)
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
        segmentation = net.segmentation_net(torch.cat(products, 1))
        if first:
            loss = torch.zeros(())
            for t, s in zip(target, student, strict=True):
                distance = 1 - (t * s).sum(1)
                loss = loss + distance.sum() / (distance.shape[1] * distance.shape[2])
            student_sgd.zero_grad()
            torch.autograd.backward(loss)
            student_sgd.step()
        else:
            truth = (bilinear(mask, (16, 16)) >= 0.5).float()
            p = truth * segmentation + (1 - truth) * (1 - segmentation)
            focal = (-((1 - p) ** 4) * p.log()).mean()
            segmentation_sgd.zero_grad()
            torch.autograd.backward(focal + (segmentation - truth).abs().mean())
            segmentation_sgd.step()
    return snapshot(net)


def test_lean_steps_give_the_literal_parameters(
    trained: Trained, used: list[Path], teacher_file: Path
) -> None:
    """No segmentation in phase one and no gradient into the student in phase two: no difference."""
    expected = literal(used, teacher_file, TINY)
    assert furthest(trained.after, expected) < 1e-5
    assert furthest(trained.after, trained.before) > 1


@pytest.mark.parametrize(
    ("mistake", "part_of"),
    [
        ("teacher sees the corrupted image", "student_net"),
        ("student not in eval mode", "segmentation_net"),
    ],
)
def test_the_comparison_notices_a_mistake(
    mistake: str, part_of: str, trained: Trained, used: list[Path], teacher_file: Path
) -> None:
    wrong = literal(used, teacher_file, TINY, mistake)
    assert furthest(part(trained.after, part_of), part(wrong, part_of)) > 1e-2


@pytest.mark.usefixtures("unwritten")
def test_bf16_is_near_and_not_the_same(
    trained: Trained, category: Path, teacher_file: Path, tmp_path: Path
) -> None:
    reports: list[Progress] = []
    spec = train(
        category,
        tmp_path / "cable.safetensors",
        replace(TINY, student_steps=1, segmentation_steps=1, holdout=0.0),
        teacher_weights=teacher_file,
        device="cpu",
        precision="bf16",
        report=reports.append,
    )
    assert spec.training["precision"] == "bf16"
    assert spec.threshold is None
    fp32 = replace(TINY, student_steps=1, segmentation_steps=1, holdout=0.0)
    other = run(category, tmp_path / "cable.safetensors", teacher_file, fp32)
    for half, full in zip(reports, other.reports, strict=True):
        assert half.loss != full.loss
        assert abs(half.loss / full.loss - 1) < 0.05


# ---------------------------------------------------------------------------- the schedule


class Stub(nn.Module):
    """Three networks of one or two weights, for what does not depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher_net = nn.Identity()
        self.student_net = nn.Linear(1, 1)
        self.segmentation_net = nn.Module()
        self.segmentation_net.res = nn.Linear(1, 1)
        self.segmentation_net.head = nn.Linear(1, 1)


class Rates(SGD):
    """Writes down every step's learning rates."""

    log: ClassVar[list[tuple[float, ...]]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure here
        self.log.append(tuple(group["lr"] for group in self.param_groups))
        super().step(closure)


@pytest.fixture
def rehearse(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Progress]]:
    """Run the schedule with given losses, one after another, in place of the networks' own."""
    monkeypatch.setattr(training, "DeSTSeg", Stub)
    monkeypatch.setattr(training, "SGD", Rates)
    monkeypatch.setattr(Rates, "log", [])

    def go(losses: list[float], output: Path | None = None, **changes: Any) -> list[Progress]:
        remaining = iter(losses)

        def step(self: Any, batch: object) -> Tensor:
            net = self.model
            weights = (net.student_net, net.segmentation_net.res, net.segmentation_net.head)
            total: Tensor = sum(module.weight.sum() for module in weights)
            return total * 0 + next(remaining)

        monkeypatch.setattr(training._Run, "_student_step", step)
        monkeypatch.setattr(training._Run, "_segmentation_step", step)
        if output is None:
            monkeypatch.setattr(training, "save_checkpoint", lambda model, spec, path: spec)
        recipe = replace(TINY, **{"holdout": 0.0, **changes})
        reports: list[Progress] = []
        train(
            category,
            output or tmp_path / "cable.safetensors",
            recipe,
            teacher="random",
            device="cpu",
            report=reports.append,
        )
        assert next(remaining, None) is None
        return reports

    return go


def test_rates_are_the_papers_and_constant(rehearse: Callable[..., list[Progress]]) -> None:
    rehearse([1.0] * 5, student_steps=2, segmentation_steps=3)
    assert Rates.log == [(0.4,)] * 2 + [(0.1, 0.01)] * 3


def test_cosine_goes_down_to_zero_within_each_phase(
    rehearse: Callable[..., list[Progress]],
) -> None:
    rehearse([1.0] * 6, student_steps=2, segmentation_steps=4, decay="cosine")
    factors = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    expected = [(0.4,), (0.2,), *[(0.1 * f, 0.01 * f) for f in factors]]
    assert [len(rates) for rates in Rates.log] == [1, 1, 2, 2, 2, 2]
    for rates, wanted in zip(Rates.log, expected, strict=True):
        assert rates == pytest.approx(wanted)


def test_optimizers_hold_what_they_train(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SGD] = []

    class Kept(SGD):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(training, "SGD", Kept)
    net: Any = Stub()
    training._Run(net, Recipe(), torch.device("cpu"), None).fit(iter([]), stop)
    student, segmentation = made
    assert student.param_groups[0]["params"] == list(net.student_net.parameters())
    assert [group["params"] for group in segmentation.param_groups] == [
        list(net.segmentation_net.res.parameters()),
        list(net.segmentation_net.head.parameters()),
    ]
    for group in (*student.param_groups, *segmentation.param_groups):
        assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
        assert not group["nesterov"]
        assert not group["dampening"]


def test_the_loss_is_read_every_ten_steps_and_at_the_end(
    rehearse: Callable[..., list[Progress]],
) -> None:
    reports = rehearse(
        [float(i) for i in range(13)] + [100.0], student_steps=13, segmentation_steps=1
    )
    assert [p.loss for p in reports] == [0.0] * 10 + [10.0, 10.0, 12.0, 100.0]


@pytest.mark.parametrize(
    ("losses", "phase", "step"),
    [
        ([math.nan] * 12 + [1.0], "student", 1),
        ([1.0] * 3 + [math.nan] * 9 + [1.0], "student", 11),
        ([1.0] * 11 + [math.inf, 1.0], "student", 12),
        ([1.0] * 12 + [math.nan], "segmentation", 1),
    ],
)
def test_a_loss_that_is_not_finite_stops_and_writes_nothing(
    losses: list[float],
    phase: str,
    step: int,
    rehearse: Callable[..., list[Progress]],
    tmp_path: Path,
) -> None:
    output = tmp_path / "artifacts/cable.safetensors"
    with pytest.raises(TrainingError, match=rf"the {phase} loss is (nan|inf) at step {step}\."):
        rehearse(losses, output, student_steps=12, segmentation_steps=1)
    assert not output.parent.exists()


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
    loss = segmentation_loss(torch.from_numpy(p), torch.from_numpy(mask), gamma)
    assert abs(float(loss) - plain_segmentation_loss(p, mask, gamma)) < 1e-9
    assert abs(float(loss) - plain_segmentation_loss(p, mask, gamma + 1)) > 1e-3
    assert abs(float(loss) - plain_segmentation_loss(p, 1 - mask, gamma)) > 1e-3


def test_segmentation_loss_is_zero_when_right_and_finite_when_wrong() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, :8] = 1
    right = mask[:, :, ::4, ::4].clone()
    assert float(segmentation_loss(right, mask, 4.0)) == 0
    wrong = (1 - right).requires_grad_()
    loss = segmentation_loss(wrong, mask, 4.0)
    torch.autograd.backward(loss)
    assert wrong.grad is not None
    assert wrong.grad.isfinite().all()
    assert float(loss.detach()) > 10


# ---------------------------------------------------------------------------- holdout


@given(count=st.integers(1, 400), share=st.floats(0, 0.99))
def test_holdout_splits_evenly(count: int, share: float) -> None:
    images = [Path(f"{i:03d}.png") for i in range(count)]
    wanted = math.ceil(share * count)
    if wanted >= count:
        with pytest.raises(TrainingError, match="leaves none to train on"):
            split_holdout(images, share)
        return
    kept, held_out = split_holdout(images, share)
    assert len(held_out) == wanted
    assert sorted([*kept, *held_out]) == images
    assert kept == sorted(kept)
    assert held_out == sorted(held_out)
    places = [-1, *(images.index(path) for path in held_out), count]
    if wanted:
        assert max(np.diff(places)) <= count / wanted + 1


def test_no_holdout_keeps_all() -> None:
    images = [Path("0.png")]
    assert split_holdout(images, 0.0) == (images, [])


# ---------------------------------------------------------------------------- options


class Stop(Exception):
    """Ends a run where a test has seen enough."""


def stop(*args: object, **options: object) -> None:
    raise Stop


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "cuda"}, BackendError, "device 'cuda': this PyTorch .* sees no CUDA GPU"),
        ({"precision": "fp16"}, TrainingError, "precision is fp16, expected auto, fp32, bf16"),
        ({"false_reject_rate": 0.0}, TrainingError, r"false_reject_rate is 0\.0, expected between"),
        ({"false_reject_rate": 1.0}, TrainingError, r"false_reject_rate is 1\.0, expected between"),
        ({"textures": Path("gone")}, DataError, "gone: no texture images"),
        ({"teacher_weights": Path("gone.pth")}, WeightsError, r"gone\.pth: no such file"),
        ({"teacher": "imagenet22k"}, WeightsError, "'imagenet22k': expected one of"),
    ],
)
def test_wrong_options_are_refused_before_training(
    options: dict[str, Any],
    error: type[DestsegError],
    message: str,
    category: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(training._Run, "fit", stop)
    with pytest.raises(error, match=message):
        train(category, tmp_path / "out/cable.safetensors", TINY, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_category_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cable: no such folder"):
        train(tmp_path / "cable", tmp_path / "cable.safetensors", TINY, device="cpu")


@pytest.mark.parametrize(
    ("name", "rotation", "expected"),
    [
        ("cable", None, "slight"),
        ("screw", None, "full"),
        ("capsule", None, "none"),
        ("my_part", None, "slight"),
        ("screw", "none", "none"),
    ],
)
def test_rotation_is_the_categorys_unless_chosen(
    name: str,
    rotation: str | None,
    expected: str,
    category: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def record(*args: object, **options: Any) -> None:
        seen.update(options)
        raise Stop

    monkeypatch.setattr(training, "DeSTSeg", Stub)
    monkeypatch.setattr(training, "AnomalyDataset", record)
    (tmp_path / name).symlink_to(category)
    with pytest.raises(Stop):
        train(
            tmp_path / name,
            tmp_path / "out.safetensors",
            replace(TINY, rotation=rotation, seed=5),
            teacher="random",
            device="cpu",
        )
    assert seen == {"rotation": expected, "seed": 5, "samples": 8}


def test_a_folder_of_textures_is_passed_on(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def record(*args: object, **options: Any) -> None:
        seen.extend(args)
        raise Stop

    monkeypatch.setattr(training, "DeSTSeg", Stub)
    monkeypatch.setattr(training, "AnomalyDataset", record)
    textures = category / "test"
    with pytest.raises(Stop):
        train(category, tmp_path / "a", TINY, textures=textures, teacher="random", device="cpu")
    images, files, size = seen
    assert len(images) == 4
    assert files == list_textures(textures)
    assert size == (64, 64)


def test_auto_takes_cuda_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        assert pick_device("auto") == torch.device(expected)
        assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(BackendError, match="device 'cuda:1'"):
        pick_device("cuda:1")


@pytest.mark.parametrize(
    ("precision", "capable", "expected"),
    [
        ("fp32", True, None),
        ("bf16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, None),
    ],
)
def test_auto_takes_bf16_where_it_is_there(
    precision: str, capable: bool, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: capable)
    assert training._autocast_type(precision, torch.device("cpu")) is expected
