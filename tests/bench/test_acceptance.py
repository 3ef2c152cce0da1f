"""The steps of a GPU's acceptance: each has its turn, and what became of it is told."""

import json
import sys

import pytest
from click.testing import CliRunner

from destseg_bench import acceptance
from destseg_bench.acceptance import Step, acceptance_steps, run_step, run_steps
from destseg_bench.cli import bench


def _python(code):
    return [sys.executable, "-c", code]


def test_a_step_that_works_is_taken_over(tmp_path):
    result = tmp_path / "result.json"
    code = f"open({str(result)!r}, 'w').write('{{\"ms\": 3}}'); print('done')"
    outcome = run_step(Step("latency", _python(code), result), 60)
    assert (outcome.status, outcome.result, outcome.output) == ("passed", {"ms": 3}, "done\n")


def test_an_old_result_does_not_pass_for_this_runs(tmp_path):
    result = tmp_path / "result.json"
    result.write_text('{"ms": 1}')
    outcome = run_step(Step("latency", _python("pass"), result), 60)
    assert outcome.status == "failed"
    assert "no result" in outcome.reason


def test_a_step_that_fails_shows_the_end_of_its_output():
    outcome = run_step(Step("x", _python("print('a' * 5000 + 'the end'); raise SystemExit(3)")), 60)
    assert (outcome.status, outcome.reason) == ("failed", "exit status 3")
    assert outcome.output.endswith("the end\n")
    assert len(outcome.output) == acceptance.TAIL


def test_a_step_that_hangs_is_stopped():
    code = "import time; print('began', flush=True); time.sleep(60)"
    outcome = run_step(Step("x", _python(code)), 1.0)
    assert (outcome.status, outcome.reason) == ("failed", "stopped after 1 s")
    assert outcome.output == "began\n"


def test_a_program_that_is_not_there_is_a_failure():
    outcome = run_step(Step("x", ["/no/such/program"]), 60)
    assert outcome.status == "failed"
    assert "cannot be started: No such file" in outcome.reason


def test_a_step_with_something_missing_is_skipped(tmp_path):
    trace = tmp_path / "ran"
    step = Step("engine", _python(f"open({str(trace)!r}, 'w')"), missing="no TensorRT here")
    assert run_step(step, 60).status == "skipped"
    assert run_step(step, 60).reason == "no TensorRT here"
    assert not trace.exists()


def test_after_each_step_the_file_holds_what_is_known(tmp_path):
    output = tmp_path / "acceptance.json"
    seen: list[dict] = []
    steps = [
        Step("first", _python("pass")),
        Step("second", _python("raise SystemExit(1)")),
        Step("third", ["x"], missing="no GPU"),
    ]
    run_steps(steps, output, report=lambda one: seen.append(json.loads(output.read_text())))
    assert [len(found["steps"]) for found in seen] == [1, 2, 3]
    assert [found["complete"] for found in seen] == [False, False, True]
    result = json.loads(output.read_text())
    assert result["complete"]
    assert [one["status"] for one in result["steps"]] == ["passed", "failed", "skipped"]
    assert "commit" in result["environment"]


def test_all_steps_are_there_and_name_what_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(acceptance, "_no_builder", lambda: "no builder")
    steps = acceptance_steps(tmp_path / "screw.safetensors", tmp_path / "screw", tmp_path, None)
    lacking = {step.name for step in steps if step.missing}
    assert lacking == {"tests on the GPU", "fp32 engine", "fp16 engine"}
    assert not any(".engine" in word for step in steps for word in step.command)
    monkeypatch.setattr(acceptance, "_no_builder", lambda: "")
    steps = acceptance_steps(tmp_path / "screw.safetensors", tmp_path / "screw", tmp_path, tmp_path)
    assert not any(step.missing for step in steps)
    latency = next(step for step in steps if step.name == "latency")
    assert str(tmp_path / "screw-fp16.engine") in latency.command
    assert latency.command[latency.command.index("--batch") + 1] == "1,8,32"


def test_the_commands_of_the_steps_parse(tmp_path, monkeypatch):
    """Each is given to the real command's parser, so a renamed option is noticed here."""
    from destseg_export.cli import export

    monkeypatch.setattr(acceptance, "_no_builder", lambda: "")
    steps = acceptance_steps(tmp_path / "screw.safetensors", tmp_path, tmp_path, tmp_path)
    commands = {"destseg-export": export, "destseg-bench": bench}
    parsed = 0
    for step in steps:
        program, *words = step.command
        name = program.rsplit("/", 1)[-1]
        if name in commands:
            command = commands[name]
            if words[0] in getattr(command, "commands", {}):
                command, words = command.commands[words[0]], words[1:]
            command.make_context(name, list(words))
            parsed += 1
    assert parsed == len(steps) - 1, "all but pytest"


def test_without_a_gpu_the_command_refuses(checkpoint, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    words = ["gpu-acceptance", "--checkpoint", str(checkpoint), "--data", str(tmp_path)]
    output = tmp_path / "x.json"
    answer = CliRunner().invoke(bench, [*words, "--output", str(output)])
    assert answer.exit_code == 1
    assert "sees no CUDA GPU" in answer.output
    assert len(answer.output.splitlines()) == 1
    assert not output.exists()
