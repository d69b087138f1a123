"""Words on a node, where the artist looks."""

from __future__ import annotations

import sys


def say(text: str, node_id: str | None) -> None:
    """Show a line of text on the running node; without a server (scripts, tests) it goes nowhere."""
    host = sys.modules.get("server")
    instance = getattr(getattr(host, "PromptServer", None), "instance", None)
    if instance is not None and node_id is not None:
        instance.send_progress_text(text, node_id)
