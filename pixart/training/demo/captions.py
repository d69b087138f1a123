"""The demo's little world and the sentences that describe it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom", "center")


@dataclass(frozen=True)
class Scene:
    """What a picture shows; None stands for "the caption does not say"."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    position: str | None = None
    background: str | None = None

    def caption(self) -> str:
        """The canonical sentence, e.g. ``a small red star on the left, blue background``."""
        noun = " ".join(part for part in ("a", self.size, self.colour, self.shape or "shape") if part)
        parts = [noun + (f" on the {self.position}" if self.position else "")]
        if self.background:
            parts.append(f"{self.background} background")
        return ", ".join(parts)


ATTRIBUTES = {
    "size": SIZES,
    "colour": COLOURS,
    "shape": SHAPES,
    "position": POSITIONS,
    "background": COLOURS,
}

SYNONYMS = {
    "size": {"small": ("small", "small", "tiny", "little"), "large": ("large", "large", "big", "huge")},
    "position": {"center": ("center", "center", "centre", "middle")},
}

OPENINGS = ("a", "a", "a", "the", "", "one", "a picture of a", "a drawing of a", "photo of a")


def random_scene(rng: random.Random) -> Scene:
    """A complete scene; the shape never has the colour of its background."""
    scene = Scene(*(rng.choice(values) for values in ATTRIBUTES.values()))
    while scene.background == scene.colour:
        scene = replace(scene, background=rng.choice(COLOURS))
    return scene


def forget(scene: Scene, rng: random.Random, keep: float) -> Scene:
    """The scene with each attribute kept with probability ``keep``, so that short captions are known too."""
    return Scene(**{name: getattr(scene, name) if rng.random() < keep else None for name in ATTRIBUTES})


def paraphrase(scene: Scene, rng: random.Random) -> str:
    """A sentence for the scene in one of several wordings; attributes that are None are not mentioned."""

    def word(name: str) -> str | None:
        value = getattr(scene, name)
        return rng.choice(SYNONYMS.get(name, {}).get(value, (value,)))

    background = f"{scene.background} background" if scene.background else None
    noun = " ".join(part for part in (word("size"), scene.colour, scene.shape) if part)
    if not noun:
        where = f"on the {word('position')}" if scene.position else ""
        return ", ".join(part for part in (where, background) if part)
    text = f"{rng.choice(OPENINGS)} {noun}".strip()
    if scene.position:
        text += rng.choice((" on the {}", " on the {}", " at the {}", ", {}", " in the {}")).format(word("position"))
    if background:
        joins = ("{0}, {1}", "{0}, {1}", "{0} on a {1}", "{0} with a {1}", "{1}, {0}")
        text = rng.choice(joins).format(text, background)
    return text


def random_caption(rng: random.Random, scene: Scene | None = None) -> tuple[Scene, str]:
    """A complete scene to draw, given or drawn by lot, and a caption that tells all, most, or little of it."""
    scene = scene or random_scene(rng)
    draw = rng.random()
    if draw < 0.5:
        return scene, scene.caption()
    told = scene if draw < 0.7 else forget(scene, rng, keep=0.6)
    return scene, paraphrase(told, rng)
