"""Text from elsewhere, such as a model's name or a row of a data set, as text that people can see."""

import unicodedata

# Unicode categories: control characters, lone surrogates and the like.
HIDDEN = ("Cc", "Cf", "Cn", "Co", "Cs")


def visible(text: str, kept: str = "") -> str:
    """Write every character that cannot be seen as its code point, ⟨U+202E⟩, but for those in `kept`."""
    return "".join(
        f"⟨U+{ord(character):04X}⟩"
        if unicodedata.category(character) in HIDDEN and character not in kept
        else character
        for character in text
    )
