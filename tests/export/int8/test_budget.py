"""Layers given back until the accuracy holds."""

import pytest

from destseg_deploy.errors import ExportError
from destseg_export.int8.budget import CHOSEN_WITHIN, Cost, by_harm, doubling, fit_budget, spared

LOST = {"a": 2.0, "b": 0.4, "c": 0.1}


def _measure(kept):
    return Cost(sum(LOST[name] for name in kept), 0.1)


@pytest.mark.parametrize(
    ("allowed", "layers", "lost"),
    [
        (3.0, "abc", 2.5),
        (2.5 + 1e-9, "abc", 2.5),
        (2.4, "bc", 0.5),
        (0.5 + 1e-9, "bc", 0.5),
        (0.2, "c", 0.1),
    ],
)
def test_the_most_sensitive_go_first(allowed, layers, lost):
    """Within a share of the budget: the images that judge may lose more than these."""
    fit = fit_budget(_measure, "abc", allowed / CHOSEN_WITHIN)
    assert "".join(fit.layers) == layers
    assert "".join(fit.given_back) == "abc"[: 3 - len(layers)]
    assert fit.cost.lost == pytest.approx(lost)


def test_a_budget_that_cannot_be_met_names_the_best_found():
    with pytest.raises(
        ExportError, match=r"Best found: 0\.10 points and 10% of .* with 1 of 3 layers"
    ):
        fit_budget(_measure, "abc", 0.01)


@pytest.mark.parametrize("far", [0.801, float("nan")])
def test_a_layer_that_moves_an_answer_too_far_is_given_back_though_the_metrics_hold(far):
    """They were refused only on the images that judge: after minutes, and with no layer tried."""

    def measure(kept):
        return Cost(-0.2, far if "a" in kept else CHOSEN_WITHIN)

    fit = fit_budget(measure, "abc", 0.5)
    assert (fit.given_back, fit.cost.moved) == (("a",), CHOSEN_WITHIN)
    with pytest.raises(ExportError, match=r"or moves answers too far, .*-0\.20 points and 150% of"):
        fit_budget(lambda kept: Cost(-0.2, 1.5), "abc", 0.5)


def test_attempts_are_reported():
    lines = []
    fit_budget(_measure, "abc", 0.25, lines.append)
    assert lines == [
        "3 of 3 layers in int8: up to 2.50 points lost, answers move by 10% of the limit",
        "2 of 3 layers in int8: up to 0.50 points lost, answers move by 10% of the limit",
        "1 of 3 layers in int8: up to 0.10 points lost, answers move by 10% of the limit",
    ]


@pytest.mark.parametrize(
    ("below", "counts"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 4, 8])]
)
def test_counts_double_up_to_a_single_layer_left(below, counts):
    assert doubling(below) == counts


@pytest.mark.parametrize("sensitive", range(49))
def test_among_many_layers_few_attempts_find_the_smallest_number(sensitive):
    """Each of the first ``sensitive`` layers alone breaks the budget, the others cost nothing."""
    layers = [f"layer{i}" for i in range(50)]
    attempts = []

    def measure(kept):
        attempts.append(kept)
        return Cost(1.0 * (layers[sensitive - 1] in kept if sensitive else 0), 0.1)

    fit = fit_budget(measure, layers, 0.5)
    assert len(fit.given_back) == sensitive
    assert fit.layers in attempts  # what is returned was measured
    assert len(attempts) <= 13


def test_a_small_layer_that_moves_the_maps_is_given_back_before_a_large_one():
    moved = {"large": 3.0, "small": 2.0, "still": 0.5}
    assert by_harm(moved, {"large": 10, "small": 1, "still": 1}) == ["small", "still", "large"]
    assert by_harm(moved, dict.fromkeys(moved, 1)) == ["large", "small", "still"]


@pytest.mark.parametrize(
    ("macs", "count"), [((1, 1, 98), 2), ((1, 2, 97), 1), ((3, 1, 96), 0), ((50, 50, 0), 0)]
)
def test_the_most_harmful_layers_stay_in_float_as_far_as_they_are_small(macs, count):
    assert spared("abc", dict(zip("abc", macs, strict=True))) == count
