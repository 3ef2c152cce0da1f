"""destseg-train: what reaches the library, several runs in one command, and what is refused."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

from destseg_deploy.cli.train import train
from destseg_deploy.data.datasets import DataSet
from destseg_deploy.errors import DataError
from destseg_deploy.models.weights import checkpoint_spec
from destseg_deploy.spec import FileRecord, ModelSpec, TrainingRecord
from destseg_deploy.training import run
from destseg_deploy.training.recipe import PRESETS, Recipe, TrainingOptions, make_recipe
from tests.fakes.ray_tasks import FakeRay
from tests.unchanged import unchanged

TINY = ("--size", 64, "--batch-size", 2, "--steps", "1,1", "--teacher", "random")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(train, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """Run what must end with one line on stderr and status 1; return the line."""
    result = invoke(*arguments)
    assert result.exit_code == 1, repr(result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def data(category: Path, tmp_path: Path) -> Path:
    """Two categories, links to the sample."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("cable", "nut"):
        (folder / name).symlink_to(category)
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What training is asked for, in place of training."""
    seen: list[dict[str, Any]] = []

    def record(
        data: DataSet, output: Path, recipe: Recipe, options: TrainingOptions, **more: Any
    ) -> ModelSpec:
        given = {"data": data.source, "output": output, "recipe": recipe, "options": options}
        seen.append({**given, **more})
        notes = TrainingRecord(images=4, seconds=1.0)
        size = (recipe.size, recipe.size)
        return checkpoint_spec(data.name, size, FileRecord("", ""), training=notes)

    monkeypatch.setattr(run, "train", record)
    return seen


# --- what reaches the library


def test_options_reach_training(calls: list[dict[str, Any]], data: Path, tmp_path: Path) -> None:
    result = invoke(
        "--category", "cable", "--data", data, "--output", tmp_path,
        "--preset", "quick", "--textures", data / "cable/test", "--teacher-weights", "/resnet.pth",
        "--teacher", "imagenet", "--steps", "7, 8", "--batch-size", 9, "--size", 96,
        "--rotation", "full", "--holdout", 0.25,  "--seed", 5, "--device", "cpu",
        "--decay", "none", "--precision", "bf16", "--workers", 3, "--false-reject-rate", 0.03,
        "--gamma", 2, "--compile", "--tensorboard", tmp_path / "tb", "--restart", "--save-every", 5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (seen,) = calls
    assert callable(seen.pop("report"))
    assert callable(seen.pop("notify"))
    assert seen.pop("held") is False, "a run holds its own checkpoint in this process"
    bank = seen.pop("textures")
    assert bank.textures.folder == data / "cable/test"
    assert bank.textures.size == (96, 96)
    assert seen == {
        "data": data / "cable",
        "output": tmp_path / "cable.safetensors",
        "recipe": make_recipe(
            "quick",
            student_steps=7,
            segmentation_steps=8,
            batch_size=9,
            size=96,
            rotation="full",
            holdout=0.25,
            decay="none",
            gamma=2.0,
            seed=5,
        ),
        "options": TrainingOptions(
            teacher_weights=Path("/resnet.pth"),
            teacher="imagenet",
            device="cpu",
            precision="bf16",
            workers=3,
            literal=False,
            compiled=True,
            false_reject_rate=0.03,
            tensorboard=tmp_path / "tb",
            restart=True,
            save_every=5.0,
        ),
    }


def test_the_options_of_tiles_reach_training(calls: list[dict[str, Any]], category: Path) -> None:
    result = invoke(
        category, "--scale", 0.5, "--tile", 96, "--overlap", 24, "--grid", "--roi", "1,2,300,400"
    )
    assert result.exit_code == 0, result.output
    (seen,) = calls
    changes = {"scale": 0.5, "size": 96, "overlap": 24, "crops": "grid", "rotation": "none"}
    assert seen["recipe"] == make_recipe(**changes)
    assert seen["options"].region == "1,2,300,400"


def test_a_file_names_the_options_of_tiles(
    calls: list[dict[str, Any]], category: Path, tmp_path: Path
) -> None:
    config = tmp_path / "destseg.toml"
    config.write_text('[train]\nscale = 0.5\ntile = 96\ngrid = true\nroi = "1,2,30,40"\n')
    assert invoke(category, "--config", config).exit_code == 0
    recipe = calls[0]["recipe"]
    assert (recipe.scale, recipe.size, recipe.crops) == (0.5, 96, "grid")
    assert calls[0]["options"].region == "1,2,30,40"


def test_tiles_are_in_the_help() -> None:
    for option in ("--scale", "--size, --tile", "--roi", "--overlap", "--grid"):
        assert option in invoke("--help-all").output
    assert "--scale" in invoke("-h").output


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--grid",), "crops is grid, expected anywhere, or a scale with it"),
        (("--scale", 0.5), "smaller than a tile of 64x64. Use a larger scale"),
        (("--scale", 2, "--roi", "60,0,10,10"), "x is 60 and width 10, expected a part of 0 to 64"),
    ],
)
def test_tiles_that_do_not_fit_are_one_line(
    category: Path, tmp_path: Path, options: tuple[object, ...], line: str
) -> None:
    assert line in refused(category, "--output", tmp_path / "out", *TINY, *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "expected", "rotation"),
    [
        ((), "paper", "none"),
        (("--preset", "paper"), "paper", None),
        (("--preset", "quick"), "quick", "none"),
        (("--rotation", "full"), "paper", "full"),
    ],
)
def test_a_preset_is_what_it_says(
    calls: list[dict[str, Any]],
    data: Path,
    options: tuple[str, ...],
    expected: str,
    rotation: str | None,
) -> None:
    assert invoke("--category", "cable", "--data", data, *options).exit_code == 0
    assert [call["recipe"] for call in calls] == [replace(PRESETS[expected], rotation=rotation)]
    # The paper trains in float32; its half precision must be asked for.
    precision = "fp32" if expected == "paper" else "auto"
    assert calls[0]["options"] == TrainingOptions(precision=precision)


def test_several_categories_and_seeds_share_their_textures(
    calls: list[dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    result = invoke(
        "--category", "nut", "--category", "cable", "--data", data, "--seeds", "3,0",
        "--output", tmp_path,
    )  # fmt: skip
    made = [call["output"] for call in calls]
    names = ["nut-seed3", "nut-seed0", "cable-seed3", "cable-seed0"]
    assert made == [tmp_path / f"{name}.safetensors" for name in names]
    assert [call["data"].name for call in calls] == ["nut", "nut", "cable", "cable"]
    seeds = [3, 0, 3, 0]
    assert [call["recipe"] for call in calls] == [
        replace(PRESETS["paper"], seed=s, rotation="none") for s in seeds
    ]
    assert len({id(call["textures"]) for call in calls}) == 1
    said = [line.split()[1] for line in result.stdout.splitlines() if "checkpoint" in line]
    assert said == [str(path) for path in made]


def test_all_takes_every_category(calls: list[dict[str, Any]], data: Path) -> None:
    (data / "notes").mkdir()
    assert invoke("--category", "all", "--data", data).exit_code == 0
    assert [call["data"].name for call in calls] == ["cable", "nut"]


def test_a_folder_or_a_list_is_trained_on_and_names_the_checkpoint(
    calls: list[dict[str, Any]], category: Path, tmp_path: Path
) -> None:
    """tile is a category of the paper; somebody's own tile is not turned for that."""
    own = tmp_path / "tile"
    own.symlink_to(category / "train/good")
    (tmp_path / "gear.csv").write_text("path\ntile/000.png\n")
    assert invoke(own, tmp_path / "gear.csv", "--output", tmp_path).exit_code == 0
    assert invoke(own, "--name", "plate", "--output", tmp_path).exit_code == 0
    assert [call["output"].name for call in calls] == [
        f"{name}.safetensors" for name in ("tile", "gear", "plate")
    ]
    assert {call["recipe"].rotation for call in calls} == {"none"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Name a folder of good parts: destseg-train FOLDER"),
        (("a", "b", "--name", "c"), "--name c: one name for 2 data sets"),
        (("a", "--name", ""), "--name: an empty name"),
        (("a", "--data", "b"), "--data b: it goes with --category"),
    ],
)
def test_what_names_no_data_set_is_misuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


