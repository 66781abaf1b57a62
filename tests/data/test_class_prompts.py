from __future__ import annotations

import pytest

from everlearn.data.handed_template import handed_template
from everlearn.data.instance import Instance, Turn
from everlearn.data.prompts import get_template
from everlearn.errors import DataError
from everlearn.recipe import TrainingConfig
from everlearn.synthesis.candidate_steps import without_prompt
from everlearn.synthesis.parsing import Candidate, Sifted
from everlearn.synthesis.written_rows import fault_of
from tests.data.byte_tokenizer import make_byte_tokenizer

MARKED = 'and " [E21] Whammy Kiss [E22] " of the [E11] B-52s [E12]'
PUBLISHED = {
    "classification": f"Input sentence: {MARKED}\n The label:",
    "relation_classification_state": 'Input sentence: and " Whammy Kiss " of the B-52s\n'
    " The relationship between B-52s and Whammy Kiss is",
    "relation_classification_qa": 'Input sentence: and " Whammy Kiss " of the B-52s\n'
    " Question: What is the relationship between B-52s and Whammy Kiss?\n Answer:",
    "short_answer": f"Question: {MARKED}\n Short Answer:",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_prompts_are_worded_as_published_and_answers_begin_with_a_space(name):
    tokenizer = make_byte_tokenizer()
    template, row = get_template(name, tokenizer), Instance("", MARKED, "follows", "t")
    assert template.text(row) == PUBLISHED[name]
    assert tokenizer.decode(template.prompt_ids(row, tokenizer)).endswith(PUBLISHED[name])
    assert tokenizer.decode(template.target_ids(row, tokenizer)[:-1]) == " follows"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_model_is_handed_back_with_a_chat_template_of_the_same_ids(name):
    tokenizer = make_byte_tokenizer()
    rows = [Instance("", MARKED, "a", "t"), Instance("", MARKED, "a", "t", history=(Turn("system", "Be short."),))]
    assert handed_template(get_template(name, tokenizer), tokenizer, rows) is not None


def test_a_text_without_marks_is_refused_where_the_prompt_names_the_entities():
    tokenizer, row = make_byte_tokenizer(), Instance("", "[E11] a [E21] b [E22]", "x", "t", id="r")
    template = get_template("relation_classification_qa", tokenizer)
    with pytest.raises(
        DataError, match=r"task t, row r: model\.template relation_classification_qa .* has no \[E12\]"
    ):
        template.prompt_ids(row, tokenizer)
    with pytest.raises(DataError, match=r"has no \[E12\]"):
        template.check([Instance("", MARKED, "x", "t"), row])
    get_template("classification", tokenizer).check([row])


def test_what_a_model_writes_without_marks_is_dropped_and_counted():
    tokenizer = make_byte_tokenizer()
    template = get_template("relation_classification_qa", tokenizer)
    written = Sifted([Candidate("", MARKED, "x", 3), Candidate("", "no marks", "y", 4)], seen=2)
    found = without_prompt(written, template)
    assert [row.input for row in found.kept] == [MARKED]
    assert found.dropped == {"not_for_template": 1}
    row = Instance("", "no marks", "y", "t")
    assert fault_of(row, template, tokenizer, TrainingConfig()) == "not for the template"
