"""The steps on a bare GPU host: how each can end, what is kept, and what their commands are."""

import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from destseg_bench import gpu_run
from destseg_bench.cli import bench
from destseg_bench.cli.run_options import OWN
from destseg_bench.gpu_run import GRACE, LEAST, Step, group_steps, run_step, run_steps
from destseg_bench.gpu_steps import PROFILES, TESTS, Site, list_steps
from destseg_deploy.cli.train import split_training_options
from tests.bench.calls import refuse, succeed

ROOT = Path(__file__).resolve().parents[2]


def _python(code):
    return [sys.executable, "-c", code]


def _step(code, limit=60, result=None, **more):
    return Step("step", _python(code), limit, result, **more)


def test_the_result_of_a_step_that_works_is_taken_over(tmp_path):
    result = tmp_path / "result.json"
    code = f"open({str(result)!r}, 'w').write('{{\"ms\": 3}}'); print('done')"
    outcome = run_step(_step(code, result=result), tmp_path, 60)
    assert (outcome.verdict, outcome.result, outcome.output) == ("OK", {"ms": 3}, "done\n")


@pytest.mark.parametrize("content", [None, "[1]", "{"])
def test_an_old_or_broken_result_does_not_pass_for_this_runs(tmp_path, content):
    result = tmp_path / "result.json"
    result.write_text('{"ms": 1}')
    code = "pass" if content is None else f"open({str(result)!r}, 'w').write({content!r})"
    outcome = run_step(_step(code, result=result), tmp_path, 60)
    assert (outcome.verdict, outcome.result) == ("NG", {})
    assert "no result" in outcome.reason


@pytest.mark.parametrize(
    ("code", "limit", "reason", "output"),
    [
        ("print('a' * 5000 + 'the end'); exit(3)", 60, "exit status 3", "the end\n"),
        ("import time; print(1, flush=True); time.sleep(60)", 1, "stopped after 1 s", "1\n"),
    ],
)
def test_a_step_that_fails_gives_the_reason_and_the_end_of_its_output(
    tmp_path, code, limit, reason, output
):
    outcome = run_step(_step(code, limit), tmp_path, 60)
    assert (outcome.verdict, outcome.reason) == ("NG", reason)
    assert outcome.output.endswith(output)
    assert len(outcome.output) == (gpu_run.TAIL if "the end" in output else len(output))


def test_a_program_that_is_not_there_is_named(tmp_path):
    outcome = run_step(Step("x", ["/no/such/program"], 60), tmp_path, 60)
    assert outcome.verdict == "NG"
    assert outcome.reason.startswith("cannot be started: No such file")


@pytest.mark.parametrize("ending", ["import time; time.sleep(60)", "exit(1)"])
def test_what_a_step_had_written_counts_however_it_ends(tmp_path, ending):
    result = tmp_path / "result.json"
    code = f"open({str(result)!r}, 'w').write('{{\"rows\": [1]}}'); {ending}"
    outcome = run_step(_step(code, 1, result), tmp_path, 60)
    assert outcome.verdict == "NG"
    assert outcome.result == {"rows": [1]}


def test_a_stopped_step_takes_the_processes_that_it_started_along(tmp_path):
    """They would hold the GPU's memory, and an open pipe would let the step wait for them."""
    child = f"import time; time.sleep(8); open({str(tmp_path / 'alive')!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    outcome = run_step(_step(f"{code}; time.sleep(60)", 2), tmp_path, 60)
    assert outcome.reason == "stopped after 2 s"
    assert time.monotonic() - start < 7
    time.sleep(max(0.0, 9 - (time.monotonic() - start)))
    assert not (tmp_path / "alive").exists()


def test_a_step_that_does_not_listen_is_stopped_as_well(tmp_path):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    start = time.monotonic()
    assert run_step(_step(code, 1), tmp_path, 60).reason == "stopped after 1 s"
    assert time.monotonic() - start < 1 + GRACE + 1


def test_no_step_takes_more_than_what_is_left_of_the_budget(tmp_path):
    outcomes = run_steps([_step("import time; time.sleep(60)"), _step("pass")], tmp_path, 9)
    first, second = outcomes
    assert first.reason == "stopped after 6 s"
    assert second.verdict == "skipped"
    assert second.reason.endswith(f"s of the budget are left, expected {LEAST:.0f} or more")


