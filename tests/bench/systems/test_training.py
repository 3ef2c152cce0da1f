"""Training and timing of compared systems: stages, batches, projections, and that they learn."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from destseg_bench.systems.accuracy import score_system
from destseg_bench.systems.catalogue import SYSTEMS, open_system
from destseg_bench.systems.destseg import QUICK
from destseg_bench.systems.stpm import squared_distance
from destseg_bench.systems.system import Facts, Stage, System, Task
from destseg_bench.systems.times import INFERENCE_PARTS, Rounds, time_inference, time_training
from destseg_bench.systems.training import PREFETCHED, Prefetched, fit
from destseg_deploy.data.images import read_image
from destseg_deploy.data.masks import read_mask
from destseg_deploy.data.mvtec import list_test
from destseg_deploy.errors import BackendError, DataError
from destseg_deploy.evaluation.test_set import compute_metrics


@dataclass
class Brightness(System):
    """A system that knows the mean brightness of normal images; every call is noted."""

    task: Task
    stage_steps: tuple[int, ...] = (2, 5)
    log: list = field(default_factory=list)
    facts = Facts("Brightness", "none")
    size = (32, 32)
    window = 0.5

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

    def prepare(self, frame):
        top, left = frame.shape[0] // 2 - 16, frame.shape[1] // 2 - 16
        part = frame[top : top + 32, left : left + 32].astype(np.float32)
        return np.ascontiguousarray(part.transpose(2, 0, 1))

    def network(self, images):
        return (images.mean(dim=1),)

    def answer(self, outputs):
        return outputs[0], outputs[0].amax(dim=(1, 2))


def test_stages_run_in_order_each_step_once(task):
    system, seen = Brightness(task), []
    losses = fit(system, lambda *progress: seen.append(progress))
    assert system.log == [
        *[(0, "begin"), (0, 0), (0, 1), (0, "end")],
        *[(1, "begin"), *((1, i) for i in range(5)), (1, "end")],
    ]
    assert losses["s0"] == [1, 0.5]
    assert losses["s1"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert seen[0] == (1, 7, "s0")
    assert seen[-1] == (7, 7, "s1")


def test_timed_trainings_take_turns_stage_by_stage(task):
    a, b = Brightness(task), Brightness(task, (3,))
    found = time_training({"a": a, "b": b}, Rounds(2))
    assert [stage["name"] for stage in found["a"]] == ["s0", "s1"]
    assert a.log[:5] == [(0, "begin"), (0, 0), (0, 1), (0, 1), (0, "end")]  # 2 steps, 3 asked for
    assert [entry for entry in b.log if entry[0] == 1] == []
    stage = found["a"][1]
    assert (stage["steps"], stage["images"], stage["timed"]) == (5, 4, 2)
    assert stage["lowest"] <= stage["seconds_per_step"] <= stage["highest"]
    with pytest.raises(BackendError, match="rounds: 0"):
        time_training({"b": Brightness(task)}, Rounds(0))


def test_parts_of_a_call_add_up_to_the_whole(task):
    images = [sample.image for sample in list_test(task.category)][:3]
    wall = time_inference({"b": Brightness(task)}, images, 2, Rounds(3))["b"]["wall"]
    assert set(wall) == {*INFERENCE_PARTS, "model", "end to end"}
    for i in range(3):
        parts = sum(wall[part][i] for part in INFERENCE_PARTS)
        assert 0 < parts <= wall["end to end"][i]
        assert parts > 0.5 * wall["end to end"][i]
        assert wall["model"][i] == wall["network"][i] + wall["answer"][i]
    with pytest.raises(DataError, match="no images"):
        time_inference({"b": Brightness(task)}, [], 1, Rounds(1))


def test_a_window_is_judged_by_the_middle_of_the_mask(task):
    test = score_system(Brightness(task))
    assert test.maps.shape[1:] == (32, 32)
    for sample, mask in zip(test.samples, test.masks, strict=True):
        if sample.mask is None:
            assert not mask.any()
            continue
        whole = read_mask(sample.mask, read_image(sample.image).shape[:2], (64, 64))
        np.testing.assert_array_equal(mask, whole[16:48, 16:48])
        off = whole[:32, :32]
        assert not np.array_equal(mask, off) or not whole.any()


def test_batches_come_in_order_and_are_made_in_advance_where_that_helps() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return 10 * step

    inline = Prefetched(make, 100, torch.device("cpu"))
    assert [inline(step) for step in (0, 1, 5)] == [0, 10, 50]
    assert made == [0, 1, 5]
    made.clear()
    ahead = Prefetched(make, 7, torch.device("meta"))  # any device but the CPU
    assert ahead(0) == 0
    assert [ahead(step) for step in (1, 2, 2, 6)] == [10, 20, 20, 60]
    ahead.close()
    assert sorted(set(made)) == list(range(2 + PREFETCHED + 1))
    assert made.count(2) == 2


def test_what_goes_wrong_in_a_thread_is_told() -> None:
    def make(step: int) -> int:
        raise DataError(f"texture {step}")

    ahead = Prefetched(make, 9, torch.device("meta"))
    with pytest.raises(DataError, match="texture 4"):
        ahead(4)
    ahead.close()


def test_the_distance_of_stpm_is_twice_one_minus_cosine():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 2, 6, 8, 8, generator=generator)
    wanted = 2 - 2 * torch.cosine_similarity(teacher, student, dim=1)
    torch.testing.assert_close(squared_distance(teacher, student)[:, 0], wanted)
    assert float(squared_distance(teacher, 3 * teacher).max()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_a_step_of_each_stage_learns(monkeypatch, task, name):
    """Each stage's first step gives a finite loss, and the networks change."""
    monkeypatch.setattr("destseg_bench.systems.stpm.BATCH", 4)
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


def test_a_broken_system_would_be_seen(task):
    """A system that answers at random is near 0.5, so the metrics of a real one mean something."""
    generator = torch.Generator().manual_seed(0)

    class Noise(Brightness):
        def answer(self, outputs):
            noise = torch.rand(outputs[0].shape, generator=generator)
            return noise, noise.amax(dim=(1, 2))

    found = compute_metrics(score_system(Noise(task)))
    assert found.pixel is not None
    assert found.pixel.auroc == pytest.approx(0.5, abs=0.05)
