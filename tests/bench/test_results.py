"""Result files: what reading refuses, and when two of them differ."""

import json

import numpy as np
import pytest

from destseg_bench.results import compare_results, differing_conditions
from destseg_bench.timing import summarize_timing
from destseg_deploy.errors import DataError
from tests.bench.calls import refuse, succeed

ENVIRONMENT = {"cpu": "a", "versions": {"numpy": "2"}}


def result(**medians):
    """A result of ``latency`` whose contenders took these seconds per call."""
    rows = []
    for name, seconds in medians.items():
        timing = vars(summarize_timing(seconds))
        rows.append({"name": name, "batch": 1, **timing})
    return {"environment": ENVIRONMENT, "rows": rows}


def calls(center, spread, seed, count=40):
    return (center + spread * np.random.default_rng(seed).standard_normal(count)).tolist()


def test_a_slower_run_is_seen_and_noise_is_not():
    first = result(a=calls(0.1, 0.004, 0), b=calls(0.1, 0.004, 1))
    second = result(a=calls(0.1, 0.004, 2), b=calls(0.12, 0.004, 3))
    (a, b), alone = compare_results(first, second)
    assert (a.verdict, b.verdict) == ("no difference seen", "slower")
    assert b.ratio == pytest.approx(1.2, rel=0.05)
    assert compare_results(second, first)[0][1].verdict == "faster"
    assert alone == []


def test_wide_spreads_hide_a_difference_and_more_calls_show_it():
    few = [result(a=calls(center, 0.03, i, 9)) for i, center in enumerate((0.100, 0.106))]
    many = [result(a=calls(center, 0.03, i, 4000)) for i, center in enumerate((0.100, 0.106))]
    assert not compare_results(*few)[0][0].seen
    assert compare_results(*many)[0][0].seen


def test_tiny_differences_are_none_however_sure():
    first, second = result(a=[0.1] * 50), result(a=[0.101] * 50)
    assert not compare_results(first, second)[0][0].seen
    assert compare_results(first, result(a=[0.103] * 50))[0][0].seen


def test_noise_alone_seldom_looks_like_a_difference():
    wrong = 0
    for seed in range(200):
        pair = [result(a=calls(0.1, 0.02, (seed, side), 30)) for side in (0, 1)]
        wrong += compare_results(*pair)[0][0].seen
    assert wrong <= 20  # about 5 % of 200


def test_shares_of_a_contender_cancel_a_slower_machine():
    first = result(base=calls(0.1, 0.002, 0), a=calls(0.05, 0.001, 1))
    second = result(base=calls(0.2, 0.004, 2), a=calls(0.1, 0.002, 3))
    assert compare_results(first, second)[0][1].verdict == "slower"
    (share,), _ = compare_results(first, second, relative_to="base")
    assert share.first.median == pytest.approx(0.5, rel=0.05)
    assert not share.seen
    slower = result(base=calls(0.2, 0.004, 2), a=calls(0.15, 0.002, 3))
    assert compare_results(first, slower, relative_to="base")[0][0].seen
    with pytest.raises(DataError, match="'x': not among base, a"):
        compare_results(first, second, relative_to="x")


def test_other_conditions_are_listed():
    other = {"environment": {"cpu": "b", "versions": {"numpy": "2", "torch": "1"}}, "threads": 2}
    lines = differing_conditions(result(a=[1, 1]), other)
    assert lines == ["threads: None and 2", "cpu: a and b", "torch: None and 1"]


def test_the_command_prints_verdicts_and_what_is_in_one_file_only(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(result(a=[0.1] * 9, gone=[0.1] * 9)))
    second.write_text(json.dumps({**result(a=[0.2] * 9), "complete": False}))
    output = succeed("compare", first, second).output
    assert "slower" in output
    assert "in one file only: gone, batch 1" in output
    assert f"{second}: not complete" in output
    output = succeed("compare", first, first, "--relative-to", "gone").output
    assert "share of gone" in output
    assert "1 ± 0" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no result"),
        (json.dumps(result(z=[1, 1])), "share no time"),
        (None, "no such file"),
    ],
)
def test_bad_files_are_one_line(tmp_path, text, message):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(result(a=[0.1] * 9)))
    if text is not None:
        second.write_text(text)
    refuse(message, "compare", first, second)


WRONG = (None, "x", -1, [], {}, float("nan"), 1e308, 10**400, True)


def damaged(name, value):
    """A result of which one entry of the second row or of the environment has another value."""
    whole = result(a=[0.1] * 9, b=[0.1] * 9)
    if name in whole["environment"]:
        return {**whole, "environment": {name: value}}
    whole["rows"][1][name] = value
    return whole


@pytest.mark.parametrize("name", ["median", "q1", "q3", "count", "versions"])
@pytest.mark.parametrize("value", WRONG, ids=lambda value: f"{value!r:.9}")
def test_a_damaged_time_is_one_line_with_its_file_and_entry(tmp_path, name, value):
    if (name, value) == ("versions", {}):  # none are no damage
        value = 0
    sound, path = tmp_path / "a.json", tmp_path / "b.json"
    sound.write_text(json.dumps(result(a=[0.1] * 9)))
    path.write_text(json.dumps(damaged(name, value)))
    where = f"{name} is " if name == "versions" else f"rows[1] (b, batch 1): {name} is "
    for files in ((sound, path), (path, sound)):
        refuse(f"Error: {path}: damaged, or not all of it is there ({where}", "compare", *files)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 0}, "rows[0] (a, batch 1): q1 100, q3 100, count 0, expected"),
        ({"q1": 200.0}, "rows[0] (a, batch 1): q1 200, q3 100, count 9, expected"),
        ({"q3": ...}, "rows[0] (a, batch 1): q3 is missing"),
        ({"name": ...}, "rows[0]: name is missing"),
        ({"batch": ...}, "rows[0]: batch is missing"),
    ],
)
def test_times_that_contradict_themselves_are_refused(tmp_path, change, words):
    whole, path = result(a=[0.1] * 9), tmp_path / "a.json"
    row = {**whole["rows"][0], **change}
    whole["rows"] = [{key: value for key, value in row.items() if value is not ...}]
    path.write_text(json.dumps(whole))
    refuse(f"({words}", "compare", path, path)


@pytest.mark.parametrize(
    "systems", [5, {"s": 5}, {"s": {"inference": 5}}, {"s": {"inference": {"1": {"wall": 5}}}}]
)
def test_damaged_systems_are_named(tmp_path, systems):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"environment": {}, "systems": systems}))
    refuse("is 5, expected an object", "compare", path, path)


def test_what_took_no_time_is_compared():
    """A copy to the device takes none on a CPU; no other time can be divided by it."""
    nothing, some = result(a=[0.0] * 9, b=[0.1] * 9), result(a=[0.1] * 9, b=[0.1] * 9)
    assert compare_results(nothing, nothing)[0][0].verdict == "no difference seen"
    assert compare_results(nothing, some)[0][0].verdict == "slower"
    assert compare_results(some, nothing)[0][0].verdict == "faster"
    (share,), _ = compare_results(nothing, nothing, relative_to="b")
    assert (share.first.median, share.first.notch) == (0, 0)
