"""An interrupted run: continued to the same bits wherever it stopped, or refused in one line."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from destseg_deploy.errors import TrainingError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.training.checkpointing import RunFiles, RunState
from destseg_deploy.training.loop import Observers, StepReport
from destseg_deploy.training.recipe import Recipe
from tests.deploy.training.cases import (
    LONGER,
    TINY,
    GivenLosses,
    equal,
    fit,
    killed,
    make_loop,
    make_net,
    noise,
    snapshot,
    train_small,
)
from tests.unchanged import unchanged

IDENTITY: dict[str, Any] = {"recipe": {"seed": 0, "batch_size": 2}, "images": "ab12", "loop": False}


def saved_states(
    kind: type[DeSTSeg], recipe: Recipe, precision: str = "fp32", **options: Any
) -> tuple[list[RunState], DeSTSeg]:
    """Train; return copies of all states on the way, and the networks."""
    kept: list[RunState] = []
    net = make_net(kind)
    fit(
        net,
        recipe,
        precision,
        save=lambda state: kept.append(copy.deepcopy(state)),
        save_every=0,
        **options,
    )
    return kept, net


def continued(state: RunState, kind: type[DeSTSeg], recipe: Recipe, **how: Any) -> DeSTSeg:
    """Go on from a state with networks of another seed, of which nothing may be left."""
    net = make_net(kind, seed=7)
    make_loop(net, recipe, **how).fit(noise, state)
    return net


# ---------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize(
    ("recipe", "how"),
    [
        (LONGER, {}),
        (replace(LONGER, decay="cosine"), {}),
        (LONGER, {"literal": True}),
        (LONGER, {"precision": "bf16"}),
        (LONGER, {"precision": "fp16"}),
    ],
    ids=["paper", "cosine", "literal", "bf16", "fp16"],
)
def test_continued_from_any_saved_state_it_ends_the_same(
    recipe: Recipe, how: dict[str, Any], tmp_path: Path
) -> None:
    """Within both phases, at their boundary and at the end; through a file."""
    states, whole = saved_states(type(make_net()), recipe, **how)
    assert [state.step for state in states] == [1, 11, 12, 13, 23, 25]
    expected, losses = snapshot(whole), states[-1].losses
    for state in states:
        files = RunFiles(tmp_path / "a.safetensors", IDENTITY)
        files.write_state(state)
        read = files.read_state()
        assert read is not None
        net = continued(read, type(whole), recipe, **how)
        assert equal(snapshot(net), expected)
        assert np.array_equal(read.losses, losses)
        assert np.isfinite(losses).all()
        assert not net.training


@pytest.mark.parametrize("forgotten", ["momentum", "weights", "losses"])
def test_what_a_state_forgets_is_noticed(forgotten: str) -> None:
    states, whole = saved_states(type(make_net()), LONGER)
    within = states[4]
    assert (within.step, len(within.momentum)) == (23, 6)
    expected, losses = snapshot(whole), states[-1].losses
    setattr(
        within,
        forgotten,
        type(getattr(within, forgotten))()
        if forgotten != "losses"
        else np.full(LONGER.steps, np.nan, np.float32),
    )
    net = continued(within, type(whole), LONGER)
    alike = equal(snapshot(net), expected) and np.array_equal(within.losses, losses)
    assert not alike


def test_the_real_networks_end_the_same() -> None:
    """Continued within phase one, and within phase two."""
    states, whole = saved_states(DeSTSeg, TINY)
    expected, losses = snapshot(whole), states[-1].losses
    assert [state.step for state in states] == [1, 2, 3, 4]
    for state in (states[0], states[2]):
        assert state.momentum
        assert equal(snapshot(continued(state, DeSTSeg, TINY)), expected)
        assert np.array_equal(state.losses, losses)
    del states


def test_the_scale_of_fp16_is_kept() -> None:
    states, _ = saved_states(type(make_net()), LONGER, "fp16")
    assert all(state.scaler["scale"] == 65536 for state in states)
    assert [state.scaler["_growth_tracker"] for state in states] == [s.step for s in states]
    state = RunState.fresh(LONGER.steps)
    state.scaler = {**states[0].scaler, "scale": 2.0}
    loop = make_loop(make_net(), LONGER, "fp16")
    loop.fit(noise, state)
    assert loop.precision.scaler.get_scale() == 2


def test_a_state_can_be_saved_before_a_step_was_taken() -> None:
    """Scaled far too high, the first steps of fp16 overflow and are left out: no momentum yet."""
    state = RunState.fresh(LONGER.steps)
    state.scaler = {**torch.amp.GradScaler("cpu").state_dict(), "scale": 2.0**100}
    kept: list[RunState] = []
    net = make_net()
    observers = Observers(save=lambda now: kept.append(copy.deepcopy(now)), save_every=-1)
    make_loop(net, LONGER, "fp16").fit(noise, state, observers)
    assert kept[0].momentum == []
    assert equal(snapshot(continued(kept[0], type(net), LONGER, precision="fp16")), snapshot(net))


def test_without_momentum_a_state_is_saved_and_continued() -> None:
    recipe = replace(LONGER, momentum=0.0)
    states, whole = saved_states(type(make_net()), recipe)
    for state in states:
        assert state.momentum == []
        assert equal(snapshot(continued(state, type(whole), recipe)), snapshot(whole))


def test_a_continued_run_reports_the_last_loss_that_is_known() -> None:
    """Between step 12, where it goes on, and step 21, where the next loss is read."""
    recipe = replace(TINY, student_steps=25, segmentation_steps=1)
    state = RunState.fresh(recipe.steps)
    state.step, state.losses[:11] = 11, 7.0
    reports: list[StepReport] = []
    loop = make_loop(make_net(), recipe)
    loop.steps = GivenLosses([3.0] * 15)
    loop.fit(noise, state, Observers(reports.append))
    assert [p.done for p in reports] == list(range(12, 27))
    assert [p.loss for p in reports] == [7.0] * 9 + [3.0] * 6


# ---------------------------------------------------------------------------- the file


@pytest.fixture
def state() -> RunState:
    losses = np.array([3.0, 2.5, np.nan], np.float32)
    weights = {"b": torch.arange(6.0).view(2, 3).t(), "a": torch.tensor(3)}
    momentum = [torch.full((2,), float(i)) for i in range(12)]
    return RunState(2, losses, weights, momentum, {"scale": 65536.0, "_growth_tracker": 2}, 12.5)


def test_a_state_comes_back_as_it_was(state: RunState, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "new/folder/a.safetensors", IDENTITY)
    files.write_state(state)
    back = files.read_state()
    assert back is not None
    assert (back.step, back.scaler, back.seconds) == (2, state.scaler, 12.5)
    assert np.array_equal(back.losses, state.losses, equal_nan=True)
    assert back.losses.dtype == np.float32
    back.losses[2] = 1  # the run writes into them
    assert set(back.weights) == {"a", "b"}
    assert all(torch.equal(tensor, state.weights[name]) for name, tensor in back.weights.items())
    assert [float(b[0]) for b in back.momentum] == list(range(12))
    assert [p.name for p in files.state.parent.iterdir()] == ["a.resume"]


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert RunFiles(tmp_path / "a.safetensors", IDENTITY).read_state() is None


def test_the_file_stands_beside_the_checkpoint() -> None:
    files = RunFiles(Path("out/my.part.safetensors"), IDENTITY)
    assert files.state == Path("out/my.part.resume")


def test_removing_leaves_nothing(state: RunState, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "a.safetensors", IDENTITY)
    files.write_state(state)
    (tmp_path / ".a.resume").write_text("half of it")
    (tmp_path / "other.resume").write_text("of another run")
    for _ in range(2):
        files.remove_state()
        assert [p.name for p in tmp_path.iterdir()] == ["other.resume"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"seed": 1, "batch_size": 2}}, r"\(seed 0, now 1\)"),
        ({"recipe": {"seed": 0, "batch_size": 32}}, r"\(batch_size 2, now 32\)"),
        ({"images": "cd34"}, r"\(images ab12, now cd34\)"),
        ({"loop": True}, r"\(loop False, now True\)"),
        ({"compiled": True}, r"\(compiled None, now True\)"),
    ],
)
def test_other_options_are_refused_by_name(
    change: dict[str, Any], message: str, state: RunState, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "a.safetensors"
    RunFiles(checkpoint, IDENTITY).write_state(state)
    expected = rf"a\.resume: an interrupted run with other options is there {message}\. .*--restart"
    with unchanged(tmp_path), pytest.raises(TrainingError, match=expected):
        RunFiles(checkpoint, {**IDENTITY, **change}).read_state()


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_something_else(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, path)


def with_other_notes(path: Path) -> None:
    save_file({"losses": torch.zeros(2)}, path, {"identity": "{}"})


def without_losses(path: Path) -> None:
    notes = {"identity": IDENTITY, "step": 2, "scaler": {}, "seconds": 1.0}
    save_file({"a": torch.zeros(2)}, path, {n: json.dumps(value) for n, value in notes.items()})


@pytest.mark.parametrize(
    "damage",
    [
        half,
        of_something_else,
        with_other_notes,
        without_losses,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not a state"),
    ],
    ids=["half", "something else", "other notes", "no losses", "empty", "text"],
)
def test_a_damaged_file_is_refused_in_one_line(
    damage: Any, state: RunState, tmp_path: Path
) -> None:
    files = RunFiles(tmp_path / "a.safetensors", IDENTITY)
    files.write_state(state)
    damage(files.state)
    with pytest.raises(TrainingError, match=r"a\.resume: .* cannot be read .*--restart") as caught:
        files.read_state()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- killed


@pytest.fixture(scope="module")
def whole(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole") / "cable.safetensors"
    train_small(category, path, LONGER)
    return path


def without_time(path: Path) -> Any:
    spec = json.loads(path.with_suffix(".json").read_text())
    assert spec["training"].pop("seconds") > 0
    del spec["digest"]  # which covers them
    return spec


@pytest.mark.parametrize(
    ("where", "step", "left"),
    [
        ("step 5", 1, {"cable.resume"}),
        ("step 19", 13, {"cable.resume"}),
        ("state 2", 1, {"cable.resume"}),
        ("state 1", 0, set()),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    where: str, step: int, left: set[str], whole: Path, category: Path, tmp_path: Path
) -> None:
    output = tmp_path / "cable.safetensors"
    killed(category, output, where)
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == left
    notes: list[str] = []
    reports: list[StepReport] = []
    spec = train_small(category, output, LONGER, report=reports.append, notify=notes.append)
    assert [p.done for p in reports] == list(range(step + 1, 26))
    expected = [f"{output}: continuing after step {step} of 25"] if step else []
    assert [note for note in notes if "continuing" in note] == expected
    assert output.read_bytes() == whole.read_bytes()
    tables = [path.with_name("cable-losses.csv").read_bytes() for path in (output, whole)]
    assert tables[0] == tables[1]
    assert without_time(output) == without_time(whole)
    assert spec.training.seconds > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "cable.safetensors",
        "cable.json",
        "cable-losses.csv",
    }


class Stop(Exception):
    """Ends a run where a test wants it interrupted."""


def interrupted(category: Path, output: Path, step: int, **options: Any) -> None:
    """Leave the state of a run that stopped after a step."""

    def report(progress: StepReport) -> None:
        if progress.done == step:
            raise Stop

    with pytest.raises(Stop):
        train_small(category, output, LONGER, report=report, save_every=0, **options)
    assert [path.name for path in output.parent.iterdir()] == ["cable.resume"]


@pytest.mark.parametrize(
    ("recipe", "options", "name"),
    [
        (replace(LONGER, seed=1), {}, "seed 0, now 1"),
        (replace(LONGER, batch_size=3), {}, "batch_size 2, now 3"),
        (replace(LONGER, decay="cosine"), {}, "decay none, now cosine"),
        (LONGER, {"precision": "bf16"}, "precision fp32, now bf16"),
        (LONGER, {"literal": True}, "literal False, now True"),
        (LONGER, {"false_reject_rate": 0.5}, "false_reject_rate 0.01, now 0.5"),
    ],
)
def test_other_options_do_not_continue_a_run(
    recipe: Recipe, options: dict[str, Any], name: str, category: Path, tmp_path: Path
) -> None:
    output = tmp_path / "cable.safetensors"
    interrupted(category, output, 5)
    expected = rf"cable\.resume: an interrupted run with other options is there \({name}\)"
    with unchanged(tmp_path), pytest.raises(TrainingError, match=expected):
        train_small(category, output, recipe, **options)


def test_restart_ignores_what_was_interrupted(whole: Path, category: Path, tmp_path: Path) -> None:
    output = tmp_path / "cable.safetensors"
    interrupted(category, output, 5, precision="bf16")
    half(tmp_path / "cable.resume")
    with pytest.raises(TrainingError, match="cannot be read"):
        train_small(category, output, LONGER)
    reports: list[StepReport] = []
    train_small(category, output, LONGER, restart=True, report=reports.append)
    assert reports[0].done == 1
    assert output.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "cable.resume").exists()
