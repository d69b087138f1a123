"""Says of a picture what of its prompt it shows, where that can be measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields

import torch

Judge = Callable[[str, torch.Tensor], tuple[float, list[str]] | None]
"""(prompt, picture (3, H, W) in [0, 1]) → share of what is asked that is right, and names of what is wrong."""

NAMES = ("none", "demo")


def named(name: str) -> Judge | None:
    """A judge by name, or None for "none".

    Raises ValueError when it is not to be had: the demo's comes with a checkout, not with the published archive.
    """
    if name == "none":
        return None
    if name != "demo":
        raise ValueError(f"There is no judge {name!r}: choose one of {', '.join(NAMES)}.")
    try:
        from ..training.demo import captions, judge
    except ModuleNotFoundError as error:
        raise ValueError(f"The demo's judge is not here ({error.name} is missing): run from a checkout.") from error

    def measure(prompt: str, picture: torch.Tensor) -> tuple[float, list[str]] | None:
        scene = scene_of(prompt, captions)
        asked = [field.name for field in fields(scene) if getattr(scene, field.name) is not None]
        wrong = judge.mistakes(scene, picture)
        return (1 - len(wrong) / len(asked), wrong) if asked else None

    return measure


def scene_of(prompt: str, captions):
    """What a caption of the demo's grammar asks for; ``captions`` is its module of words."""
    text = prompt.lower()
    words = re.findall(r"[a-z]+", text)
    ground = re.search(rf"\b({'|'.join(captions.COLOURS)}) background\b", text)
    rest = text[: ground.start()] + text[ground.end() :] if ground else text

    def first(names: tuple[str, ...], among: str) -> str | None:
        return next((word for word in re.findall(r"[a-z]+", among) if word in names), None)

    place = re.search(rf"\bon the ({'|'.join(captions.POSITIONS)})\b", text)
    return captions.Scene(
        size=first(captions.SIZES, " ".join(words)),
        colour=first(captions.COLOURS, rest),
        shape=first(captions.SHAPES, rest),
        position=place.group(1) if place else None,
        background=ground.group(1) if ground else None,
    )
