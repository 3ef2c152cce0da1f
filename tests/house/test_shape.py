"""The bounds that keep the house in order; ``make house`` prints the figures behind them."""

import pytest

from tests.house.measure import ROOT, House, measure

MOST_FILES, MOST_LINES, MOST_PARAMETERS = 15, 450, 8

LARGE_FOLDERS: dict[str, str] = {}
"""Folder -> why it may hold more than 15 files; ``__init__`` is not counted."""

LONG_FILES: dict[str, str] = {}
"""File -> why it may have more than 450 lines."""

WIDE_FUNCTIONS: dict[str, str] = {}
"""Function -> why it may take more than 8 parameters. In ``cli`` each parameter is an option."""


@pytest.fixture(scope="module")
def house() -> House:
    return measure(ROOT)


def test_no_files_import_each_other(house):
    assert house.cycles() == []


def test_no_folder_holds_too_many_files(house):
    large = {folder for folder, files in house.folders().items() if files > MOST_FILES}
    assert large == set(LARGE_FOLDERS)


def test_no_file_is_too_long(house):
    assert {name for name, lines in house.lines.items() if lines > MOST_LINES} == set(LONG_FILES)


def test_no_function_takes_too_many_parameters(house):
    wide = {f.name for f in house.functions if f.parameters > MOST_PARAMETERS}
    assert {name for name in wide if "/cli/" not in name} == set(WIDE_FUNCTIONS)


def test_the_measures_see_what_they_measure(tmp_path):
    """Negative control: a small tree with one cycle, one wide function and one comment."""
    package = tmp_path / "destseg_deploy"
    package.mkdir()
    (package / "__init__.py").write_text('"""Doc."""\n')
    (package / "one.py").write_text(
        "from destseg_deploy import two\n"
        "def wide(self, a, b, /, c, d, *e, f, g, h=0, i=0, **j):\n"
        '    """Doc."""\n'
        "    import x  # noqa: F401\n"
        "    # a reason\n"
        "    return [k for k in a if b or c or d]\n"
    )
    (package / "two.py").write_text("def deferred():\n    from destseg_deploy.one import wide\n")
    seen = measure(tmp_path)
    files = ("destseg_deploy/one.py", "destseg_deploy/two.py")
    assert seen.cycles() == [files]
    assert seen.lines == {"destseg_deploy/__init__.py": 1, files[0]: 6, files[1]: 2}
    assert seen.comments == 1
    assert seen.functions[0] == (f"{files[0]}:wide", 3, 3, 10)
    assert seen.wide() == [f"{files[0]}:wide 10"]
