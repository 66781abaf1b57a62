"""A run that is refused for too few synthetic instances is so before any training, and goes on as it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.cli.main import main

RECIPE = """
model: {base: embedded, tuning: full, template: vanilla}
stream: {tasks: embedded, train_limit: 40, evaluation_limit: 4, order: [sentiment, ruvian]}
method: {name: ssr, preset: faithful, ratio: 0.5, clusters: 1, max_prompts: 1, samples_per_prompt: 1, refine: false}
training: {epochs: 0.1, batch_size: 16}
evaluation: {max_new_tokens: 8, general: false}
"""


def test_a_refused_run_goes_on_under_another_name_with_changed_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    command = ["run", str(tmp_path / "recipe.yaml"), "--runs-dir", str(tmp_path / "runs"), "--quiet", "--name"]
    changed = ["--set", "method.max_prompts=20", "--set", "method.minimum=0.05"]
    assert main([*command, "first"]) == 2
    told = capsys.readouterr().err
    assert "raise the method's samples_per_prompt or max_prompts, lower its ratio or minimum" in told
    assert "needs another --name, under which finished steps are found again" in told
    assert main([*command, "first", *changed]) == 2
    assert not (tmp_path / "runs" / "first" / "stages" / "01-sentiment" / "training").exists()
    assert "it differs in method.max_prompts, method.minimum): choose another --name" in capsys.readouterr().err
    assert main([*command, "second", *changed]) == 0
    assert (tmp_path / "runs" / "second" / "stages" / "02-ruvian" / "rehearsal.jsonl").stat().st_size > 0


def test_a_comparison_is_refused_before_its_other_methods_are_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    command = ["compare", str(tmp_path / "recipe.yaml"), "--runs-dir", str(tmp_path / "runs"), "--quiet"]
    assert main([*command, "--methods", "sequential,ssr", "--name", "both"]) == 2
    assert "valid synthetic instances" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("training"))
