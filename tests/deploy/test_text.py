"""Any file name can be shown, and none can do harm."""

import csv

import pytest

from destseg_deploy.text import printable, write_csv


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Käse 角.png", "Käse 角.png"),
        ("a\nb\r\t.png", r"a\nb\r\t.png"),
        ("\x1b[2J\x07\x7f", r"\x1b[2J\x07\x7f"),
        ("\x9b31m", r"\x9b31m"),
        (b"k\xe4se.png".decode("utf-8", "surrogateescape"), r"k\xe4se.png"),
        ("\ud800", r"\ud800"),
        ("\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text, shown):
    assert printable(text) == shown
    assert printable(text).encode()


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_no_separator_begins_a_cell_that_is_run(separator, tmp_path):
    path, name = tmp_path / "a.csv", f"a{separator}=1+1.png"
    write_csv(path, ["image", "score", "error"], [(name, 0.5, None)])
    assert f'\n"{name}",0.5,\r\n'.encode() in path.read_bytes()
    with path.open(newline="", encoding="utf-8-sig") as file:
        cells = [cell for row in csv.reader(file, delimiter=separator) for cell in row]
    assert not [cell for cell in cells if cell.startswith("=")]


def test_a_table_opens_in_excel_and_runs_nothing(tmp_path):
    path = tmp_path / "a.csv"
    names = [
        "=1+1",
        "+1",
        "-1",
        "@a",
        "\t=1",
        "\r=1",
        "\n=1",
        "a\nb",
        b"\xff".decode("utf-8", "surrogateescape"),
    ]
    write_csv(path, ["image", "score"], [(name, -0.5) for name in names])
    assert path.read_bytes().startswith(b"\xef\xbb\xbfimage,score\r\n")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"'{name}" for name in names[:7]] + ["a\nb", r"\xff"]
    assert {row["score"] for row in rows} == {"-0.5"}
