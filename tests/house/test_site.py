"""The documentation is built without a warning, and its pages ask no other host."""

import os
import re
import subprocess
import sys

import pytest

from tests.house.pages import ROOT

yaml = pytest.importorskip("yaml", reason="the extra docs is not installed: make docs")
pytest.importorskip("material", reason="the extra docs is not installed: make docs")


def _build(config, site):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*command, "--config-file", str(config), "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = _build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_built(site):
    names = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in site.glob("*.html")} - {"404"} == names


def test_the_readmes_of_the_rooms_are_pages(site):
    assert "Table S4 on AMD EPYC" in (site / "benchmarks.html").read_text("utf-8")
    assert "destseg_last_error" in (site / "native.html").read_text("utf-8")


def test_no_page_asks_another_host(site):
    """Links may lead anywhere; what a browser loads by itself is here."""
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?(https?://[^\" >]+)")
    for page in site.glob("*.html"):
        found = set(loads.findall(page.read_text("utf-8")))
        assert not found, page.name
    assert loads.findall('<script src="https://x.org/a.js">'), "control"


def test_a_broken_link_fails_the_build(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("[gone](gone.md)\n")
    settings = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(settings)
    built = _build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0
    assert "gone.md" in built.stderr + built.stdout


def test_github_runs_what_a_submission_must_pass():
    flow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    assert any(step.get("run") == ".ci/run" for step in steps)
    assert all(re.search(r"@v\d+$", step["uses"]) for step in steps if "uses" in step)
    assert re.search(r"^make .*\bdocs\b", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
