"""The loop over both phases: what learns when, what is reported, when the device is waited for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from destseg_deploy.errors import TrainingError
from destseg_deploy.models.inference import normalize_pixels
from destseg_deploy.training.checkpointing import RunState
from destseg_deploy.training.loop import LeanSteps, Observers, StepReport
from tests.deploy.training.cases import (
    LONGER,
    TINY,
    GivenLosses,
    State,
    equal,
    fit,
    make_loop,
    make_net,
    noise,
    part,
    snapshot,
)


@pytest.fixture(scope="module")
def states() -> tuple[State, State, State]:
    """The networks before, between and after the phases."""
    net = make_net()
    found = [snapshot(net)]

    def report(progress: StepReport) -> None:
        if progress.done in (TINY.student_steps, TINY.steps):
            found.append(snapshot(net))

    fit(net, TINY, report=report)
    before, between, after = found
    return before, between, after


def test_the_teacher_never_changes(states: tuple[State, State, State]) -> None:
    before, between, after = (part(state, "teacher_net") for state in states)
    assert equal(before, between)
    assert equal(before, after)


def test_phase_one_trains_the_student_alone(states: tuple[State, State, State]) -> None:
    before, between, _ = states
    assert equal(part(before, "segmentation_net"), part(between, "segmentation_net"))
    student = part(between, "student_net")
    assert all(not torch.equal(tensor, before[name]) for name, tensor in student.items())
    assert {int(t) for n, t in student.items() if n.endswith("num_batches_tracked")} == {2}


def test_phase_two_trains_the_segmentation_alone(states: tuple[State, State, State]) -> None:
    before, between, after = states
    assert equal(part(between, "student_net"), part(after, "student_net"))
    segmentation = part(after, "segmentation_net")
    assert all(not torch.equal(tensor, before[name]) for name, tensor in segmentation.items())
    assert {int(t) for n, t in segmentation.items() if n.endswith("num_batches_tracked")} == {2}


def test_a_trained_model_is_in_eval_mode() -> None:
    net = make_net()
    fit(net, TINY)
    assert not any(module.training for module in net.modules())


class Watch(LeanSteps):
    """Notes what the steps are given."""

    def __init__(self) -> None:
        super().__init__(4.0)
        self.seen: list[tuple[Tensor, ...]] = []

    def loss(self, net: Any, phase: str, image: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
        self.seen.append((image, clean, mask))
        return super().loss(net, phase, image, clean, mask)


def test_each_step_takes_its_batch_normalised_in_the_fast_order() -> None:
    net = make_net()
    loop = make_loop(net, TINY)
    loop.steps = watch = Watch()
    loop.fit(noise, RunState.fresh(TINY.steps))
    for given, (image, clean, mask) in zip(noise(0, 4), watch.seen, strict=True):
        assert torch.equal(image, normalize_pixels(given[0]))
        assert torch.equal(clean, normalize_pixels(given[1]))
        assert torch.equal(mask, given[2])
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert clean.is_contiguous(memory_format=torch.channels_last)
    weights = [p for p in net.student_net.parameters() if p.dim() == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_a_gamma_reaches_the_loss() -> None:
    losses = [fit(make_net(), replace(TINY, gamma=gamma)).losses for gamma in (4.0, 1.0)]
    assert np.array_equal(losses[0][:2], losses[1][:2])
    assert losses[0][2] != losses[1][2]


# ---------------------------------------------------------------------------- losses and reports


def rehearse(losses: list[float], student_steps: int, **observers: Any) -> RunState:
    """Run with given losses; return the state at the end."""
    recipe = replace(TINY, student_steps=student_steps, segmentation_steps=1)
    state = RunState.fresh(recipe.steps)
    loop = make_loop(make_net(), recipe)
    loop.steps = GivenLosses(losses)
    loop.fit(noise, state, Observers(**observers))
    return state


def test_progress_counts_both_phases() -> None:
    reports: list[StepReport] = []
    state = fit(make_net(), TINY, report=reports.append)
    assert [(p.phase, p.done, p.total) for p in reports] == [
        ("student", 1, 4),
        ("student", 2, 4),
        ("segmentation", 3, 4),
        ("segmentation", 4, 4),
    ]
    assert [p.loss for p in reports] == state.losses.tolist()
    assert state.step == 4


def test_the_loss_is_read_every_ten_steps_and_at_the_end() -> None:
    reports: list[StepReport] = []
    losses = [float(i) for i in range(13)] + [100.0]
    state = rehearse(losses, 13, report=reports.append)
    assert [p.loss for p in reports] == [0.0] * 10 + [10.0, 10.0, 12.0, 100.0]
    assert state.losses.tolist() == losses


def test_between_reads_no_value_is_fetched_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two phases of 12 and 13 steps: steps 1, 11 and the last of each."""
    fetched = []
    done = 0

    def report(progress: StepReport) -> None:
        nonlocal done
        done = progress.done

    def watched(name: str) -> Any:
        plain = getattr(Tensor, name)

        def fetch(self: Tensor, *arguments: Any, **options: Any) -> Any:
            fetched.append(done + 1)
            return plain(self, *arguments, **options)

        return fetch

    loop = make_loop(make_net(), LONGER)
    batches = list(noise(0, LONGER.steps))
    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, watched(name))
    state = RunState.fresh(LONGER.steps)
    loop.fit(lambda start, stop: iter(batches[start:stop]), state, Observers(report))
    once = [1, 11, 12, 13, 23, 25]
    assert fetched == sorted(once * 2)  # .cpu() and .numpy() of all losses since, together


@pytest.mark.parametrize(
    ("losses", "phase", "step"),
    [
        ([math.nan] * 12 + [1.0], "student", 1),
        ([1.0] * 3 + [math.nan] * 9 + [1.0], "student", 4),
        ([1.0] * 11 + [math.inf, 1.0], "student", 12),
        ([1.0] * 12 + [math.nan], "segmentation", 1),
    ],
)
def test_a_loss_that_is_not_finite_stops_and_saves_nothing(
    losses: list[float], phase: str, step: int
) -> None:
    saved: list[int] = []
    expected = (
        rf"the {phase} loss is (nan|inf) at step {step}\. No checkpoint was written\. Train again "
        r"with --restart, in fp32 \(--precision fp32\) or at lower rates; "
    )
    with pytest.raises(TrainingError, match=expected):
        rehearse(losses, 12, save=lambda state: saved.append(state.step), save_every=-1)
    reads = {("student", 1): [], ("student", 4): [1], ("student", 12): [1, 11]}
    assert saved == reads.get((phase, step), [1, 11, 12])


@pytest.mark.parametrize(
    ("every", "expected"), [(-1.0, [1, 11, 21, 25, 26]), (1.5, [11, 25, 26]), (1e9, [25, 26])]
)
def test_states_are_saved_at_reads_when_it_is_time(
    every: float, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on a second whenever it is read; the ends of phases are always saved."""
    seconds = iter(range(1000))
    monkeypatch.setattr("destseg_deploy.training.loop.time.monotonic", lambda: next(seconds))
    saved: list[int] = []
    rehearse([1.0] * 26, 25, save=lambda state: saved.append(state.step), save_every=every)
    assert saved == expected