def test_a_step_is_skipped_without_what_it_needs_and_goes_on_without_what_it_takes(tmp_path):
    gone, there = tmp_path / "gone.onnx", tmp_path / "there.onnx"
    there.touch()
    code = "import sys; print(sys.argv[1:])"
    words = [*_python(code), str(gone), str(there)]
    skipped = run_step(Step("a", words, 60, needs=(gone,)), tmp_path, 60)
    assert (skipped.verdict, skipped.reason) == ("skipped", "gone.onnx was not made")
    done = run_step(Step("b", words, 60, takes=(gone, there)), tmp_path, 60)
    assert (done.verdict, done.reason) == ("OK", "without gone.onnx")
    assert done.output == f"['{there}']\n"


def test_a_stand_in_is_skipped_where_what_it_stands_for_is_there(tmp_path):
    made = tmp_path / "screw.safetensors"
    step = Step("a", _python("pass"), 60, unless=(made,))
    assert run_step(step, tmp_path, 60).verdict == "OK"
    made.touch()
    skipped = run_step(step, tmp_path, 60)
    assert (skipped.verdict, skipped.reason) == ("skipped", "screw.safetensors was made")


def test_after_each_step_the_file_holds_what_is_known(tmp_path):
    output, seen = tmp_path / "out" / "gpu.json", []
    steps = [_step("pass"), _step("raise SystemExit(1)"), _step("", needs=(tmp_path / "x",))]

    def note(outcome):
        seen.append(json.loads(output.read_text()))

    run_steps(steps, output.parent, 60, report=note, profile="rehearse")
    assert [len(found["steps"]) for found in seen] == [1, 2, 3]
    assert [found["complete"] for found in seen] == [False, False, True]
    assert [one["verdict"] for one in seen[-1]["steps"]] == ["OK", "NG", "skipped"]
    assert seen[-1]["profile"] == "rehearse"
    assert {"commit", "gpu", "gpu_clocks", "versions"} <= set(seen[-1]["environment"])


def test_steps_that_time_nothing_run_beside_each_other(tmp_path):
    """Each of two waits for what the other one writes; the third begins when both are done."""
    wait = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.02)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    steps = [
        _step(f"open({a!r}, 'w')\n{wait.format(b)}", 20),
        _step(f"open({b!r}, 'w')\n{wait.format(a)}", 20, beside=True),
        _step("pass", needs=(tmp_path / "a", tmp_path / "b")),
    ]
    assert [len(group) for group in group_steps(steps)] == [2, 1]
    assert [one.verdict for one in run_steps(steps, tmp_path, 60)] == ["OK"] * 3


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux keeps processes to cores")
def test_steps_beside_each_other_share_the_cores(tmp_path):
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    steps = [Step(name, _python(code), 60, beside=name == "c") for name in "abc"]
    cores = [json.loads(one.output) for one in run_steps(steps, tmp_path, 60)]
    assert cores[0] == sorted(os.sched_getaffinity(0)), "one alone has all, and so has this process"
    if len(cores[0]) > 1:
        assert not set(cores[1]) & set(cores[2])
        assert sorted(cores[1] + cores[2]) == cores[0]


def _made_by(step, output):
    """Return the files of a step that other steps need."""
    words = [*step.command, "", ""]
    if "random-model" in words:
        return [output / "random.safetensors"]
    if "--train-into" in words:
        folder = Path(words[words.index("--train-into") + 1])
        return [folder / f"{words[words.index('--category') + 1]}.safetensors"]
    return []


@pytest.mark.parametrize("data", [None, Path("/mvtec")])
@pytest.mark.parametrize("tests", [None, ROOT])
@pytest.mark.parametrize("profile", PROFILES)
def test_no_step_begins_beside_the_one_that_makes_what_it_needs(tmp_path, profile, tests, data):
    """It would be skipped: nobody waits for the file."""
    steps = list_steps(profile, Site(tmp_path, data=data, tests=tests))
    made = set()
    for group in group_steps(steps):
        for step in group:
            assert set(step.needs) <= made, step.name
        made.update(path for step in group for path in _made_by(step, tmp_path))


