"""The words under a picture: a verdict that follows the threshold, in digits that bear it out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from destseg_deploy.pictures.text import (
    GROUND,
    GROUND_TRUTH,
    NG,
    OK,
    PREDICTED,
    TEXT,
    Colour,
    Label,
    RgbImage,
    add_strip,
    caption_font,
    caption_rows,
    shorten,
)

BLACK = np.zeros((256, 256, 3), np.uint8)


def count(image: RgbImage, colour: Colour) -> int:
    return columns(image, colour).size


def columns(image: RgbImage, colour: Colour) -> npt.NDArray[np.intp]:
    """Return the column of every pixel of exactly this colour."""
    return np.nonzero(np.all(image == np.array(colour, np.uint8), axis=-1))[1]


@pytest.mark.parametrize(
    ("score", "threshold", "badge"),
    [
        (0.873, 0.412, {"red"}),
        (0.3, 0.412, {"green"}),
        (0.5, 0.5, {"green"}),
        (np.nextafter(np.float32(0.5), np.float32(1)), 0.5, {"red"}),
        (np.float32(0.4), 0.4, {"green"}),  # as Python floats, 0.4000000059 > 0.4
        (np.float32(0.4), np.float64(0.4), {"green"}),
        (0.873, None, set()),
        (-3.5, -4, {"red"}),
    ],
)
def test_the_badge_is_red_only_above_the_threshold(
    score: float, threshold: float | None, badge: set[str]
) -> None:
    strip = add_strip(BLACK, caption_rows(score, threshold, None, False))[256:]
    colours = {"red": NG, "green": OK}
    assert {name for name, colour in colours.items() if count(strip, colour) > 50} == badge


@pytest.mark.parametrize(
    ("score", "threshold", "words"),
    [
        (0.873, 0.412, ["NG", "0.89", "raw 0.873, threshold 0.412"]),
        (0.412, 0.412, ["OK", "0.50", "raw 0.412, threshold 0.412"]),
        (0.41204, 0.41196, ["NG", "0.5001", "raw 0.41204, threshold 0.41196"]),
        (0.00012, 0.0003, ["OK", "0.20", "raw 0.0001, threshold 0.0003"]),
        (0.873, None, ["score 0.873", "no threshold"]),
    ],
)
def test_the_caption_shows_digits_that_bear_out_the_verdict(
    score: float, threshold: float | None, words: list[str]
) -> None:
    (verdict,) = caption_rows(score, threshold, None, False)
    assert [label.text for label in verdict] == words


def test_the_raw_numbers_are_small_and_the_verdict_is_not() -> None:
    (row,) = caption_rows(0.873, 0.412, None, False)
    assert [label.kind for label in row] == ["badge", "text", "small"]
    assert row[2].font(20).size < row[1].font(20).size == row[0].font(20).size == 20


def test_the_legend_names_the_contours_that_are_drawn() -> None:
    legend = caption_rows(0.5, 0.4, 0.35, True)[1]
    assert [label.text for label in legend] == ["map > 0.35", "ground truth"]
    assert [label.colour for label in legend] == [PREDICTED, GROUND_TRUTH]
    assert caption_rows(0.5, 0.4, 0.35, False)[1] == legend[:1]
    assert caption_rows(0.5, 0.4, None, True)[1] == legend[1:]
    assert len(caption_rows(0.5, 0.4, None, False)) == 1


def test_words_and_lines_are_drawn_in_their_colours() -> None:
    colour = (10, 250, 40)
    word, line = Label("word", colour), Label("word", colour, "line")
    assert columns(add_strip(BLACK, [[word]])[256:], colour).size > 0
    strip = add_strip(BLACK, [[line]])[256:]
    assert columns(strip, colour).max() < columns(strip, TEXT).min()
    assert columns(strip, colour).size > 10


def test_words_of_one_row_do_not_touch() -> None:
    wide = np.zeros((256, 1024, 3), np.uint8)
    (row,) = caption_rows(0.873, 0.412, None, False)

    def inked(labels: list[Label]) -> int:
        strip = add_strip(wide, [labels])[256:]
        return strip[..., 0].size - count(strip, GROUND)

    assert inked(row) == pytest.approx(sum(inked([label]) for label in row), abs=40)


def test_a_long_text_keeps_both_of_its_ends() -> None:
    font = caption_font(14)
    text = "screw/test/manipulated_front/000123.png"
    short = shorten(text, font, 128)
    head, tail = short.split("...")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert min(len(head), len(tail)) >= 3
    assert 100 < font.getlength(short) <= 128
    assert shorten("000.png", font, 128) == "000.png"
    assert shorten(" 000.png\nOK ", font, 128) == "000.png OK"
