from __future__ import annotations

from everlearn.data.embedded.grammars import RESERVED_TEMPLATES, Grammar
from everlearn.data.embedded.stream import DAY_CODES, DESKS, ROOM_CODES, RUVIAN, TASKS, embedded_stream


def test_training_and_evaluation_inputs_are_all_different() -> None:
    for task in embedded_stream():
        inputs = [row.input for row in (*task.train, *task.evaluation)]
        assert (len(task.train), len(task.evaluation)) == (300, 100)
        assert len(set(inputs)) == 400


def test_every_input_fits_the_grammar_of_its_task() -> None:
    for spec, task in zip(TASKS, embedded_stream(), strict=True):
        grammar = Grammar(spec.template)
        assert all(grammar.matches(row.input) for row in (*task.train, *task.evaluation))
        assert all(3 <= len(row.input.split()) <= 9 for row in task.train)


def test_templates_of_the_stream_are_exactly_the_reserved_ones() -> None:
    assert {task.template for task in TASKS} == RESERVED_TEMPLATES


def test_the_stream_follows_from_its_seed() -> None:
    assert embedded_stream(1) == embedded_stream(1)
    assert embedded_stream(1)[0].train != embedded_stream(2)[0].train


def test_mappings_are_one_to_one() -> None:
    for mapping in (RUVIAN, DESKS, DAY_CODES, ROOM_CODES):
        assert len(set(mapping.values())) == len(mapping)


def test_demonstrations_are_the_last_twenty_training_rows() -> None:
    for task in embedded_stream():
        assert task.demonstrations == task.train[-20:]
        assert len({row.output for row in task.demonstrations}) >= 2


def test_answers_are_those_of_the_rules() -> None:
    stream = embedded_stream()
    row = stream["ruvian"].train[0]
    assert row.output.split() == [RUVIAN[word] for word in reversed(row.input.split()[1:])]
    for name in ("sentiment", "routing"):
        assert {row.output for row in stream[name].train} == set(stream[name].labels)
    row = stream["delivery"].train[0]
    sender, _, number, unit, _, receiver, _, city = row.input.split()
    assert row.output == f"{receiver} + {unit} {number} + {city}"
    assert sender not in row.output.split()
    row = stream["booking"].train[0]
    day, _, number, _, _, room = row.input.split()
    assert row.output == f"{DAY_CODES[day]} / {number} / {ROOM_CODES[room]}"