@pytest.mark.parametrize("data", [None, Path("/mvtec")])
def test_a_training_that_fails_takes_only_what_needs_its_model_along(tmp_path, data):
    """Table S4 and the training's speed are measured, and latency on random weights."""
    steps = list_steps("record", Site(tmp_path, data=data))
    training = next(one for one in steps if one.name == "training")
    (trained,) = _made_by(training, tmp_path)
    random = tmp_path / "random.safetensors"
    left = {one.name for one in steps if trained not in one.needs}
    assert {"table-s4", "training speed", "rates", "training"} <= left
    stand_ins = [one for one in steps if trained in one.unless]
    assert [one.name for one in stand_ins if one.needs] == [
        "export random fp32",
        "export random fp16",
        "latency compiled of random weights",
    ]
    assert all(one.needs == (random,) for one in stand_ins if one.needs)
    assert "random model" in {one.name for one in steps}


TIME_NOTHING = ("tests", "pack", "export", "agreement", "short training")


def test_nothing_runs_beside_what_is_timed(tmp_path):
    for profile, device in product(PROFILES, ("cpu", "cuda")):
        groups = group_steps(list_steps(profile, Site(tmp_path, device, tests=tmp_path)))
        together = {step.name for group in groups if len(group) > 1 for step in group}
        assert all(name.startswith(TIME_NOTHING) and "speed" not in name for name in together)
        assert together


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_commands_of_the_steps_parse(tmp_path, profile, device):
    """Each is given to the real command's parser, so a renamed option is noticed here."""
    from destseg_export.cli import export

    site = Site(
        tmp_path, device, tmp_path, "screw", tmp_path, tmp_path / "teacher.safetensors", tmp_path
    )
    parsed = 0
    steps = list_steps(profile, site)
    for step in steps:
        python, flag, module, *words = step.command
        assert (python, flag) == (sys.executable, "-m")
        commands = {"destseg_export": export, "destseg_bench": bench}
        if module in commands:
            command = commands[module]
            if words[0] in getattr(command, "commands", {}):
                command, words = command.commands[words[0]], words[1:]
            command.make_context(module, list(words))
            parsed += 1
    assert parsed == len(steps) - (profile != "record"), "all but pytest"
    names = [step.name for step in steps]
    assert len(set(names)) == len(names), "each has a result of its own"


def test_record_trains_the_papers_schedule_and_rehearse_does_not(tmp_path):
    record = {one.name: one for one in list_steps("record", Site(tmp_path))}
    words = record["training"].command
    assert words[words.index("--preset") + 1] == "paper"
    # In TF32 the 5,000 steps might not end within the limit.
    assert words[words.index("--precision") + 1] == "bf16"
    assert float(words[words.index("--save-every") + 1]) > record["training"].limit == 300
    assert "--compiled" in record["latency compiled"].command
    assert "random model" in record, "it also draws the category where none is named"
    assert not record["random model"].unless
    named = {one.name: one for one in list_steps("record", Site(tmp_path, data=tmp_path))}
    assert named["random model"].unless, "there it is only for a training that fails"
    short = {one.name: one for one in list_steps("rehearse", Site(tmp_path))}
    words = short["short training"].command
    assert words[words.index("--steps") + 1] == "20,20"
    assert not any("--compiled" in one.command for one in short.values())
    workers = short["short training speed"].command
    assert workers[workers.index("--workers") + 1] == "14", "the literal loop waits for samples"


def test_the_papers_schedule_in_half_keeps_its_name_and_says_its_precision(tmp_path):
    """A report calls a run the paper's by its recipe, and its precision stands beside it."""
    from destseg_bench.cli.accuracy import accuracy

    training = next(one for one in list_steps("record", Site(tmp_path)) if one.name == "training")
    words = training.command[training.command.index("accuracy") + 1 :]
    options = accuracy.make_context("accuracy", list(words)).params
    recipe, how, _ = split_training_options(
        {k: v for k, v in options.items() if k not in (*OWN, "on")}
    )
    assert (recipe.name, recipe.steps, how.precision) == ("paper", 5000, "bf16")


