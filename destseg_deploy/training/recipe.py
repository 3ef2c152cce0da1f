"""What is trained (``Recipe``) and how (``TrainingOptions``).

The options of the commands that train are made from these two dataclasses. A recipe's defaults are
the paper's values.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from destseg_deploy.data.synthesis import PAPER_ROTATIONS, ROTATIONS
from destseg_deploy.errors import TrainingError
from destseg_deploy.options import MOST_THREADS, Checked, option
from destseg_deploy.spec import MAX_NETWORK_SIDE, TilingSpec
from destseg_deploy.spec.tiling import MAX_SCALE

CROPS = ("anywhere", "grid")
DECAYS = ("none", "cosine")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MOST_STEPS = 10_000_000
"""Of a phase; the loss of each is kept. The paper's longer one has 4,000."""
PAPER = "paper"
"""Name of the paper's recipe."""

PRESET = "the preset's"
"""What counts where a value of the recipe is not given on the command line."""


@dataclass(frozen=True)
class Recipe(Checked):
    """Everything that decides what is trained. Defaults: the paper's supplement, section A.

    Attributes:
        name: Name of the schedule in reports.
        size: Height and width of the network's images, in pixels; of a tile, with a scale.
        scale: Train on tiles: pixels of the network per pixel of the frame. None trains on whole
            frames.
        overlap: Pixels of the network that neighbouring tiles of a frame share, at least. None
            takes a quarter of the size.
        crops: Where the tiles to train on lie in a frame: ``anywhere``; or ``grid``, exactly where
            the tiles of the exported graph lie, for parts that always lie the same way.
        batch_size: Images per step. The student's loss is summed over the batch, so its learning
            rate belongs to this number.
        student_steps: Steps of phase one.
        segmentation_steps: Steps of phase two.
        student_lr: Learning rate of the student.
        res_lr: Learning rate of the segmentation network's residual blocks.
        head_lr: Learning rate of its ASPP head.
        decay: ``none``, as the paper, or ``cosine``: down to zero within each phase.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        gamma: Exponent of the focal loss.
        rotation: Rotation of normal images, one of ``synthesis.ROTATIONS``. None takes the
            category's rotation in the paper, or ``none`` for what is not in the paper.
        holdout: Share of the normal images, in [0, 1), that is kept from training to set the
            threshold.
        top_k: Pixels of the map whose mean is the score, T of the paper. None takes the paper's
            100 at 256 px and the same share elsewhere.
        seed: Seed of weights, order and anomalies.
    """

    error = TrainingError

    name: str = PAPER
    size: int = option(
        256,
        "Image size of the network, in pixels; with --scale, the size of a tile.",
        unset=PRESET,
        name=("size", "tile"),
    )
    scale: float | None = option(
        None,
        "Train on tiles of frames of one size: pixels of the network per pixel of the frame.",
        unset="on whole frames, resized",
    )
    overlap: int | None = option(
        None,
        "With --scale: pixels of the network that neighbouring tiles share.",
        unset="a quarter of the tile",
    )
    crops: str = "anywhere"
    batch_size: int = option(32, "Images per step.", unset=PRESET)
    student_steps: int = 1000
    segmentation_steps: int = 4000
    student_lr: float = 0.4
    res_lr: float = 0.1
    head_lr: float = 0.01
    decay: str = option(
        "none",
        "Learning rates over each phase: constant, or down to zero.",
        choices=DECAYS,
        unset=PRESET,
    )
    momentum: float = 0.9
    weight_decay: float = 1e-4
    gamma: float = option(4.0, "Exponent of the focal loss.", unset=PRESET)
    rotation: str | None = option(
        None,
        "Rotation of normal images.",
        choices=ROTATIONS,
        unset="none; with --preset paper, a category of the paper has the paper's",
    )
    holdout: float = option(
        0.0,
        "Share of normal images that is kept from training to set the threshold.",
        unset=PRESET,
    )
    top_k: int | None = option(
        None,
        "Highest pixels of the map whose mean is the score; fewer for small defects, see "
        "destseg-evaluate --sweep-t.",
        unset="100 at 256 px, as in the paper, and the same share elsewhere",
    )
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with.

        Raises:
            TrainingError: With the field, its value, and what was expected.
        """
        super().__post_init__()
        good = 64 <= self.size <= MAX_NETWORK_SIDE and self.size % 32 == 0
        expected = f"a multiple of 32, from 64 to {MAX_NETWORK_SIDE}"
        check_option(good, "size", self.size, expected)  # before all images are read at that size
        self._check_tiles()
        # ASPP's pooled branch has one value per image, and BatchNorm cannot train on one value.
        check_option(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2 (BatchNorm)")
        for steps in (self.student_steps, self.segmentation_steps):
            check_option(steps >= 1, "steps", steps, "at least 1")
            check_option(steps <= MOST_STEPS, "steps", steps, f"at most {MOST_STEPS}")
        check_option(0 <= self.seed < 2**63, "seed", self.seed, "0 or more, below 2**63")
        self._check_rates()
        check_option(0 <= self.holdout < 1, "holdout", self.holdout, "a share in [0, 1)")
        good = self.top_k is None or 1 <= self.top_k <= self.size**2
        check_option(good, "top_k", self.top_k, f"1 to {self.size**2}, the pixels of the network")

    def _check_rates(self) -> None:
        for name in ("student_lr", "res_lr", "head_lr"):
            rate = getattr(self, name)
            check_option(0 < rate < math.inf, name, rate, "above 0")
        check_option(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        for name in ("weight_decay", "gamma"):
            value = getattr(self, name)
            check_option(0 <= value < math.inf, name, value, "at least 0")

    def _check_tiles(self) -> None:
        scale, overlap, tiled = self.scale, self.overlap, self.scale is not None
        good = scale is None or 0 < scale <= MAX_SCALE
        check_option(good, "scale", scale, f"more than 0 and at most {MAX_SCALE:g}")
        good = overlap is None or (tiled and 0 <= overlap < self.size)
        check_option(good, "overlap", overlap, f"0 to {self.size - 1}, and a scale with it")
        check_option(self.crops in CROPS, "crops", self.crops, " or ".join(CROPS))
        good = tiled or self.crops == CROPS[0]
        check_option(good, "crops", self.crops, f"{CROPS[0]}, or a scale with it")

    @property
    def tiling(self) -> TilingSpec | None:
        """How frames are cut; None for whole frames."""
        if self.scale is None:
            return None
        return TilingSpec(self.scale, self.size // 4 if self.overlap is None else self.overlap)

    def entries(self) -> dict[str, Any]:
        """Return the fields as plain values.

        Without tiles, those about tiles are left out, and so is a ``top_k`` that was not given:
        such a run is the same as one of an earlier version, which did not know them.
        """
        values = asdict(self)
        if self.scale is None:
            del values["scale"], values["overlap"], values["crops"]
        if self.top_k is None:
            del values["top_k"]
        return values

    @property
    def steps(self) -> int:
        """Steps of both phases."""
        return self.student_steps + self.segmentation_steps

    def for_category(self, category: str) -> Recipe:
        """Return the recipe with the paper's rotation of a category in place of None."""
        if self.rotation is not None:
            return self
        return replace(self, rotation=PAPER_ROTATIONS.get(category, "none"))


