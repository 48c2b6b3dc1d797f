"""What a model's card says that a report on the model must tell."""

from __future__ import annotations

from pathlib import Path

import yaml

REPORT_NOTE = "report_note"


def report_note(card: Path | str | None) -> str | None:
    """The text of `report_note` in the YAML head of a model card (README.md); None where there is none.

    A card whose head is no YAML has no note either: the hub reads such cards, and a report needs none.
    """
    if card is None or not Path(card).is_file():
        return None
    head, *rest = (
        Path(card).read_text(encoding="utf-8", errors="replace").removeprefix("---\n").split("\n---\n")
    )
    if not rest:
        return None
    try:
        content = yaml.safe_load(head)
    except yaml.YAMLError:
        return None
    note = content.get(REPORT_NOTE) if isinstance(content, dict) else None
    return " ".join(note.split()) if isinstance(note, str) and note.strip() else None
