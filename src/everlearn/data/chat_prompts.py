"""The `chat` template: prompts as the tokenizer's own chat template renders them.

The template is rendered twice per row: once up to the point where the assistant speaks, once with the answer. What
the second has more than the first is the target, up to and including the token with which the template ends a turn
(`<|im_end|>`, `<|eot_id|>`, `</s>`), without the line break that may follow it. Where a template ends a turn with
no special token, or rewrites earlier text so that the first rendering is no beginning of the second, the target is
the answer and the end token. BOS is the template's business: none is added.

Thinking is switched off where a template knows the switch (`enable_thinking`), since the data has no thoughts.
A template that refuses a system message gets it in front of the first user message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everlearn.data.instance import Instance
from everlearn.data.prompts import exchanges_of, plain_ids
from everlearn.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
_PROBE = "Qx7"  # an answer that no template writes by itself


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: With a `chat_template`.
    """

    name = "chat"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        probe = self._render([{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}], False)
        self._end, self._after_end = _split_after_control_token(probe.rpartition(_PROBE)[2], tokenizer)

    def text(self, instance: Instance) -> str:
        """The rendered prompt, without BOS where the template writes one."""
        rendered = self._render(_messages(instance), True)
        return rendered.removeprefix(self._tokenizer.bos_token or "")

    def prompt_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """The rendered prompt; one that is too long loses the end of its query, not the assistant's cue."""
        messages = _messages(instance)
        ids = self._control_ids(self._render(messages, True), tokenizer)
        if max_tokens is None or len(ids) <= max_tokens:
            return ids
        query = plain_ids(messages[-1]["content"], tokenizer)
        while query and len(ids) > max_tokens:
            query = query[: max_tokens - len(ids)]
            messages[-1] = {"role": "user", "content": tokenizer.decode(query)}
            ids = self._control_ids(self._render(messages, True), tokenizer)
        return ids[:max_tokens]

    def target_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """The answer and the end of the assistant's turn."""
        messages = _messages(instance)
        prompt = self._render(messages, True)
        whole = self._render([*messages, {"role": "assistant", "content": instance.output}], False)
        if whole.startswith(prompt) and self._end:
            ids = self._control_ids(whole[len(prompt) :].removesuffix(self._after_end), tokenizer)
        else:
            ids = [*plain_ids(instance.output, tokenizer), self.end_ids(tokenizer)[0]]
        return ids[:max_tokens]

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The last token of an assistant's turn, and EOS."""
        ends = self._control_ids(self._end, tokenizer)[-1:]
        return tuple(dict.fromkeys([*ends, tokenizer.eos_token_id]))

    def _render(self, messages: list[Message], is_prompt: bool) -> str:
        from jinja2 import TemplateError

        def apply(messages: list[Message]) -> str:
            rendered = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=is_prompt, enable_thinking=False
            )
            assert isinstance(rendered, str), "tokenize=False gives text"
            return rendered

        try:
            return apply(messages)
        except TemplateError as error:
            if messages[0]["role"] == "system":
                try:
                    return apply(_system_in_first_question(messages))
                except TemplateError:
                    pass
            raise DataError(
                f"the model's chat template refuses a conversation of {len(messages)} turns ({error}): mend the row "
                f"that begins {messages[-1]['content'][:60]!r}, or set model.template to vanilla, alpaca or llama2."
            ) from None

    def _control_ids(self, rendered: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of rendered text, in which the template's control tokens count as such."""
        return list(tokenizer.encode(rendered, add_special_tokens=False, verbose=False))


def _messages(instance: Instance) -> list[Message]:
    system, exchanges = exchanges_of(instance.history, instance.query)
    messages = [{"role": "system", "content": system}] if system else []
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.question})
        if exchange.answer is not None:
            messages.append({"role": "assistant", "content": exchange.answer})
    return messages


def _system_in_first_question(messages: list[Message]) -> list[Message]:
    system, question, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{question['content']}"}, *rest]


def _split_after_control_token(tail: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Splits what a template writes after an answer behind its last control token; ("", tail) without one."""
    controls = {str(token) for token in tokenizer.added_tokens_decoder.values()} | {tokenizer.eos_token}
    ends = [tail.rfind(token) + len(token) for token in controls if token.strip() and token in tail]
    at = max(ends, default=0)
    return tail[:at], tail[at:]
