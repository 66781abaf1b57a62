"""Presets, the sampling plan, and what options refuse."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from everlearn.synthesis.options import DemonstrationOptions, resolve, rows_asked_for


def test_the_faithful_preset_is_what_the_scripts_do() -> None:
    options = DemonstrationOptions(preset="faithful")
    settings = resolve(options, 200)
    assert (settings.top_p, settings.repetition_penalty, settings.clusters) == (0.6, 1.2, 20)
    assert options.plan(settings, 380) == (380, 3)
    assert (settings.wanted, settings.least) == (200, 200)
    assert (options.demonstrations, options.temperature, options.top_k, options.max_length) == (2, 0.9, 50, 2048)
    assert (options.ratio, settings.selection, options.refine, options.save_more) == (0.1, "kmeans", True, False)


def test_ten_percent_of_2000_rows_are_200() -> None:
    assert rows_asked_for(0.1, 2000) == 200
    assert rows_asked_for(0.01, 30) == 1


@pytest.mark.parametrize(
    ("count", "options", "plan"),
    [
        (30, {}, (150, 1)),
        (200, {}, (380, 3)),
        (200, {"max_prompts": 100}, (100, 10)),
        (30, {"samples_per_prompt": 3}, (50, 3)),
        (30, {"oversampling": 2}, (60, 1)),
    ],
)
def test_improved_samples_are_spread_over_many_prompts(
    count: int, options: dict[str, int], plan: tuple[int, int]
) -> None:
    given = DemonstrationOptions.model_validate(options)
    assert given.plan(resolve(given, count), 380) == plan


def test_an_option_given_overrides_the_preset() -> None:
    options = DemonstrationOptions(preset="faithful", top_p=0.9, minimum=0, samples_per_prompt=1, max_prompts=7)
    settings = resolve(options, 10)
    assert (settings.top_p, settings.least, options.plan(settings, 380)) == (0.9, 0, (7, 1))


def test_spare_rows_are_only_refined_where_the_surplus_is_taken_away() -> None:
    assert resolve(DemonstrationOptions(spare=0.5), 10).wanted == 15
    assert resolve(DemonstrationOptions(preset="faithful", spare=0.5), 10).wanted == 10


def test_improved_clusters_never_exceed_the_rows_asked_for() -> None:
    assert resolve(DemonstrationOptions(), 8).clusters == 8
    assert resolve(DemonstrationOptions(preset="faithful"), 8).clusters == 20


def test_answers_that_are_missing_must_be_refined() -> None:
    with pytest.raises(ValidationError, match="needs refine: true"):
        DemonstrationOptions(save_more=True, refine=False)


def test_every_option_is_documented() -> None:
    assert [name for name, field in DemonstrationOptions.model_fields.items() if not field.description] == []
