"""How an instance becomes the token ids of a prompt and of its answer.

Five templates: `vanilla` (the query as it is), `alpaca` and `llama2` (one fixed frame each, as in SSR's published
training and evaluation: arXiv 2403.01244, spec section 5), `cue` (chosen here) and `chat` (the tokenizer's own,
`chat_prompts.py`); those that ask for a class (`class_prompts.py`), and of rows of words (`word_prompts.py`).
Prompt and answer are tokenized separately and the answer ends with EOS. A prompt is cut to its first
`max_tokens` ids, BOS included; an answer that is too long is cut and then has no EOS: both as published.

Earlier turns of a conversation: each exchange is encoded exactly like a row of its own (BOS, prompt, answer, EOS),
one after the other, as LLaMA-Factory's multi-turn encoding does; a system message takes the place of the frame's
own preface (`vanilla`: it stands before the first query). Text of the data is never read as a control token
(`control_tokens.py`), so a row that contains `<s>` or `</s>` cannot double BOS or end an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from everlearn.data.chat_prompts import ChatTemplate
from everlearn.data.control_tokens import plain_ids
from everlearn.data.exchanges import Exchange, exchanges_of
from everlearn.data.instance import Instance
from everlearn.errors import ModelError, RecipeError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_NAMES = (
    *("auto", "chat", "cue", "vanilla", "alpaca", "llama2"),
    *("classification", "relation_classification_state", "relation_classification_qa", "short_answer"),
    *("words", "words_last"),
)
CUE = "\n\nAnswer:\n"

ALPACA_PREFACE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
LLAMA2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)


class PromptTemplate(Protocol):
    """What the trainer, the evaluation and the synthesis know of a template."""

    @property
    def name(self) -> str:
        """Name in the recipe."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        ...

    def check(self, rows: Sequence[Instance]) -> None:
        """Refuses rows that the template cannot be used with.

        Raises:
            DataError: names the row.
        """
        ...

    def text(self, instance: Instance) -> str:
        """The prompt as text, without BOS and EOS; for display and for refinement."""
        ...

    def prompt_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """BOS where the tokenizer has one, then the prompt; at most `max_tokens` ids."""
        ...

    def target_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """The answer, then the token that ends it; at most `max_tokens` ids."""
        ...

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Ids that end an answer: generation stops at any of them."""
        ...

    def answer(self, completion: str) -> str:
        """What of a completion is the answer."""
        ...


def get_template(name: str, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """The template of that name for that tokenizer.

    Args:
        name: `auto` (the tokenizer's chat template where it has one, else `cue`), `chat`, or the name of a frame of
            text.
        tokenizer: Of the model at hand.

    Raises:
        RecipeError: unknown name, or `chat` with a tokenizer that has no chat template.
        ModelError: the tokenizer has no EOS token.
    """
    from everlearn.data.class_prompts import WORDINGS, ClassTemplate
    from everlearn.data.word_prompts import WORDS, WordTemplate

    if name not in TEMPLATE_NAMES:
        raise RecipeError(f"model.template: {unknown('template', name, TEMPLATE_NAMES)}")
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the model's tokenizer has no EOS token, so no answer could ever end: set `eos_token` in its "
            "tokenizer_config.json."
        )
    has_chat = bool(tokenizer.chat_template)
    if name == "chat" and not has_chat:
        raise RecipeError(
            "model.template: chat was asked for, but the model's tokenizer has no chat template: "
            "use cue, vanilla, alpaca or llama2, or auto."
        )
    if name == "chat" or (name == "auto" and has_chat):
        return ChatTemplate(tokenizer)
    if name in WORDINGS:
        return ClassTemplate(name)
    if name in WORDS:
        return WordTemplate(name)
    frames = {"vanilla": VanillaTemplate, "alpaca": AlpacaTemplate, "llama2": Llama2Template}
    return frames.get(name, CueTemplate)()


class TextTemplate:
    """Base of the templates that are a frame of plain text around the query."""

    name = ""
    notes: tuple[str, ...] = ()

    def frame(self, question: str, system: str | None, is_first: bool) -> str:
        """One question in the template's frame."""
        raise NotImplementedError

    def check(self, rows: Sequence[Instance]) -> None:
        """A frame of text takes any row."""

    def text(self, instance: Instance) -> str:
        """See `PromptTemplate.text`; earlier exchanges are set off by blank lines."""
        framed = self._framed(instance)
        return "\n\n".join([f"{e.question}{e.answer}" for e in framed[:-1]] + [framed[-1].question])

    def prompt_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """See `PromptTemplate.prompt_ids`."""
        bos = _bos_ids(tokenizer)
        ids: list[int] = []
        for exchange in self._framed(instance):
            ids += bos
            ids += plain_ids(exchange.question, tokenizer)
            if exchange.answer is not None:
                ids += [*plain_ids(exchange.answer, tokenizer), _eos_id(tokenizer)]
        return ids[:max_tokens]

    def target_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """See `PromptTemplate.target_ids`."""
        return [*plain_ids(instance.output, tokenizer), _eos_id(tokenizer)][:max_tokens]

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """EOS alone."""
        return (tokenizer.eos_token_id,)

    def answer(self, completion: str) -> str:
        """All of it, but for white space around it."""
        return completion.strip()

    def _framed(self, instance: Instance) -> list[Exchange]:
        if not instance.history:
            return [Exchange(self.frame(instance.query, None, True))]
        system, exchanges = exchanges_of(instance.history, instance.query)
        return [
            Exchange(self.frame(exchange.question, system, at == 0), exchange.answer)
            for at, exchange in enumerate(exchanges)
        ]


class VanillaTemplate(TextTemplate):
    """The query and nothing else: for base models."""

    name = "vanilla"

    def frame(self, question: str, system: str | None, is_first: bool) -> str:
        """The question as it is, after the system message where there is one."""
        return f"{system}\n\n{question}" if system and is_first else question


class CueTemplate(VanillaTemplate):
    """The query and a cue to answer it: for base models.

    Where an answer follows its query directly, what a base learns most surely is that its end token follows a full
    stop, and most queries end in one: it then answers nothing. No token holds text both of the cue's line and of the
    query or of the answer, in the tokenizers of any of the usual models (the tests have one of each kind).
    """

    name = "cue"

    def frame(self, question: str, system: str | None, is_first: bool) -> str:
        """The question as it is, a blank line, the cue on a line of its own."""
        return super().frame(question, system, is_first) + CUE


class AlpacaTemplate(TextTemplate):
    """The frame of Stanford Alpaca, the query as its instruction."""

    name = "alpaca"

    def frame(self, question: str, system: str | None, is_first: bool) -> str:
        """Preface (first exchange only), instruction, cue."""
        preface = f"{system or ALPACA_PREFACE}\n\n" if is_first else ""
        return f"{preface}### Instruction:\n{question}\n\n### Response:\n"


class Llama2Template(TextTemplate):
    """The frame of Llama-2-chat with its default system text."""

    name = "llama2"

    def frame(self, question: str, system: str | None, is_first: bool) -> str:
        """`[INST] ... [/INST] `, the system text inside the first one."""
        preface = f"<<SYS>>\n{system or LLAMA2_SYSTEM}\n<</SYS>>\n\n" if is_first else ""
        return f"[INST] {preface}{question} [/INST] "


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that begin a text: BOS where the tokenizer's own encoding begins with it, as in pre-training.

    Llama, Gemma, Mistral and OPT do; GPT-2, Yi, Phi-3 and BLOOM name a BOS and do not. The published templates
    (arXiv 2403.01244, spec section 5) always begin with it, and were used with Llama alone.
    """
    return list(_bos_ids(tokenizer))


@lru_cache(maxsize=8)
def _bos_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Asked for every row, found out once."""
    adds_bos = tokenizer.bos_token_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
    return (tokenizer.bos_token_id,) if adds_bos else ()


@lru_cache(maxsize=8)
def _eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.eos_token_id)
