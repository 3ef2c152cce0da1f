"""What a run starts from: images, textures, networks, and what tells it from other runs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from destseg_deploy.data.datasets import open_dataset
from destseg_deploy.data.mvtec import list_train
from destseg_deploy.data.textures import open_textures
from destseg_deploy.errors import SpecError, TrainingError
from destseg_deploy.spec import TeacherRecord
from destseg_deploy.training.batches import TextureBank
from destseg_deploy.training.setup import Setup, prepare, split_holdout
from tests.deploy.training.cases import (
    CPU,
    TINY,
    equal,
    part,
    small_networks,
    small_options,
    snapshot,
    train_small,
)

# ---------------------------------------------------------------------------- holdout


@given(count=st.integers(1, 400), share=st.floats(0, 0.99))
def test_holdout_splits_evenly(count: int, share: float) -> None:
    images = [Path(f"{i:03d}.png") for i in range(count)]
    wanted = math.ceil(round(share * count, 9))
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


@pytest.mark.parametrize(("share", "count", "held"), [(0.07, 100, 7), (0.1, 30, 3), (0.011, 90, 1)])
def test_holdout_takes_no_image_too_many(share: float, count: int, held: int) -> None:
    """0.07 * 100 is 7.000000000000001, of which 8 images came."""
    images = [Path(f"{i:03d}.png") for i in range(count)]
    assert len(split_holdout(images, share)[1]) == held


def test_an_image_is_not_held_out_and_trained_on() -> None:
    images = [Path("a/1.png"), Path("a/2.png"), Path("a/../a/1.png")]
    with pytest.raises(
        TrainingError, match=r"a/1\.png: the same image as .*Expected each image to train on once"
    ):
        split_holdout(images, 0.3)


def test_two_links_to_one_image_are_refused_before_the_training(tmp_path: Path) -> None:
    """The threshold at its end would refuse them, and hours would be lost."""
    (tmp_path / "1.png").touch()
    (tmp_path / "2.png").symlink_to("1.png")
    with pytest.raises(TrainingError, match=r"2\.png: the same image as .*1\.png"):
        split_holdout([tmp_path / "1.png", tmp_path / "2.png"], 0.3)


def test_no_holdout_keeps_all() -> None:
    images = [Path("0.png")]
    assert split_holdout(images, 0.0) == (images, [])


# ---------------------------------------------------------------------------- preparing


def set_up(category: Path, recipe: Any = TINY, textures: Any = None, **options: Any) -> Setup:
    """Prepare small networks on the CPU."""
    with small_networks():
        return prepare(category, recipe, small_options(**options), textures)


def test_images_are_those_not_held_out(category: Path) -> None:
    setup = set_up(category)
    assert setup.images.shape == (4, 64, 64, 3)
    assert setup.images.dtype == np.uint8
    assert len(setup.held_out) == 2
    used = [path for path in list_train(category) if path not in setup.held_out]
    for image, path in zip(setup.images, used, strict=True):
        assert np.array_equal(image, cv2.imread(str(path))[..., ::-1])


def test_networks_are_seeded(category: Path) -> None:
    first, again, other = (
        snapshot(set_up(category, replace(TINY, seed=seed)).loop.model) for seed in (0, 0, 1)
    )
    assert equal(first, again)
    for name in ("student_net", "segmentation_net", "teacher_net"):
        assert not equal(part(first, name), part(other, name))


def test_a_random_teacher_tells_the_images_apart(category: Path) -> None:
    setup = set_up(category)
    assert setup.teacher == TeacherRecord("random")
    means = [
        t
        for name, t in setup.loop.model.teacher_net.named_buffers()
        if name.endswith("running_mean")
    ]
    assert all(bool(t.any()) for t in means)  # zeros unless they were fitted


@pytest.mark.parametrize(
    ("name", "rotation", "expected"),
    [
        ("cable", None, "slight"),
        ("screw", None, "full"),
        ("capsule", None, "none"),
        ("my_part", None, "none"),
        ("screw", "none", "none"),
    ],
)
def test_rotation_is_the_papers_for_its_categories_unless_chosen(
    name: str, rotation: str | None, expected: str, category: Path, tmp_path: Path
) -> None:
    (tmp_path / name).symlink_to(category)
    recipe = replace(TINY, rotation=rotation)
    setup = set_up(tmp_path / name, recipe)
    assert setup.recipe == replace(recipe, rotation=expected)
    lean = setup.source().__self__
    assert (lean.sampler.rotation, lean.sampler.seed) == (expected, recipe.seed)


def test_a_bank_is_taken_as_it_is(category: Path) -> None:
    bank = TextureBank(open_textures(None, (64, 64)), CPU)
    assert set_up(category, textures=bank).bank is bank


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_literal_loop_is_fp32(
    precision: str, category: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = f"precision is {precision}, expected fp32 with literal"
    with pytest.raises(TrainingError, match=expected):
        set_up(category, literal=True, precision=precision)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for literal, wanted, expected in (
        (True, "auto", "fp32"),
        (False, "auto", "bf16"),
        (False, precision, precision),
    ):
        loop = set_up(category, literal=literal, precision=wanted).loop
        assert loop.precision.name == expected


# ---------------------------------------------------------------------------- batches


def test_both_loops_are_fed_the_same_samples(category: Path) -> None:
    lean, literal = (set_up(category, literal=way).source() for way in (False, True))
    for one, other in zip(lean(0, 4), literal(0, 4), strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().mean() < 0.2  # in grey levels; another sample is tens off
    first, second = (next(lean(step, step + 1))[1] for step in (0, 1))
    assert (first - second).abs().mean() > 2


@pytest.mark.parametrize("literal", [False, True])
def test_a_batch_depends_on_its_number_alone(literal: bool, category: Path) -> None:
    whole = list(set_up(category, literal=literal).source()(0, 4))
    assert len(whole) == 4
    for start, stop, workers in ((2, 4, 0), (3, 4, 0), (1, 3, 2)):
        if literal and workers:
            continue  # processes, which test_batches.py starts
        source = set_up(category, literal=literal, workers=workers).source()
        for a, b in zip(source(start, stop), whole[start:stop], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def with_images(category: Path, folder: Path, count: int) -> Path:
    """Make a category of the first images of another."""
    good = folder / "cable/train/good"
    good.mkdir(parents=True)
    for path in list_train(category)[:count]:
        shutil.copy(path, good)
    return folder / "cable"


@pytest.mark.parametrize("images", [1, 3])
def test_fewer_images_than_a_batch_are_enough(images: int, category: Path, tmp_path: Path) -> None:
    few = with_images(category, tmp_path, images)
    recipe = replace(TINY, batch_size=5, holdout=0.0)
    spec = train_small(few, tmp_path / "cable.safetensors", recipe)
    assert spec.training.images == images
    assert spec.threshold is None
    assert all(math.isfinite(loss) for loss in spec.training.losses.values())


def test_one_image_cannot_be_held_out(category: Path, tmp_path: Path) -> None:
    few = with_images(category, tmp_path, 1)
    with pytest.raises(TrainingError, match=r"holdout 0\.3 of 1 images leaves none to train on"):
        set_up(few)


def test_a_name_that_is_a_path_is_refused_with_the_option_that_gave_it(category: Path) -> None:
    """ "Restore it or export again" would be said of a file that is not there yet."""
    data = replace(open_dataset(category), name="../cable")
    with pytest.raises(SpecError, match=r'name is "\.\./cable".*Pass another one with --name\.$'):
        prepare(data, TINY)


# ---------------------------------------------------------------------------- identity


def brighter(path: Path) -> None:
    """Change an image by one grey level."""
    image = cv2.imread(str(path))
    image[0, 0, 0] ^= 1
    assert cv2.imwrite(str(path), image)


def identity(category: Path, recipe: Any = TINY, **options: Any) -> dict[str, Any]:
    return set_up(category, recipe, **options).identity()


@pytest.mark.parametrize(
    ("changed", "change"),
    [
        ("recipe", lambda c: identity(c, replace(TINY, seed=1))),
        ("recipe", lambda c: identity(c, replace(TINY, student_lr=0.3))),
        ("recipe", lambda c: identity(c, replace(TINY, rotation="full"))),
        ("textures", lambda c: identity(c, textures=c / "test")),
        ("precision", lambda c: identity(c, precision="bf16")),
        ("literal", lambda c: identity(c, literal=True)),
        ("images", lambda c: (brighter(list_train(c)[0]), identity(c))[1]),
        ("held_out", lambda c: (brighter(list_train(c)[1]), identity(c))[1]),
    ],
)
def test_what_changes_a_run_changes_its_identity(
    changed: str, change: Callable[[Path], dict[str, Any]], category: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(category, tmp_path / "cable"))
    before, after = identity(category), change(copied)
    assert json.loads(json.dumps(before)) == before
    assert {name for name in before if before[name] != after[name]} == {changed}


def test_a_moved_folder_is_the_same_run(category: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(category, tmp_path / "cable"))
    textures = Path(shutil.copytree(category / "test", tmp_path / "textures"))
    assert identity(copied, textures=textures) == identity(category, textures=category / "test")


def test_other_images_held_out_are_another_run(category: Path) -> None:
    one, other = (identity(category, replace(TINY, holdout=share)) for share in (0.3, 0.5))
    assert one["held_out"] != other["held_out"]
    assert one["images"] != other["images"]
