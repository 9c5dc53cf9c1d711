"""What several parts of the page share: how errors, pictures and notes are shown."""

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from flowgrad.errors import FlowgradError


def reported(job: Callable[..., Any], *arguments: Any) -> Any:
    """Run a job; what goes wrong is shown on the page."""
    import gradio as gr

    try:
        return job(*arguments)
    except FlowgradError as error:
        raise gr.Error(escape(str(error))) from error


def figures(pairs: Sequence[tuple[str, str]], subject: str = "the photo") -> str:
    """Labels and pictures, as data URLs, in HTML."""
    parts = (
        f'<figure><img src="{url}" alt="{subject}, {label}"><figcaption>{label}</figcaption></figure>'
        for label, url in pairs
    )
    return f'<div class="fg-pair">{"".join(parts)}</div>'


def note(text: str) -> str:
    """A note in words; its figures, in brackets, are shown when they are asked for."""
    words, measured = re.sub(r" \(.*\)", "", text), re.search(r" \((.*)\)", text)
    told = escape(f"{words[:1].upper()}{words[1:]}.")
    if measured:
        told = f"<details><summary>{told}</summary>{escape(measured[1])}</details>"
    return f'<div class="fg-note">{told}</div>'