@dataclass(frozen=True)
class TrainingOptions(Checked):
    """How a recipe is trained: on which device, from which weights, with which records.

    Attributes:
        teacher_weights: ImageNet weights of the teacher; None for torchvision's file from the
            cache, downloaded when missing.
        teacher: ``imagenet``; ``random`` for demonstrations; or ``auto``: random weights where
            ImageNet's cannot be had.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast), or ``auto``: fp32 for the paper's
            recipe, and for others see ``pick_precision``. In fp32, a GPU's convolutions round their
            inputs to TF32 (10 bits of mantissa), which is PyTorch's default and the reference's.
        threads: CPU threads of a run; 0 for PyTorch's number. Another number changes the last
            bits of the result. A continued run takes the number that it began with.
        workers: Threads that decode textures ahead; with ``literal``, processes that prepare
            samples. The number does not change the result.
        compiled: Compile the networks with ``torch.compile``.
        literal: Train with the reference's loop, unused computations included: fp32, one image
            prepared at a time.
        region: The part of a frame that is inspected: ``x,y,width,height`` in its pixels, or the
            PNG file of a mask of its size, where 0 is outside. None for all of it.
        false_reject_rate: Share of good parts, in (0, 1), that the threshold from the held-out
            images may reject.
        tensorboard: Folder for TensorBoard; a run gets a subfolder with its checkpoint's name. None
            for no log.
        save_every: Seconds between two saved states.
        restart: Ignore an interrupted or finished run and train from the beginning.
    """

    error = TrainingError

    teacher_weights: Path | None = option(
        None,
        "ImageNet ResNet18, .pth or .safetensors.",
        metavar="FILE",
        unset="torchvision's, from its cache or downloaded",
    )
    teacher: str = option(
        "imagenet",
        "random needs no weights; auto uses random ones if ImageNet's cannot be found. Both are "
        "for demonstrations only.",
        choices=("imagenet", "auto", "random"),
    )
    device: str = "auto"
    precision: str = option(
        "auto",
        "auto: fp32 with --preset paper (on a GPU its convolutions in TF32, as the reference's), "
        "else autocast to the half precision that the device computes, if any.",
        choices=PRECISIONS,
    )
    threads: int = option(
        0,
        "CPU threads of a run, and on Ray the CPUs that it reserves. Another number changes the "
        "last bits of the result.",
        between=(0, MOST_THREADS),
        unset="PyTorch's choice here",
    )
    workers: int = option(2, "Threads that read textures ahead.", between=(0, MOST_THREADS))
    compiled: bool = option(False, "Compile the networks with torch.compile.", name="compile")
    literal: bool = option(
        False, "Train with the reference's loop, unused computations included, to compare with."
    )
    region: str | None = option(
        None,
        "Part of the frame that is inspected, in its pixels, or a mask of its size (0 is outside); "
        "frames must be of one size.",
        metavar="X,Y,WIDTH,HEIGHT|FILE",
        unset="all of it",
        name="roi",
    )
    false_reject_rate: float = 0.01
    tensorboard: Path | None = option(
        None, "Folder for TensorBoard: losses, rates, pictures.", metavar="FOLDER"
    )
    save_every: float = option(
        60.0,
        "Seconds between saved states; an interrupted run repeats what came after the last one.",
        between=(0, 10**9),
    )
    restart: bool = option(
        False, "Train from the beginning where a run was interrupted or finished."
    )

    def __post_init__(self) -> None:
        """Refuse what the training would fail on, if only at its end, as a wrong rate does.

        Raises:
            TrainingError: With the field, its value, and what was expected.
        """
        super().__post_init__()
        known = re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", self.device, re.ASCII) is not None
        check_option(known, "device", self.device, "auto, cpu, cuda or cuda:<index>")
        rate = self.false_reject_rate
        check_option(0 < rate < 1, "false_reject_rate", rate, "between 0 and 1")


