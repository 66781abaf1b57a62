"""Which language a text is in, as far as a small library can tell (py3langid, the extra `langid`)."""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.data.translation import LANGUAGES


def languages_of(texts: Sequence[str]) -> list[str] | None:
    """The English name of each text's language (its code where the name is not known here); None: not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError:
        return None
    known = LanguageIdentifier.from_model_file(MODEL_FILE)
    codes = [str(known.classify(text)[0]) for text in texts]
    return [LANGUAGES.get(code, code) for code in codes]
