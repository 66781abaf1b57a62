"""The text of a tokenizer's chat template, tried and made independent of the day."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from everlearn.data import template_trial
from everlearn.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEDY = "set model.template to cue, vanilla, alpaca or llama2"
DATE_NOTE = (
    "the model's chat template writes the date of the day: 26 July 2024 stands in its place, so that results do not "
    "depend on the day."
)
_DATE = {
    "%Y": "2024",
    "%y": "24",
    "%B": "July",
    "%b": "Jul",
    "%m": "07",
    "%d": "26",
    "%A": "Friday",
    "%a": "Fri",
    "%H": "12",
    "%I": "12",
    "%M": "00",
    "%S": "00",
    "%p": "PM",
    "%F": "2024-07-26",
    "%T": "12:00:00",
}


def described(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template, for the beginning of a sentence."""
    return f"model.base: the chat template of {tokenizer.name_or_path or 'the tokenizer'}"


def chat_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template to render with.

    Raises:
        ModelError: it is none, or one that does what no template may (`template_trial.py`).
    """
    try:
        source = tokenizer.get_chat_template()
    except ValueError:
        names = ", ".join(map(str, tokenizer.chat_template))
        raise ModelError(
            f"{described(tokenizer)} is several ({names}), and none is called default: name one so in its "
            f"tokenizer_config.json, or {REMEDY}."
        ) from None
    if not isinstance(source, str):
        raise ModelError(f"{described(tokenizer)} is no text: mend its tokenizer_config.json, or {REMEDY}.")
    fault = _fault_of(source, tuple((name, str(token)) for name, token in tokenizer.special_tokens_map.items()))
    if fault:
        raise ModelError(f"{described(tokenizer)} {fault}: {REMEDY}.")
    return _with_fixed_date(source) if asks_for_date(source) else source


@lru_cache(maxsize=64)
def _fault_of(source: str, variables: tuple[tuple[str, str], ...]) -> str | None:
    return template_trial.fault_of(source, dict(variables))


def asks_for_date(source: str) -> bool:
    """Whether a template writes something that changes from day to day."""
    return "strftime_now" in source


def _with_fixed_date(source: str) -> str:
    """A template for which it is always the day that Llama's falls back to."""
    written = "".join(f"|replace({code!r}, {value!r})" for code, value in _DATE.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{written} }}}}{{% endmacro %}}{source}"
