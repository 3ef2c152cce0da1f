"""What a bare GPU host is to show, in the order in which its minutes are best used.

``rehearse`` runs everything once for a short time, so that what fails is mended before the minutes
of ``record`` are spent: the paper's whole schedule, and the numbers. ``full`` is both and more
seeds. Where the device is a CPU, each step has a stand-in of a small size: the same commands and
options, so that none of them can fail on the GPU for the first time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from destseg_bench.gpu_run import Step

PROFILES = ("rehearse", "record", "full")

TESTS = (
    "tests/deploy/runtime/test_contract.py",
    "tests/deploy/runtime/torch_gpu",
    "tests/deploy/runtime/cuda",
    "tests/deploy/runtime/ort",
    "tests/deploy/training/test_gpu.py",
    "tests/deploy/training/test_device_loader.py",
    "tests/deploy/training/test_synthesis_torch.py",
    "tests/deploy/training/test_texture_bank.py",
    "tests/bench/speed/test_latency.py",
)
"""Files with tests for a GPU. Named, since collecting all takes half a minute."""


@dataclass(frozen=True)
class Scale:
    """How large the steps are.

    Attributes:
        size: Of the network of the random model, in pixels.
        batches: Of latencies.
        rounds: Timed calls.
        schedule: Options of a training of the paper's schedule; small on a CPU.
        short: Options of a training that only shows that it runs.
        steps: Steps of the training's speed.
    """

    size: int
    batches: str
    rounds: int
    schedule: tuple[str, ...]
    short: tuple[str, ...]
    steps: int


PAPER = ("--preset", "paper", "--precision", "bf16", "--save-every", "600")
"""The paper's schedule in half precision: 4,670 of its 5,000 steps took 165 s on an H200, and in
TF32 they might not end within the step's limit. The checkpoint's spec names the precision. No state
is saved within a phase, since nobody continues a training that was stopped there."""
SMALL = ("--size", "64", "--batch-size", "2", "--steps", "2,2")
SCALES = {
    "cuda": Scale(256, "1,8,32", 50, PAPER, ("--steps", "20,20"), 10),
    "cpu": Scale(64, "1,2", 2, SMALL, SMALL, 1),
}


@dataclass(frozen=True)
class Site:
    """Where the steps run, and on what.

    Attributes:
        output: Folder for everything that is written.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        data: Folder that holds the category; None for a drawn one.
        category: Its name; None for screw, or for the drawn one.
        textures: Folder of textures; None for procedural ones.
        teacher_weights: ImageNet weights; None for a random teacher.
        tests: The checkout, with the project's tests; None if they are not here.
        workers: Processes that prepare the literal loop's samples.
    """

    output: Path
    device: str = "cuda"
    data: Path | None = None
    category: str | None = None
    textures: Path | None = None
    teacher_weights: Path | None = None
    tests: Path | None = None
    workers: int = 14

    @property
    def scale(self) -> Scale:
        """How large the steps are here."""
        return SCALES[self.device.partition(":")[0]]

    @property
    def folder(self) -> Path:
        """The category's folder, which may be drawn by a step."""
        if self.data is None:
            return self.output / "data" / "cable"
        return self.data / (self.category or "screw")

    @property
    def images(self) -> Path:
        """The category's test images."""
        return self.folder / "test"

    def training(self) -> list[str]:
        """Return the options of what is trained on and from which teacher."""
        words = ["--category", self.folder.name, "--data", str(self.folder.parent)]
        words += ["--device", self.device]
        if self.textures is not None:
            words += ["--textures", str(self.textures)]
        if self.teacher_weights is not None:
            return [*words, "--teacher-weights", str(self.teacher_weights)]
        return [*words, "--teacher", "random"]


def list_steps(profile: str, site: Site) -> list[Step]:
    """Return the steps of a profile, one of ``PROFILES``."""
    rates, drawn = _bench(site, "rates", 60), _random_model(site)
    if profile == "rehearse":
        return [rates, drawn, *_rehearsal(site)]
    record = _record(site)
    if profile == "record":
        return _joined([rates, *([drawn] if site.data is None else [])], record)
    earlier = [rates, drawn, *_rehearsal(site)]
    return [*_joined(earlier, record), _train(site, "more seeds", "1,2", 600)]


def _joined(earlier: list[Step], later: list[Step]) -> list[Step]:
    """Put steps behind others, but for those that are among these already."""
    names = {step.name for step in earlier}
    return [*earlier, *(step for step in later if step.name not in names)]


def _rehearsal(site: Site) -> list[Step]:
    model = site.output / "random.safetensors"
    # The drawn category is what the random model fits, and it is scored in seconds.
    drawn = replace(site, data=None)
    tests = _tests(site)
    return [
        *tests,
        # Without tests, the step before is the one that makes the model.
        *_exports(drawn, model, limit=150, beside=bool(tests)),
        _agreement(drawn, model, "agreement", limit=60),
        replace(_train(site, "short training", "0", 90, site.scale.short), beside=True),
        _latency(drawn, model, "latency", limit=180),
        _training_speed(site, "short training speed", 90),
    ]


