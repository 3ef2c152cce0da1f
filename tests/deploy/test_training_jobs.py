"""Several runs in one go: their names, their seeds, and the textures they share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from destseg_deploy.data.texture_bank import TextureBank
from destseg_deploy.errors import BackendError, DataError
from destseg_deploy.training.jobs import Job, list_jobs, open_bank, train_job
from tests.deploy.training_cases import CPU, LONGER, TINY, small_networks, train_small

HOW: dict[str, Any] = {"teacher": "random", "device": "cpu", "precision": "fp32", "workers": 0}


def test_one_seed_names_the_category() -> None:
    jobs = list_jobs([Path("data/cable"), Path("data/screw")], [3], Path("out"))
    assert jobs == [
        Job(Path("data/cable"), 3, Path("out/cable.safetensors")),
        Job(Path("data/screw"), 3, Path("out/screw.safetensors")),
    ]
    assert [job.name for job in jobs] == ["cable", "screw"]


def test_several_seeds_are_in_the_names() -> None:
    jobs = list_jobs([Path("data/cable"), Path("data/my.part")], [0, 7], Path("out"))
    assert [(job.category.name, job.seed, job.name) for job in jobs] == [
        ("cable", 0, "cable-seed0"),
        ("cable", 7, "cable-seed7"),
        ("my.part", 0, "my.part-seed0"),
        ("my.part", 7, "my.part-seed7"),
    ]
    assert {job.output.parent for job in jobs} == {Path("out")}
    assert jobs[3].output.name == "my.part-seed7.safetensors"


def test_a_bank_is_of_the_recipes_size(category: Path) -> None:
    bank = open_bank(category / "test", TINY, "cpu")
    assert (bank.textures.size, bank.device) == ((64, 64), CPU)
    assert bank.textures.name == str(category / "test")
    assert open_bank(None, TINY, "cpu").textures.name == "procedural"


def test_a_bank_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no texture images"):
        open_bank(tmp_path, TINY, "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackendError, match="sees no CUDA GPU"):
        open_bank(None, TINY, "cuda")


def counted(bank: TextureBank, monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count how often each texture is decoded."""
    reads: Counter[int] = Counter()
    plain = bank.textures.read

    def read(number: int) -> NDArray[np.uint8]:
        reads.update([number])
        return plain(number)

    monkeypatch.setattr(bank.textures, "read", read)
    return reads


def test_jobs_share_textures_and_train_what_each_would_alone(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    textures = category / "test"
    bank = open_bank(textures, LONGER, "cpu")
    reads = counted(bank, monkeypatch)
    jobs = list_jobs([category], [0, 1], tmp_path / "out")
    pytest.importorskip("tensorboard")
    decoded = []
    for job in jobs:
        with small_networks():
            spec = train_job(job, LONGER, bank, tensorboard=tmp_path / "log", **HOW)
        assert spec.training["recipe"]["seed"] == job.seed
        alone = tmp_path / job.name / "cable.safetensors"
        train_small(category, alone, replace(LONGER, seed=job.seed), textures=textures)
        assert alone.read_bytes() == job.output.read_bytes()
        decoded.append(set(reads))
    assert set(reads.values()) == {1}
    assert len(decoded[0]) > 3
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == [j.name for j in jobs]


def test_a_finished_job_is_not_repeated(category: Path, tmp_path: Path) -> None:
    job = list_jobs([category], [5], tmp_path)[0]
    bank = open_bank(None, TINY, "cpu")
    notes: list[str] = []
    with small_networks():
        first = train_job(job, TINY, bank, **HOW)
        again = train_job(job, TINY, bank, notify=notes.append, report=lambda p: 1 / 0, **HOW)
    assert again == first
    assert notes == [f"{job.output}: trained with these options before; --restart trains it again"]
