"""Which form of ROUGE-L fits the script of a task's answers.

The published form cuts with jieba, which knows English and Chinese words and takes every other letter for a token of
its own: for Greek, Russian, Hindi, Arabic or Korean it compares letters. There the words are Unicode's.
"""

from __future__ import annotations

from collections.abc import Iterable


def rouge_form(answers: Iterable[str]) -> tuple[str, str]:
    """The name of the metric, and a clause that says why, empty for the published form.

    Args:
        answers: Gold answers of the task.
    """
    import regex

    letter, other = regex.compile(r"\p{L}"), regex.compile(r"[\p{L}--[\p{Latin}\p{Han}]]", regex.VERSION1)
    letters = others = 0
    for text in answers:
        if not text.isascii():
            others += len(other.findall(text))
        letters += len(letter.findall(text))
    if 2 * others > letters:
        return "rouge_l_unicode", "most letters of the answers are neither Latin nor Chinese"
    return "rouge_l", ""
