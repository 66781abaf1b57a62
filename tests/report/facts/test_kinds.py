"""Many methods on one page: by kind, the best of each in front, kinds shown and hidden without a script."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from everlearn.methods.base import Trait
from everlearn.report.facts import kinds
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.report.text import print_tables
from tests.report import run_folders

TRAITS = {
    "ssr": ["rehearses", "synthesizes"],
    "ssr-improved": ["rehearses", "synthesizes"],
    "random_rehearsal": ["rehearses"],
    "gere+ssr": ["rehearses", "synthesizes"],
    "ewc": ["penalty"],
    "mas": ["penalty"],
    "multitask": ["trains once"],
    "sequential": [],
    "si": ["penalty"],
}


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowded") / "study"
    run_folders.make_comparison(folder, labels=tuple(TRAITS), seeds=(1,), rows=8)
    for label, traits in TRAITS.items():
        path = folder / f"{label}-s1" / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["method"] |= {"name": label.removesuffix("-improved"), "traits": traits}
        path.write_text(json.dumps(manifest))
    return folder


def test_methods_stand_by_kind_and_the_best_of_each_is_in_front(crowded: Path) -> None:
    study = read_study(crowded)
    groups = kinds.grouped(study.methods)
    averages = {label: [m.estimate("AR").value or 0.0 for m in methods] for label, methods in groups.items()}
    for values in averages.values():
        assert values == sorted(values, reverse=True)
    assert list(groups)[-1] == kinds.REFERENCES
    firsts = [values[0] for label, values in averages.items() if label != kinds.REFERENCES]
    assert firsts == sorted(firsts, reverse=True)
    assert {m.label for m in groups["penalties on weights"]} == {"ewc", "mas", "si"}
    assert {m.label for m in groups["rehearsal of synthetic rows"]} == {"ssr", "ssr-improved"}
    assert [m.label for m in groups["stacks of several methods"]] == ["gere+ssr"]
    assert [m.label for m in groups[kinds.OTHERS]] == ["sequential"]
    assert [m.label for m in study.in_front] == [found[0].label for found in groups.values()]
    assert [m.label for m in study.methods] == [m.label for found in groups.values() for m in found]


def test_each_kind_has_a_box_that_hides_its_rows_and_no_script(crowded: Path) -> None:
    html = page(read_study(crowded))
    boxes = re.findall(r'<input type="checkbox" id="(kind-\d)" checked>', html)
    assert len(boxes) == len(kinds.grouped(read_study(crowded).methods)) == 6
    for box in boxes:
        assert f"section:has(#{box}:not(:checked)) .of-{box}" in html
        assert len(re.findall(rf'<tr class="[^"]*of-{box}"', html)) >= 2, "the kind's heading and its methods"
    assert "<script" not in html


def test_there_is_a_rule_for_as_many_kinds_as_there_can_be(crowded: Path) -> None:
    html = page(read_study(crowded))
    most = len(set(kinds._KINDS.values())) + 3  # stacks, references, others
    assert f".of-kind-{most - 1}" in html


def test_curves_show_the_best_of_each_kind_and_tables_all(crowded: Path) -> None:
    study = read_study(crowded)
    html = page(study)
    curves = html[html.index('<section id="curves"') : html.index('<section id="rehearsal"')]
    drawn = {method.label: f"Training loss of {method.title}<" in curves for method in study.methods}
    assert drawn == {method.label: method in study.in_front for method in study.methods}
    table = html[html.index('<section id="comparison"') : html.index('<section id="matrix"')]
    heads = re.findall(r'<th scope="row">.*?</th>', table)
    assert [sum(f">{method.title}<" in head for head in heads) for method in study.methods] == [1] * len(TRAITS)
    maps = html[html.index('<section id="matrix"') : html.index('<section id="curves"')]
    assert maps.count("<figure") == len(study.methods)
    assert "The other 3 methods" in maps


def test_the_terminal_has_one_line_a_method(crowded: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    print_tables(crowded, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "of each kind the method with the best average" in text
    for method in read_study(crowded).methods:
        assert any(line.startswith(f"   {method.title} ") for line in text.splitlines()), method.title
    assert max(map(len, text.splitlines())) <= 80


def test_every_trait_that_kinds_go_by_exists() -> None:
    assert set(kinds._KINDS) <= set(Trait.__args__)  # type: ignore[attr-defined]


def test_methods_are_called_by_their_titles(crowded: Path) -> None:
    path = crowded / "ssr-improved-s1" / "manifest.json"
    before = path.read_text()
    manifest = json.loads(before)
    manifest["method"] |= {"name": "ssr", "title": "S2R"}
    path.write_text(json.dumps(manifest))
    titles = {method.label: method.title for method in read_study(crowded).methods}
    path.write_text(before)
    assert titles["ssr-improved"] == "S2R-improved"
    assert titles["random_rehearsal"] == "random rehearsal"
    assert titles["mas"] == "MAS"
