"""The chat template that a trained model is handed back with, so that `apply_chat_template` asks as the run asked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from everlearn.data.chat_prompts import ChatTemplate, conversation
from everlearn.data.control_tokens import mentioned
from everlearn.data.prompts import ALPACA_PREFACE, CUE, LLAMA2_SYSTEM, bos_ids
from everlearn.data.walk_prompts import WalkTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.instance import Instance
    from everlearn.data.prompts import PromptTemplate

_VANILLA = "(told.system + '\\n\\n' if told.system and told.first else '') + message['content']"
_FRAMES = {
    "vanilla": _VANILLA,
    "cue": f"{_VANILLA} + {json.dumps(CUE)}",
    "alpaca": (
        f"((told.system or {json.dumps(ALPACA_PREFACE)}) + '\\n\\n' if told.first else '') + '### Instruction:\\n' + "
        "message['content'] + '\\n\\n### Response:\\n'"
    ),
    "llama2": (
        f"'[INST] ' + ('<<SYS>>\\n' + (told.system or {json.dumps(LLAMA2_SYSTEM)}) + '\\n<</SYS>>\\n\\n' "
        "if told.first else '') + message['content'] + ' [/INST] '"
    ),
}


def handed_template(
    template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Instance]
) -> str | None:
    """A chat template that renders the prompts of a run; None where there can be none with this tokenizer.

    The tokenizer's own is the one that was used: always with the same date, and without thoughts unless they are
    asked for. One that stands for a frame of text is given only if it makes the very ids of the run.

    Args:
        template: As the run used it.
        tokenizer: Of the model.
        rows: To compare the prompts of; those that name control tokens are left out, since they are text for the run
            alone.
    """
    if isinstance(template, WalkTemplate):  # its opening tag is put behind by whoever asks
        return handed_template(template.inner, tokenizer, map(template.asked, rows))
    if isinstance(template, ChatTemplate):
        switch = "{% if enable_thinking is not defined %}{% set enable_thinking = false %}{% endif %}"
        return (switch if "enable_thinking" in template.source else "") + template.source
    frame = _FRAMES.get(template.name) or getattr(template, "handed_frame", None)
    if frame is None:
        return None
    begins = "bos_token + " if bos_ids(tokenizer) else ""
    source = (
        "{%- set told = namespace(system='', first=true) -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}{%- set told.system = message['content'] -%}"
        "{%- elif message['role'] == 'user' -%}"
        f"{{{{- {begins}{frame} -}}}}{{%- set told.first = false -%}}"
        "{%- else -%}{{- message['content'] + eos_token -}}{%- endif -%}"
        "{%- endfor -%}"
    )
    for row in rows:
        messages = conversation(row)
        if mentioned((message["content"] for message in messages), tokenizer):
            continue
        asked = tokenizer.apply_chat_template(
            messages, chat_template=source, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        if asked != template.prompt_ids(row, tokenizer):
            return None
    return source
