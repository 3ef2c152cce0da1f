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


def test_a_table_opens_in_excel_and_runs_nothing(tmp_path):
    path = tmp_path / "a.csv"
    names = [
        "=1+1",
        "+1",
        "-1",
        "@a",
        "\t=1",
        "\r=1",
        "a\nb",
        b"\xff".decode("utf-8", "surrogateescape"),
    ]
    write_csv(path, ["image", "score"], [(name, -0.5) for name in names])
    assert path.read_bytes().startswith(b"\xef\xbb\xbfimage,score\r\n")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"'{name}" for name in names[:6]] + ["a\nb", r"\xff"]
    assert {row["score"] for row in rows} == {"-0.5"}
