"""Words that a newcomer has to read twice must not come back."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENDINGS = {".py", ".md", ".cpp", ".hpp", ".h", ".cu", ".cs"}
OF_OTHERS = {"cpp/example/stb_image.h"}
"""Kept as its author wrote it."""

RIDDLES = {
    "FOLDED": "merge the two halves of the file",
    "comes to lie": "say where it is",
    "contour at": "'outline above'",
    "held against": "'compared with'",
    "methods.md": "cite the paper's section, table or equation",
    "not in the issue": "issues are not in the repository; give the reason itself",
    "of so many": "name the number",
    "right by": "'0.052 below the threshold'",
}
"""What must not be written -> what to write instead."""

# Case matters for FOLDED alone, which is a mark; a line may break between two words.
PATTERNS = {
    riddle: re.compile(
        r"\b" + r"[\s#*/]+".join(map(re.escape, riddle.split())),
        0 if riddle.isupper() else re.IGNORECASE,
    )
    for riddle in RIDDLES
}


def _tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout here, so the project's own files are not known")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True)
    names = set(listed.stdout.decode().splitlines()) - OF_OTHERS
    paths = [ROOT / name for name in names]
    return [p for p in paths if p.suffix in ENDINGS and p.is_file() and p != Path(__file__)]


@pytest.mark.parametrize("riddle", RIDDLES)
def test_a_riddle_is_written_nowhere(riddle):
    found = []
    for path in _tracked():
        text = path.read_text("utf-8")
        for match in PATTERNS[riddle].finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}")
    assert not found, f"{riddle!r}: write {RIDDLES[riddle]}\n" + "\n".join(found)


@pytest.mark.parametrize("text", ["a contour at 0.5", "# the Contour\n# at it", "contour  at"])
def test_a_riddle_is_seen_across_lines(text):
    assert PATTERNS["contour at"].search(text)


def test_words_that_only_hold_a_riddle_are_let_be():
    assert not PATTERNS["right by"].search("bright by day")
    assert not PATTERNS["FOLDED"].search("folded")
