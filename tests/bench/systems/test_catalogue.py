"""The contract of every compared system: counts, stages, batches, eval mode, weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from destseg_bench.systems.catalogue import SYSTEMS, check_systems, open_system
from destseg_bench.systems.system import detect
from destseg_bench.systems.table_s4 import count_macs, count_parameters
from destseg_deploy.data.images import read_image
from destseg_deploy.errors import BackendError, WeightsError

NAMES = sorted(SYSTEMS)
SMALL_BATCH = 2
LARGE = ("draem", "dsr")
"""Those that take seconds an image on a CPU, and any size that their halvings divide."""


@pytest.fixture(scope="module")
def opened(task):
    """Systems by name, each opened once and ready to answer."""
    kept = {}

    def get(name):
        if name not in kept:
            kept.clear()  # the large ones do not fit beside each other on a small machine
            kept[name] = open_system(name, task)
            kept[name].stand_in()
        return kept[name]

    return get


@pytest.fixture(scope="module")
def images(task):
    """Two images as every system gets them: read from files."""
    return [read_image(path) for path in task.images[:SMALL_BATCH]]


def prepared(system, images):
    return torch.from_numpy(np.stack([system.prepare(image) for image in images]))


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_parameters_and_operations_of_its_publication(opened, name):
    system = opened(name)
    facts = system.facts
    assert facts.source
    assert ("none" if name == "draem" else "random") in system.weights  # DRAEM starts from none
    counted = facts.parameters is not None and facts.gmacs is not None
    assert counted or name not in ("stpm", "draem", "destseg", "destseg-reference")
    if facts.parameters is not None:
        assert count_parameters(system) / 1e6 == pytest.approx(facts.parameters, rel=0.01)
    if facts.gmacs is not None:
        assert count_macs(system) / 1e9 == pytest.approx(facts.gmacs, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_does_not_depend_on_its_batch(monkeypatch, opened, images, name):
    system = opened(name)
    if name in LARGE:
        monkeypatch.setattr(system, "size", (64, 64))
    batch = prepared(system, images)
    assert batch.dtype == torch.float32
    assert batch.shape == (len(images), 3, *system.size)
    maps, scores = detect(system, batch)
    assert maps.dtype == scores.dtype == torch.float32
    assert scores.shape == (len(images),)
    assert maps.ndim == 3
    assert len(maps) == len(images)
    assert maps.isfinite().all()
    assert scores.isfinite().all()
    alone = [detect(system, batch[i : i + 1]) for i in range(len(images))]
    scale = float(maps.abs().max()) + 1e-12
    # DSR's nearest code may change where two are as near: a few pixels of a random network.
    share = 0.99 if name == "dsr" else 1.0
    for i, (one, score) in enumerate(alone):
        assert float((one[0] - maps[i]).abs().quantile(share)) <= 2e-3 * scale
        assert float(score[0]) == pytest.approx(float(scores[i]), rel=2e-3, abs=1e-6)
    assert not torch.equal(maps[0], maps[1]), "it does not look at its image"
    height = maps.shape[1] / system.window
    assert height == pytest.approx(round(height), abs=1e-6)


def test_an_unknown_schedule_is_refused(task):
    with pytest.raises(BackendError, match="schedule 'soon': expected"):
        replace(task, schedule="soon")


@pytest.mark.parametrize("name", ["destseg", "draem"])
def test_the_paper_s_schedule_is_longer(task, name):
    quick = open_system(name, task).stages()
    paper = open_system(name, replace(task, schedule="paper")).stages()
    assert [stage.name for stage in quick] == [stage.name for stage in paper]
    assert sum(s.steps for s in paper) > 2 * sum(s.steps for s in quick)


def test_names_are_checked_before_anything_is_made(task):
    with pytest.raises(BackendError, match="system 'padim': expected one of stpm, draem"):
        open_system("padim", task)
    with pytest.raises(BackendError, match="given twice"):
        check_systems(["stpm", "stpm"])
    with pytest.raises(BackendError, match="no system"):
        check_systems([])


@pytest.mark.parametrize("name", ["stpm", "patchcore", "dsr", "destseg"])
def test_missing_weights_are_refused_where_they_are_asked_for(monkeypatch, tmp_path, task, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", _offline)
    with pytest.raises(WeightsError, match="weights"):
        open_system(name, replace(task, pretrained=True))


def _offline(*args, **kwargs):
    raise OSError("no network")


def test_weights_of_another_network_are_refused(tmp_path, task):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"conv1.weight is \(64, 3, 3, 3\), expected \(64, 3, 7"):
        open_system("stpm", replace(task, weights={"resnet18": path}, pretrained=True))