def check_option(valid: bool, name: str, value: object, expected: str) -> None:
    """Refuse a value of the recipe or the options.

    Raises:
        TrainingError: If it is not valid.
    """
    if not valid:
        raise TrainingError(f"{name} is {value}, expected {expected}. Change that option.")


@dataclass(frozen=True)
class Phase:
    """A range of steps that trains one network.

    Attributes:
        name: ``student`` or ``segmentation``.
        start: Its first step, counted from the beginning of the run.
        stop: The step after its last.
    """

    name: str
    start: int
    stop: int


def phases(recipe: Recipe) -> tuple[Phase, Phase]:
    """Return the phases of a run: the student, then the segmentation network."""
    first, total = recipe.student_steps, recipe.steps
    return Phase("student", 0, first), Phase("segmentation", first, total)


def rate_factor(recipe: Recipe, phase: Phase, step: int) -> float:
    """Return the factor of the learning rates at a step, in [0, 1]; 1 without a decay."""
    if recipe.decay == "none":
        return 1.0
    done = (step - phase.start) / (phase.stop - phase.start)
    return 0.5 * (1 + math.cos(math.pi * done))


PRESETS = {
    PAPER: Recipe(),
    "quick": Recipe(
        name="quick",
        batch_size=3,  # with 2, BatchNorm of ASPP's pooled branch sees nothing but a sign
        student_steps=80,
        segmentation_steps=115,
        student_lr=3.2,
        res_lr=0.2,
        head_lr=0.1,
        decay="cosine",
        rotation="none",
        holdout=0.2,
    ),
}
"""``paper`` reproduces the paper's tables, on a GPU; ``quick`` takes minutes on a CPU."""


def make_recipe(preset: str = PAPER, **changes: Any) -> Recipe:
    """Return a preset with some of its values changed; None leaves a value unchanged.

    A recipe with a changed schedule is named ``custom``, so that reports never call it the paper's.
    Seed, rotation, held-out images and the score do not belong to the schedule. A larger batch
    lowers the student's learning rate unless that is given, too: its loss is summed over the batch.

    Raises:
        TrainingError: If the preset is unknown or a value cannot be trained with.
    """
    if preset not in PRESETS:
        raise TrainingError(f"preset {preset!r}: expected one of {', '.join(PRESETS)}.")
    given = {name: value for name, value in changes.items() if value is not None}
    base = PRESETS[preset]
    if (batch := given.get("batch_size", 0)) > base.batch_size:
        given = {"student_lr": base.student_lr * base.batch_size / batch, **given}
    recipe = replace(base, **given)
    same = {name: getattr(base, name) for name in ("seed", "rotation", "holdout", "top_k")}
    return recipe if replace(recipe, **same) == base else replace(recipe, name="custom")
