"""Words to pronounce: checked ones from the user, or distinct ones from Python's own documentation."""

from __future__ import annotations

import re

MAX_LETTERS = 100


def check_word(word: str) -> str:
    """Return the word in lower case.

    Raises:
        ValueError: The word is empty, longer than 100 letters, or has a character outside a-z and A-Z.
    """
    lowered = word.lower()
    if not re.fullmatch("[a-z]+", lowered):
        raise ValueError(f"word: expected letters a-z, got {word!r}")
    if len(lowered) > MAX_LETTERS:
        raise ValueError(f"word: expected at most {MAX_LETTERS} letters, got {len(lowered)}")
    return lowered


def documentation_words(count: int) -> list[str]:
    """Return up to `count` distinct words of Python's language reference, lower-cased, as they appear.

    The text is the one behind Python's ``help()``; it differs a little between Python releases. Pieces of
    identifiers (next to a digit, an underscore or an apostrophe) and single letters are left out.
    """
    from pydoc_data.topics import topics

    found = re.findall(r"(?<![\w'])[a-z]{2,100}(?![\w'])", "\n".join(topics.values()).lower())
    return list(dict.fromkeys(found))[:count]
