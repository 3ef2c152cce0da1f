"""What is written beside every number."""

import json
import os
import subprocess

import numpy as np

from destseg_deploy import environment


def test_it_says_what_ran_where():
    found = environment.describe_environment()
    assert found["cores"] == os.cpu_count()
    assert found["versions"]["numpy"] == np.__version__
    assert found["cpu"]
    assert found["command"]
    json.dumps(found)


def test_missing_programs_and_packages_are_left_out(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    found = environment.describe_environment()
    assert found["gpu"] is None
    assert found["commit"] is None
    assert list(found["versions"]) == ["numpy"]


def test_a_changed_checkout_is_marked(monkeypatch):
    monkeypatch.setattr(environment, "_output", lambda *c: " M file" if "status" in c else "abc")
    assert environment._commit() == "abc+"
    monkeypatch.setattr(environment, "_output", lambda *c: "" if "status" in c else "abc")
    assert environment._commit() == "abc"