def _record(site: Site) -> list[Step]:
    trained = site.output / "trained" / f"{site.folder.name}.safetensors"
    return [
        _train(site, "training", "0", 300),
        _pack(site, trained),
        *_exports(site, trained, limit=150, beside=True),
        _agreement(site, trained, "agreement of the trained", limit=90),
        _table_s4(site),
        _latency(site, trained, "latency compiled", "--compiled", limit=180),
        _training_speed(site, "training speed", 90),
        *_untrained(site, trained),
    ]


def _untrained(site: Site, trained: Path) -> list[Step]:
    """Return what times random weights where the training has ended without a model."""
    model, drawn = site.output / "random.safetensors", replace(site, data=None)
    steps = [
        _random_model(site),
        *_exports(drawn, model, limit=150, beside=False),
        _latency(drawn, model, "latency compiled of random weights", "--compiled", limit=180),
    ]
    return [replace(step, unless=(trained,)) for step in steps]


def _python(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", module, *words]


def _bench(site: Site, command: str, limit: float, *words: str, name: str = "") -> Step:
    name = name or command
    result = site.output / f"{name.replace(' ', '-')}.json"
    call = [command, *words, "--output", str(result)]
    if "--device" not in words:
        call += ["--device", site.device]
    return Step(name, _python("destseg_bench", *call), limit, result)


def _random_model(site: Site) -> Step:
    words = ["random-model", "--output", str(site.output), "--size", str(site.scale.size)]
    return Step("random model", _python("destseg_bench", *words), 60)


def _tests(site: Site) -> list[Step]:
    if site.tests is None:
        return []
    files = [str(site.tests / name) for name in TESTS]
    # Some tests keep what they make in pytest's cache.
    cache = f"cache_dir={site.output / 'pytest'}"
    options = ["-m", "gpu", "-q", "-ra", "-o", cache, "--rootdir", str(site.tests)]
    return [Step("tests on the GPU", _python("pytest", *options, *files), 180)]


def _exports(site: Site, model: Path, *, limit: float, beside: bool) -> list[Step]:
    """Return both exports, beside each other; ``beside`` also starts them with the step before."""
    words = ["--checkpoint", str(model), "--output", str(model.parent), "--format", "onnx"]
    words += ["--batch", "1:8:32", "--verify-images", str(site.images)]
    return [
        Step(
            f"export {model.stem} {precision}",
            _python("destseg_export", *words, "--precision", precision),
            limit,
            needs=(model,),
            beside=beside or precision != "fp32",
        )
        for precision in ("fp32", "fp16")
    ]


def _artifacts(model: Path) -> list[Path]:
    return [model, *(model.with_name(f"{model.stem}-{p}.onnx") for p in ("fp32", "fp16"))]


def _on_artifacts(step: Step, model: Path) -> Step:
    return replace(step, needs=(model,), takes=_artifacts(model)[1:])


def _agreement(site: Site, model: Path, name: str, *, limit: float) -> Step:
    words = [*map(str, _artifacts(model)), "--data", str(site.folder), "--half", "fp16"]
    return _on_artifacts(_bench(site, "agreement", limit, *words, name=name), model)


def _latency(site: Site, model: Path, name: str, *options: str, limit: float) -> Step:
    scale = site.scale
    words = [*map(str, _artifacts(model)), "--images", str(site.images), "--rates"]
    words += ["--batch", scale.batches, "--rounds", str(scale.rounds), *options]
    return _on_artifacts(_bench(site, "latency", limit, *words, name=name), model)


def _train(site: Site, name: str, seeds: str, limit: float, how: Sequence[str] = ()) -> Step:
    folder = site.output / ("short" if how else "trained")
    options = how or site.scale.schedule
    words = [*site.training(), "--seeds", seeds, "--train-into", str(folder), *options]
    return _bench(site, "accuracy", limit, *words, name=name)


def _training_speed(site: Site, name: str, limit: float) -> Step:
    words = [*site.training(), "--steps", str(site.scale.steps), "--rounds", "3"]
    words += ["--workers", str(site.workers)]
    if site.device == "cpu":
        words += ["--size", "64", "--batch-size", "2"]
    return _bench(site, "training", limit, *words, name=name)


def _pack(site: Site, trained: Path) -> Step:
    words = ["pack", str(trained), "--output", str(site.output / "parts")]
    return Step("pack", _python("destseg_bench", *words), 30, needs=(trained,))


def _table_s4(site: Site) -> Step:
    words = ["--category", site.folder.name, "--data", str(site.folder.parent)]
    words += ["--batch", site.scale.batches, "--training-rounds", "1", "--system", "all"]
    words += ["--tf32"]  # as torch does unless asked
    words += ["--rounds", str(min(site.scale.rounds, 20))]
    if site.textures is not None:
        words += ["--textures", str(site.textures)]
    return _bench(site, "table-s4", 120, *words)