# --- a whole run


def test_a_run_is_made_once_and_says_so(data: Path, tmp_path: Path) -> None:
    call = ("--category", "cable", "--data", data, "--output", tmp_path / "out", *TINY)
    first = invoke(*call)
    assert first.exit_code == 0, first.output
    checkpoint = tmp_path / "out/cable.safetensors"
    assert first.stdout.splitlines()[0] == f"checkpoint  {checkpoint}"
    assert "built-in procedural" in first.stderr
    assert "rotation of the good parts: none (--rotation changes it)" in first.stderr
    names = {path.name for path in checkpoint.parent.iterdir()}
    assert names == {"cable.safetensors", "cable.json", "cable-losses.csv"}
    written = checkpoint.stat().st_mtime_ns
    again = invoke(*call)
    assert again.stdout == first.stdout
    assert again.stderr.startswith(f"note: {checkpoint}: trained with these options before")
    assert checkpoint.stat().st_mtime_ns == written
    assert invoke(*call, "--restart").exit_code == 0
    assert checkpoint.stat().st_mtime_ns > written
    checkpoint.unlink()  # 140 MB


# --- on a cluster


def test_what_names_no_cluster_is_misuse(data: Path, tmp_path: Path) -> None:
    result = invoke("--category", "cable", "--data", data, "--on", "ray://host")
    assert result.exit_code == 2
    assert "expected here, ray, ray://auto or ray://HOST:PORT" in result.stderr


