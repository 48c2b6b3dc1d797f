"""The text of single tokens, from the model's tokenizer.json: importing transformers takes seconds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from adaptive_routing.system.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_REPLACEMENT = "\ufffd"  # the decoder's output for incomplete characters
_SHOWN_BY_PAGE = "\n\t\r"


def token_texts(model_folder: Path | str, token_ids: Iterable[int]) -> dict[int, str]:
    """Map token ids to text in which every character is visible or white space.

    Bytes that are part of a character are written ⟨E2 80⟩, invisible characters ⟨U+200B⟩. If the folder has
    no tokenizer.json, or the vocabulary no such token, a token is written as its number, ⟨#17⟩.
    """
    path = Path(model_folder) / "tokenizer.json"
    if not path.is_file():
        return {token_id: f"⟨#{token_id}⟩" for token_id in token_ids}
    tokenizer = Tokenizer.from_file(str(path))
    return {token_id: _text(tokenizer, token_id) for token_id in token_ids}


def _text(tokenizer, token_id):
    piece = tokenizer.id_to_token(token_id)
    if piece is None:
        return f"⟨#{token_id}⟩"
    # Some decoders drop the space before the first token, so decode the token twice and take the second.
    once, twice = (tokenizer.decode([token_id] * n, skip_special_tokens=False) for n in (1, 2))
    text = twice.removeprefix(once) if once and twice.startswith(once) else once
    if not text or _REPLACEMENT in text:
        return _bytes(piece)
    return visible(text, kept=_SHOWN_BY_PAGE)


def _bytes(piece):
    """Write a piece that is part of a character, <0xE2> or from a byte-level vocabulary, as its bytes."""
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", piece):
        return f"⟨{byte[1]}⟩"
    try:
        return f"⟨{' '.join(f'{_BYTE_OF[character]:02X}' for character in piece)}⟩"
    except KeyError:
        return piece


def _byte_alphabet():
    """The characters that represent bytes in byte-level vocabularies (`encoder.py` of GPT-2, 2019)."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(b): b for b in themselves} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
