from __future__ import annotations

import random
from itertools import islice

from everlearn.data.embedded.corpus import documents, held_out_microtasks, held_out_text, story
from everlearn.data.embedded.grammars import RESERVED_TEMPLATES, Grammar, draw_grammar, is_held_out
from everlearn.data.embedded.microtasks import distinct_instances, draw_task, few_shot_document
from everlearn.data.embedded.stream import TASKS
from everlearn.data.embedded.task_families import FAMILIES
from everlearn.data.embedded.words import LABELS, NONSENSE, POOLS, TITLES


def test_the_same_seed_gives_the_same_documents_and_another_seed_others() -> None:
    first = list(islice(documents(3), 200))
    assert first == list(islice(documents(3), 200))
    assert first != list(islice(documents(4), 200))
    assert first != list(islice(documents(3, "tokenizer"), 200))


def test_the_corpus_has_the_three_kinds_in_their_shares() -> None:
    kinds = [document.kind for document in islice(documents(0), 4000)]
    assert abs(kinds.count("few_shot") / 4000 - 0.75) < 0.03
    assert abs(kinds.count("zero_shot") / 4000 - 0.10) < 0.02
    assert abs(kinds.count("general") / 4000 - 0.15) < 0.02


def test_few_shot_documents_have_the_layout_of_synthesis_prompts() -> None:
    rng = random.Random(0)
    for _ in range(200):
        task = draw_task(rng)
        definition, *blocks, rest = few_shot_document(rng, task, 4).split("\n\n")
        assert definition == task.definition
        assert rest == ""
        assert 2 <= len(blocks) <= 4
        inputs = []
        for block in blocks:
            first, second = block.split("\n")
            assert first.startswith("Input: ")
            assert second.startswith("Output: ")
            assert len(second) > len("Output: ")
            inputs.append(first)
        assert len(set(inputs)) == len(inputs)


def test_inputs_of_a_grammar_match_it_and_foreign_text_does_not() -> None:
    rng = random.Random(1)
    for _ in range(200):
        grammar = draw_grammar(rng)
        assert grammar.matches(grammar.fill(rng)[0])
    assert not Grammar("the {colour} {vehicle} {motion}").matches("red bus in Paris")


def test_training_grammars_never_include_held_out_or_stream_ones() -> None:
    rng = random.Random(2)
    templates = {draw_grammar(rng).template for _ in range(20000)}
    assert len(templates) > 8000
    assert not templates & RESERVED_TEMPLATES
    assert not any(is_held_out(template) for template in templates)
    assert all(is_held_out(draw_grammar(rng, held_out=True).template) for _ in range(50))


def test_no_document_holds_a_definition_or_an_input_of_the_stream() -> None:
    definitions = [task.definition for task in TASKS]
    grammars = [Grammar(task.template) for task in TASKS]
    for document in islice(documents(0), 5000):
        assert not any(definition in document.text for definition in definitions)
        for line in document.text.split("\n"):
            if line.startswith("Input: "):
                assert not any(grammar.matches(line[len("Input: ") :]) for grammar in grammars)


def test_held_out_stories_are_about_pairs_that_training_never_has() -> None:
    rng = random.Random(0)
    training = {story(rng) for _ in range(3000)}
    held_out = held_out_text(0)
    assert len(set(held_out)) == 100
    assert not training & set(held_out)
    assert held_out == held_out_text(0)
    assert held_out != held_out_text(1)


def test_held_out_microtasks_end_in_the_cue_and_can_be_answered() -> None:
    rows = held_out_microtasks(65, 0)
    assert len(rows) == 65
    assert {row["family"] for row in rows} == set(FAMILIES)
    for row in rows:
        assert row["prompt"].endswith("\nOutput:")
        assert row["prompt"].count("\nOutput:") == 5
        assert row["answer"]
        if row["family"] in ("label", "translate", "slot_form"):
            assert set(row["answer"].split()) <= set(row["prompt"].split())


def test_every_family_draws_different_inputs_with_answers() -> None:
    rng = random.Random(5)
    for family in FAMILIES:
        for _ in range(20):
            task = draw_task(rng, family=family)
            rows = distinct_instances(rng, task, 3)
            assert len(rows) >= 2
            assert all(text and answer and "\n" not in text + answer for text, answer in rows)


def test_word_pools_have_no_doubles_and_a_title_each() -> None:
    assert set(POOLS) == set(TITLES)
    for name, pool in [*POOLS.items(), ("labels", LABELS), ("nonsense", NONSENSE)]:
        assert len(set(pool)) == len(pool), name