def test_a_cluster_without_ray_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails, as if it were not there
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT"):
        monkeypatch.setenv(name, "0")  # restored in the end
    call = ("--category", "cable", "--data", data, "--output", tmp_path / "out", *TINY)
    with unchanged(tmp_path):
        line = refused(*call, "--on", "ray://10.0.0.5:10001")
    assert "this command needs ray" in line
    assert "pip install 'destseg-deploy[ray]'" in line


def test_a_failed_run_on_a_cluster_gives_status_1(
    calls: list[dict[str, Any]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT"):
        monkeypatch.setenv(name, "0")
    record = run.train

    def some(data: DataSet, *rest: Any, **more: Any) -> ModelSpec:
        if data.name == "nut":
            raise DataError("nut/000.png: no image")
        return record(data, *rest, **more)

    monkeypatch.setattr(run, "train", some)
    call = ("--category", "all", "--data", data, "--output", tmp_path, "--threads", 2)
    result = invoke(*call, "--on", "ray", "--restart", "--textures", "dtd")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"checkpoint  {tmp_path / 'cable.safetensors'}\n")
    first, last = result.stderr.splitlines()
    assert first == "note: nut failed: nut/000.png: no image"
    assert last.startswith("Error: 1 of 2 failed on the cluster: nut. The others are finished")
    (seen,) = calls
    assert (seen["held"], seen["options"].restart, seen["textures"]) == (True, True, Path("dtd"))


# --- what is refused


@pytest.mark.parametrize("steps", ["", "5", "1,2,3", "a,b", "-1,2", "1.5,2", "²,3", "1;2"])
def test_steps_that_are_not_two_numbers_are_misuse(data: Path, tmp_path: Path, steps: str) -> None:
    with unchanged(tmp_path):
        result = invoke("--category", "cable", "--data", data, *TINY, "--steps", steps)
    assert result.exit_code == 2
    assert "--steps" in result.stderr
    assert "expected two numbers such as 1000,4000" in result.stderr


@pytest.mark.parametrize("seeds", ["", "a", "1,", "1,1", "-1", "0;1", "²"])
def test_seeds_that_are_not_numbers_are_misuse(data: Path, tmp_path: Path, seeds: str) -> None:
    with unchanged(tmp_path):
        result = invoke("--category", "cable", "--data", data, *TINY, "--seeds", seeds)
    assert result.exit_code == 2
    assert "--seed" in result.stderr


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--steps", "0,5"), "steps is 0, expected at least 1"),
        (("--size", 100), "size is 100, expected a multiple of 32"),
        (("--batch-size", 1), "batch_size is 1, expected at least 2"),
        (("--holdout", 1), "holdout is 1.0, expected a share"),
        (("--holdout", 0.99), "leaves none to train on"),
        (("--gamma", -1), "gamma is -1.0, expected"),
        (("--literal", "--precision", "bf16"), "precision is bf16, expected fp32 with"),
        (("--textures", "/nowhere"), "/nowhere: no texture images"),
        (("--teacher-weights", "/no.pth"), "teacher 'random' takes no weights"),
        (("--teacher", "imagenet", "--teacher-weights", "/no.pth"), "/no.pth: no such file"),
        (("--category", "bolt"), "no category 'bolt'. Found: cable, nut."),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(
    data: Path, tmp_path: Path, option: tuple[object, ...], words: str
) -> None:
    call = ("--category", "cable", "--data", data, "--output", tmp_path / "out", *TINY)
    with unchanged(tmp_path):
        assert words in refused(*call, *option)


@pytest.mark.parametrize(
    "option",
    [
        ("--false-reject-rate", 0),
        ("--false-reject-rate", 1.5),
        ("--device", "tpu"),
        ("--device", "cuda:x"),
        ("--preset", "slow"),
        ("--workers", -1),
        ("--precision", "int8"),
        ("--save-every", -1),
    ],
)
def test_options_out_of_range_are_misuse(
    data: Path, tmp_path: Path, option: tuple[str, object]
) -> None:
    """A rate that only fails once the threshold is set would cost the whole training."""
    with unchanged(tmp_path):
        result = invoke("--category", "cable", "--data", data, *TINY, *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr
