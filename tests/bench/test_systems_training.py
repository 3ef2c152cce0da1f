"""Training of compared systems: stages, gradients, projections, and that learning happens."""

import statistics
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from destseg_bench.baselines.catalogue import OPENERS, open_system
from destseg_bench.baselines.destseg import QUICK
from destseg_bench.baselines.fitting import fit
from destseg_bench.baselines.frames import TrainingFrames
from destseg_bench.baselines.inference_time import STAGES, time_inference
from destseg_bench.baselines.scoring import score_system
from destseg_bench.baselines.stpm import matching_loss
from destseg_bench.baselines.system import Facts, Stage, Task
from destseg_bench.baselines.training_time import time_training
from destseg_deploy.data.mvtec import list_test, list_train
from destseg_deploy.errors import BackendError, DataError
from destseg_deploy.evaluation import compute_metrics

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task(category):
    return Task(category, tuple(list_train(category)), "quick", pretrained=False)


@dataclass
class Brightness:
    """A system that knows the mean brightness of normal images; every call is noted."""

    stage_steps: tuple[int, ...] = (2, 5)
    log: list = field(default_factory=list)
    facts = Facts("Brightness", "none")
    size = (32, 32)
    window = 0.5
    weights = "none"

    def modules(self):
        return ()

    def stages(self):
        def stage(number, steps):
            note = self.log.append
            return Stage(
                f"s{number}",
                steps,
                4,
                lambda i: (note((number, i)), torch.tensor(1 / (1 + i)))[1],
                lambda: note((number, "begin")),
                lambda: note((number, "end")),
            )

        return [stage(i, steps) for i, steps in enumerate(self.stage_steps)]

    def stand_in(self):
        pass

    def prepare(self, frame):
        top, left = frame.shape[0] // 2 - 16, frame.shape[1] // 2 - 16
        part = frame[top : top + 32, left : left + 32].astype(np.float32)
        return np.ascontiguousarray(part.transpose(2, 0, 1))

    def network(self, images):
        return (images.mean(dim=1),)

    def answer(self, outputs):
        return outputs[0], outputs[0].amax(dim=(1, 2))


