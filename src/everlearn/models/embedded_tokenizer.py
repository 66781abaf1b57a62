"""The tokenizer of the embedded model: byte-pair encoding that behaves like the one of Llama 2.

A space becomes the mark U+2581 in front of the word, and the same mark is put in front of every piece of
text that follows a blank line or begins the text. So a word has one token wherever it stands, and a
response tokenized alone begins with the same token as after `Output:`. The blank line is always one token.
Unknown characters fall back to bytes; decoding gives back the text exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, BLANK_LINE = "<s>", "</s>", "<pad>", "\n\n"
MARK = "\u2581"
_PIECES = rf"{MARK}Input:|\nOutput:|{MARK}?[\p{{L}}]+|{MARK}?[0-9]{{1,2}}|{MARK}?[^\p{{L}}0-9{MARK}\n]|\n|{MARK}"


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on texts.

    Returns:
        A `PreTrainedTokenizerFast` with BOS, EOS and PAD set; encoding adds BOS only.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    splitter = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    fixed = [PAD, BOS, EOS, BLANK_LINE, *(f"<0x{byte:02X}>" for byte in range(256))]

    draft = Tokenizer(models.BPE())
    draft.normalizer, draft.pre_tokenizer = normalizer, splitter
    alphabet = [chr(code) for code in range(32, 127)] + ["\n", MARK]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(fixed), initial_alphabet=alphabet, show_progress=False, limit_alphabet=120
    )
    draft.train_from_iterator((part for text in texts for part in text.split(BLANK_LINE) if part), trainer)
    model = json.loads(draft.to_str())["model"]
    learnt = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {token: at for at, token in enumerate([*fixed, *learnt])}
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]

    final = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))
    final.normalizer, final.pre_tokenizer = normalizer, splitter
    final.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, BOS, EOS)])
    final.add_tokens([AddedToken(BLANK_LINE, normalized=False, special=False)])
    final.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    final.decoder = decoders.Sequence(
        [
            decoders.Replace(MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(BLANK_LINE + " ", BLANK_LINE),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=final, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        clean_up_tokenization_spaces=False, model_max_length=512, padding_side="left",
    )  # fmt: skip
