"""The cue between query and answer stands apart from both, in tokenizers of every usual kind."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from everlearn.data.instance import Instance
from everlearn.data.prompts import CUE, get_template

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = {
    "gpt2, phi2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3, phi4": _CL100K.replace("DIGITS", r"\p{N}{1,3}"),
    "qwen": _CL100K.replace("DIGITS", r"\p{N}"),
    "llama2, phi3": r"▁*\p{L}+|▁*\p{N}|\n|▁*[^\s▁\p{L}\p{N}]+|▁+",
    "gemma": r"▁*\p{L}+|▁*\p{N}|▁*[^\s▁\p{L}\p{N}]+|▁+",
}
"""Where a tokenizer of the kind cuts a text before it merges: the published patterns of the byte level, and what
sentencepiece leaves whole when it splits by script, digit and (Llama: bytes; Gemma: symbols) line break."""
QUERIES = [
    "One fish.",
    "two?",
    "word",
    "x = 3",
    "cost: 25",
    "a (b)",
    "so:",
    'he said "no"',
    "wait...",
    "\u4eca\u65e5\u3002",
    "blank ",
]
QUERIES += ["line\n", "two lines\n\n", "\t", "Answer", "Answer:", "### Answer:\n", "é", "$|", "!"]
ANSWERS = ["Answer", "yes", "No.", "25", "(b)", "今日", "¿Qué?", '"no"', ".", "-3", "SELECT *", "été"]


def made(kind: str) -> PreTrainedTokenizerFast:
    """Merges are learnt from the very texts that are tested, so that all happen which the kind allows."""
    texts = [f"{query}{CUE}{answer}" for query in QUERIES for answer in ANSWERS] * 3
    core = Tokenizer(models.BPE(byte_fallback="▁" in PIECES[kind], fuse_unk=True))
    split = pre_tokenizers.Split(Regex(PIECES[kind]), behavior="isolated")
    alphabet = sorted(set("".join(texts)))
    if "▁" in PIECES[kind]:
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = split
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind.startswith("gemma"):
        core.add_tokens([AddedToken("\n" * length, normalized=False, special=False) for length in range(1, 9)])
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    )
    if kind.startswith("llama2"):
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", bos_token="<s>")


@pytest.fixture(scope="module", params=PIECES)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return made(request.param)


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[int, int, int]]:
    """Id, start and end of each token."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [(at, *ends) for at, ends in zip(found["input_ids"], found["offset_mapping"], strict=True)]


def test_the_line_of_the_cue_is_the_same_tokens_behind_every_query(tokenizer: PreTrainedTokenizerFast) -> None:
    template, endings = get_template("cue", tokenizer), set()
    for query in QUERIES:
        row = Instance("", query, "", "t")
        text = template.text(row)
        begins = len(text) - len(CUE.lstrip())
        found = pieces(tokenizer, text)
        assert [at for at, _, _ in found] == template.prompt_ids(row, tokenizer)
        assert not [piece for piece in found if piece[1] < begins < piece[2]], query
        endings.add(tuple(at for at, start, _ in found if start >= begins))
    assert len(endings) == 1


def test_no_token_holds_text_of_the_cue_and_of_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    template = get_template("cue", tokenizer)
    for answer in ANSWERS:
        row = Instance("", "One fish.", answer, "t")
        asked = template.text(row)
        found = pieces(tokenizer, asked + answer)
        assert not [piece for piece in found if piece[1] < len(asked) < piece[2]], answer
        assert [at for at, start, _ in found if start < len(asked)] == template.prompt_ids(row, tokenizer)


@pytest.mark.parametrize("kind", ["llama3, phi4", "qwen"])
def test_line_breaks_alone_would_be_one_token_with_the_querys_full_stop(kind: str) -> None:
    tokenizer = made(kind)
    assert tokenizer.decode(pieces(tokenizer, "One fish.\n\nA")[-2][0]) == ".\n\n"


def test_a_query_without_a_cue_ends_as_an_answer_does(tokenizer: PreTrainedTokenizerFast) -> None:
    row = Instance("", "One fish.", "No.", "t")
    vanilla, cue = get_template("vanilla", tokenizer), get_template("cue", tokenizer)
    stop = vanilla.target_ids(row, tokenizer)[-2]
    assert vanilla.prompt_ids(row, tokenizer)[-1] == stop
    assert cue.prompt_ids(row, tokenizer)[-1] != stop