def test_stages_run_in_order_each_step_once():
    system, seen = Brightness(), []
    losses = fit(system, lambda *progress: seen.append(progress))
    assert system.log == [
        *[(0, "begin"), (0, 0), (0, 1), (0, "end")],
        *[(1, "begin"), *((1, i) for i in range(5)), (1, "end")],
    ]
    assert losses["s0"] == [1, 0.5]
    assert losses["s1"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert seen[0] == (1, 7, "s0")
    assert seen[-1] == (7, 7, "s1")


def test_timed_trainings_take_turns_stage_by_stage():
    a, b = Brightness(), Brightness((3,))
    found = time_training({"a": a, "b": b}, rounds=2)
    assert [s.name for s in found["a"].stages] == ["s0", "s1"]
    assert a.log[:5] == [(0, "begin"), (0, 0), (0, 1), (0, 1), (0, "end")]  # 2 steps, 3 asked for
    assert [entry for entry in b.log if entry[0] == 1] == []
    stage = found["a"].stages[1]
    assert (stage.steps, stage.images, len(stage.seconds)) == (5, 4, 2)
    assert stage.projected_minutes == pytest.approx(statistics.median(stage.seconds) * 5 / 60)
    assert found["a"].projected_minutes == sum(s.projected_minutes for s in found["a"].stages)
    with pytest.raises(BackendError, match="rounds: 0"):
        time_training({"b": Brightness()}, rounds=0)


def test_stages_of_a_call_add_up_to_the_whole(category):
    images = [sample.image for sample in list_test(category)][:3]
    found = time_inference({"b": Brightness()}, images, device=CPU, batch=2, rounds=3)
    wall = found["b"]["wall"]
    assert set(wall) == {*STAGES, "model", "end to end"}
    for i in range(3):
        parts = sum(wall[stage][i] for stage in STAGES)
        assert 0 < parts <= wall["end to end"][i]
        assert parts > 0.5 * wall["end to end"][i]
        assert wall["model"][i] == wall["network"][i] + wall["answer"][i]
    with pytest.raises(DataError, match="no images"):
        time_inference({"b": Brightness()}, [], device=CPU)


def test_a_window_is_judged_by_the_middle_of_the_mask(category):
    from destseg_deploy.data.images import read_image, read_mask

    test = score_system(Brightness(), category, device=CPU)
    assert test.maps.shape[1:] == (32, 32)
    for sample, mask in zip(test.samples, test.masks, strict=True):
        if sample.mask is None:
            assert not mask.any()
            continue
        shape = read_image(sample.image).shape[:2]
        whole = read_mask(sample.mask, shape, (64, 64))
        np.testing.assert_array_equal(mask, whole[16:48, 16:48])
        off = whole[:32, :32]
        assert not np.array_equal(mask, off) or not whole.any()


def test_every_image_is_used_once_per_epoch_and_epochs_differ(task):
    frames = TrainingFrames(task, Brightness().prepare, 4)
    per_epoch = frames.batches_per_epoch
    assert per_epoch == len(task.images) // 4
    epochs = [
        np.concatenate([frames.numbers(e * per_epoch + i) for i in range(per_epoch)])
        for e in range(2)
    ]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 4 * per_epoch
    assert not np.array_equal(*epochs)
    np.testing.assert_array_equal(frames.numbers(0), epochs[0][:4])
    assert frames.batch(0).shape == (4, 3, 32, 32)


def test_few_images_fill_a_batch(task):
    from dataclasses import replace

    frames = TrainingFrames(replace(task, images=task.images[:3]), Brightness().prepare, 8)
    assert sorted(np.bincount(frames.numbers(5)).tolist()) == [2, 3, 3]
    with pytest.raises(DataError, match="no normal images"):
        TrainingFrames(replace(task, images=()), Brightness().prepare, 8)


def test_the_loss_of_stpm_is_twice_one_minus_cosine():
    generator = torch.Generator().manual_seed(0)
    teacher = [torch.randn(2, c, 8, 8, generator=generator) for c in (4, 6)]
    student = [torch.randn(2, c, 8, 8, generator=generator) for c in (4, 6)]
    wanted = sum(
        float((2 - 2 * torch.cosine_similarity(t, s, dim=1)).mean())
        for t, s in zip(teacher, student, strict=True)
    )
    assert float(matching_loss(teacher, student)) == pytest.approx(wanted, rel=1e-5)
    assert float(matching_loss(teacher, [3 * t for t in teacher])) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", sorted(OPENERS))
def test_a_step_of_each_stage_learns(monkeypatch, task, name):
    """Each stage's first step gives a finite loss, and the networks change."""
    monkeypatch.setattr("destseg_bench.baselines.stpm.BATCH", 4)
    monkeypatch.setitem(QUICK, "batch_size", 2)
    system = open_system(name, task)
    if name in ("draem", "dsr"):  # seconds an image at their own size
        system.size = (64, 64)
    stages = system.stages()
    assert stages
    assert len({stage.name for stage in stages}) == len(stages)
    before = _state(system)
    for stage in stages:
        assert stage.steps >= 1
        assert stage.images >= 0
        stage.begin()
        loss = stage.step(0)
        assert loss.shape == ()
        assert bool(torch.isfinite(loss))
        assert not loss.requires_grad
        stage.end()
    if not name.startswith("patchcore"):  # whose networks stay as they are
        after = _state(system)
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(part.training for module in system.modules() for part in module.modules())
    images = torch.from_numpy(system.prepare(np.full((64, 64, 3), 90, np.uint8)))[None]
    with torch.no_grad():
        maps, scores = system.answer(system.network(images))
    assert maps.isfinite().all()
    assert scores.isfinite().all()


def _state(system):
    return [t.detach().clone() for m in system.modules() for t in m.state_dict().values()]


def test_a_broken_system_would_be_seen(category):
    """A system that answers at random is near 0.5, so the metrics of a real one mean something."""

    class Noise(Brightness):
        def answer(self, outputs):
            noise = torch.rand(outputs[0].shape, generator=self.generator)
            return noise, noise.amax(dim=(1, 2))

    system = Noise()
    system.generator = torch.Generator().manual_seed(0)
    found = compute_metrics(score_system(system, category, device=CPU))
    assert found.pixel is not None
    assert found.pixel.auroc == pytest.approx(0.5, abs=0.05)
