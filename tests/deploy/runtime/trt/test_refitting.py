"""New weights for an engine: only of an equal graph, all or none, an error for each way to fail."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from destseg_deploy.errors import BackendError, SpecError
from destseg_deploy.runtime.trt.refit import read_weights, refit_engine
from destseg_deploy.spec import OutputSpec
from tests.fakes.tensorrt_module import engine_spec, write_onnx


class Fake:
    """A TensorRT that holds its callers to the order of calls and records what it did."""

    def __init__(self, *, refittable=True, accepts=True, missing=(), errors=(), refits=True):
        self.engine = SimpleNamespace(refittable=refittable)
        self.accepts, self.missing, self.refits = accepts, list(missing), refits
        self.errors, self.calls = list(errors), []

    def Refitter(self, engine, logger):
        assert (engine, logger) == (self.engine, "logger")
        self.calls.append("refitter")
        self.refitter = SimpleNamespace(
            get_missing_weights=lambda: self.missing, refit_cuda_engine=self._refit
        )
        return self.refitter

    def OnnxParserRefitter(self, refitter, logger):
        assert (refitter, logger) == (self.refitter, "logger")
        return SimpleNamespace(
            refit_from_bytes=self._take,
            num_errors=len(self.errors),
            get_error=lambda index: SimpleNamespace(desc=lambda: self.errors[index]),
        )

    def _take(self, content):
        assert content == b"onnx"
        self.calls.append("weights")
        return self.accepts

    def _refit(self):
        self.calls.append("refit")
        return self.refits


def _refit(fake: Fake) -> None:
    refit_engine(fake, fake.engine, b"onnx", "logger")


def test_weights_are_set_then_applied():
    fake = Fake()
    _refit(fake)
    assert fake.calls == ["refitter", "weights", "refit"]


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (Fake(refittable=False), "not refittable: .*--refittable"),
        (Fake(accepts=False), "TensorRT gave no reason.*Nothing was changed"),
        (Fake(accepts=False, errors=["no\nsuch weight", "b"]), r"\(no such weight; b\)"),
        (Fake(missing=["conv.weight"]), "1 missing: conv.weight.*Nothing was changed"),
        (Fake(missing=list("abcdefg")), r"7 missing: a, b, c, d, e, \.\.\."),
    ],
)
def test_what_does_not_fit_changes_nothing(fake, words):
    with pytest.raises(BackendError, match=words):
        _refit(fake)
    assert "refit" not in fake.calls


def test_a_failure_in_the_middle_says_that_the_engine_is_lost():
    with pytest.raises(BackendError, match=r"some may be replaced\. Open the engine anew"):
        _refit(Fake(refits=False))


# --- which files fit


def test_weights_bring_their_category_and_threshold(tmp_path):
    engine = engine_spec()
    content, spec = read_weights(write_onnx(tmp_path, gain=0.25), engine)
    assert content == (tmp_path / "other.onnx").read_bytes()
    assert (spec.category, spec.threshold.score) == ("other", 0.25)
    assert (spec.artifact, spec.input, spec.kind) == (engine.artifact, engine.input, "engine")
    assert spec.engine.onnx == "other.onnx"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "fp16"}, "precision is fp16, the engine fake.onnx has fp32"),
        ({"output": OutputSpec(64, 64, top_k=5)}, "output is .*top_k=5"),
        ({"output": OutputSpec(32, 64, top_k=4)}, "output is"),
        ({"kind": "checkpoint"}, "its spec says checkpoint, expected onnx"),
        ({"input": engine_spec((32, 64)).input}, r"input is \('image', 32, 64\)"),
        ({"network": replace(engine_spec().network, height=32)}, "network is"),
    ],
)
def test_weights_of_another_graph_are_refused(tmp_path, change, words):
    with pytest.raises(SpecError, match=words):
        read_weights(write_onnx(tmp_path, **change), engine_spec())


def test_files_that_are_no_fitting_onnx_are_refused(tmp_path):
    with pytest.raises(SpecError, match=r"expected the \.onnx.*--precision fp32"):
        read_weights(tmp_path / "cable.safetensors", engine_spec())
    with pytest.raises(SpecError, match="no spec"):
        read_weights(tmp_path / "missing.onnx", engine_spec())
    onnx = write_onnx(tmp_path)
    onnx.write_bytes(b"x")
    with pytest.raises(SpecError, match="damaged"):
        read_weights(onnx, engine_spec())
