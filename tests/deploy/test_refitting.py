"""refit_engine: all weights or none, in TensorRT's order, and an error for each way to fail."""

from types import SimpleNamespace

import pytest

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.refitting import refit_engine


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