def test_the_named_test_files_hold_all_tests_for_a_gpu():
    marked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if any(mark in path.read_text() for mark in ("mark.gpu", "real_gpu()"))
        and path != Path(__file__)
    }
    missing = {one for one in marked if not any(one.startswith(name) for name in TESTS)}
    assert not missing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--category", "nut"), "--category nut: it needs --data"),
        (("--data", "/no/such"), "--data: /no/such/screw is not there"),
        (("--textures", "/no/such"), "--textures: /no/such is not there"),
        (("--budget", "3"), "3"),
        (("--profile", "all"), "rehearse"),
        (("--device", "gpu"), "expected auto, cpu, cuda"),
    ],
)
def test_bad_calls_are_refused_before_any_time_is_spent(tmp_path, words, message):
    refuse(message, "gpu", "--output", tmp_path / "out", *words, status=2)
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_the_command_refuses(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    refuse("sees no CUDA GPU", "gpu", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_commands_can_be_listed_without_a_gpu(tmp_path):
    listed = succeed("gpu", "--output", tmp_path / "out", "--list").output.splitlines()
    assert len(listed) == len(list_steps("rehearse", Site(tmp_path, tests=ROOT)))
    assert not (tmp_path / "out").exists()


def test_without_torch_the_commands_can_be_listed_and_the_rest_is_one_line(tmp_path):
    block = "import sys; sys.modules['torch'] = None; from destseg_bench.cli import bench; "
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/export:{ROOT}/benchmarks"}
    for words, expected in ((["--list"], ""), ([], "needs torch, which is not installed")):
        call = ["gpu", "--device", "cpu", "--output", str(tmp_path / "out"), *words]
        done = subprocess.run(
            [sys.executable, "-c", f"{block}bench({call})"],
            capture_output=True,
            text=True,
            env=environ,
            timeout=60,
        )
        assert done.returncode == bool(expected), done.stderr
        assert expected in done.stderr
        assert len(done.stderr.splitlines()) == bool(expected)


@pytest.mark.parametrize("module", ["destseg_bench", "destseg_export"])
def test_it_runs_as_a_module_from_a_bare_path(module, tmp_path):
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/export:{ROOT}/benchmarks"}
    done = subprocess.run(
        [sys.executable, "-m", module, "-h"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environ,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: {module.replace('_', '-')}")


def test_the_bounds_of_this_machine_are_measured(tmp_path):
    output = tmp_path / "rates.json"
    printed = succeed("rates", "--device", "cpu", "--output", output).output
    row = json.loads(output.read_text())["rows"][0]
    assert row["tflops"] > 0
    assert row["memory_gb_per_second"] > 0
    assert "to_device_gb_per_second" not in row, "there is no other memory"
    assert "TFLOP/s" in printed


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    succeed("random-model", "--output", folder, "--size", "64")
    return folder / "random.safetensors"


def test_a_random_model_can_show_that_half_is_right(random_model):
    """It answers differently for other images, and rounds within the budget of the gate."""
    from destseg_deploy.loading import load
    from destseg_deploy.options import TorchOptions

    images = random_model.parent / "data" / "cable" / "test"
    options = TorchOptions(precision="fp16", verify_images=images)
    with load(random_model, options=options) as half:
        assert half.spec.precision == "fp16"


def test_a_checkpoint_comes_back_in_parts(random_model, tmp_path, monkeypatch):
    from destseg_bench import gpu_parts
    from destseg_deploy.models.weights import load_checkpoint

    model, spec = load_checkpoint(random_model)
    monkeypatch.setattr(gpu_parts, "PART", 2**23)
    printed = succeed("pack", random_model, "--output", tmp_path).output.splitlines()
    parts = sorted(tmp_path.glob("random.part*"))
    assert len(printed) == len(parts) + 1 > 5
    assert max(path.stat().st_size for path in parts) == 2**23

    def same_teacher(teacher, weights):
        teacher.load_state_dict(model.teacher_net.state_dict())
        return spec.teacher

    monkeypatch.setattr(gpu_parts, "load_teacher", same_teacher)
    output = tmp_path / "back.safetensors"
    succeed("unpack", tmp_path / "random.json", "--output", output)
    back, _ = load_checkpoint(output)
    for name, value in model.state_dict().items():
        found = back.state_dict()[name]
        wanted = (
            value if name.startswith("teacher") or not value.is_floating_point() else value.half()
        )
        np.testing.assert_array_equal(found, wanted)
    parts[2].unlink()
    refuse(
        "parts of random make no checkpoint", "unpack", tmp_path / "random.json", "--output", output
    )
