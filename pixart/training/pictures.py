"""The pictures and captions that a model is taught, from folders or from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..plain_text import read_text
from ..resolution import trained_size

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_CAPTION = 100_000  # bytes
WIDEST = 4.5
"""Longest side over shortest; PixArt-Σ's training left out what was beyond it."""


@dataclass(frozen=True)
class Example:
    """One picture to learn from.

    picture: (3, H, W), float32 in [0, 1]; caption: what it shows; source: its file or place, for messages;
    prior: it shows the class in general, so that the class is not forgotten; hint: the control picture that a
    ControlNet is to draw it by, of the same size.
    """

    picture: torch.Tensor
    caption: str
    source: str
    prior: bool = False
    hint: torch.Tensor | None = None

    def __post_init__(self):
        if not self.caption.strip():
            raise ValueError(
                f"{self.source} has no caption. Write one into a text file of the same name beside the picture, or "
                "give one caption for all pictures."
            )
        if self.picture.ndim != 3 or self.picture.shape[0] != 3:
            raise ValueError(f"{self.source} has shape {list(self.picture.shape)}, where a picture has 3 × H × W.")
        if not torch.isfinite(self.picture).all():
            raise ValueError(f"{self.source} holds NaN or infinity: make the picture again.")
        if self.hint is not None and self.hint.shape != self.picture.shape:
            raise ValueError(
                f"{self.source} has shape {list(self.picture.shape)} and its hint {list(self.hint.shape)}: both must "
                "be of one size."
            )
        height, width = self.picture.shape[1:]
        if max(height, width) > WIDEST * min(height, width):
            raise ValueError(
                f"{self.source} is {width} × {height}, longer than {WIDEST:g} times its other side: PixArt was "
                "trained up to 4:1. Crop it."
            )

    def digest(self) -> str:
        """Equal for the same pixels, caption, control picture and part in the training."""
        told = f"{self.caption}|{self.prior}|{tuple(self.picture.shape)}|".encode() + pixels(self.picture)
        if self.hint is not None:
            told += pixels(self.hint)
        return hashlib.sha256(told).hexdigest()


def pixels(picture: torch.Tensor) -> bytes:
    return (picture * 255).round().to(torch.uint8).contiguous().numpy().tobytes()


def read_folder(folder: str | Path, caption: str = "", prior: bool = False) -> list[Example]:
    """Every picture of a folder, by name, each with the caption in the ``.txt`` beside it, else ``caption``.

    Raises ValueError for a folder that is missing or without pictures, for a picture that cannot be read, and for
    one without a caption.
    """
    folder = Path(folder)
    what = "class pictures" if prior else "pictures of the concept"
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: it should hold the {what}.")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no {what}: no {', '.join(SUFFIXES)} file is in it.")
    return [Example(read_picture(file), read_caption(file) or caption, str(file), prior) for file in files]


def read_caption(picture: Path) -> str:
    """The text beside a picture, "" where there is none. Raises ValueError for one too long, or no text."""
    file = picture.with_suffix(".txt")
    if not file.is_file():
        return ""
    if (size := file.stat().st_size) > MAX_CAPTION:
        raise ValueError(f"{file} has {size} bytes, more than a caption's {MAX_CAPTION}. Shorten it, or take it away.")
    return " ".join(read_text(file).split())


def read_picture(file: Path) -> torch.Tensor:
    """(3, H, W) in [0, 1], turned as the camera says; what is transparent becomes white.

    Raises ValueError, naming the file, where it is no picture that can be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture.convert("RGBA"))
            picture = picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).split("\n", 1)[0][:120]
        raise ValueError(f"{file} is no picture that can be read ({reason}). Replace it or take it away.") from error
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, 3).movedim(-1, 0).float() / 255


def fit(picture: torch.Tensor, resolution: int) -> torch.Tensor:
    """Scaled and cropped around its centre to the aspect-ratio bin nearest to it: (3, H, W), multiples of 16.

    resolution: side in pixels of the square that has the bins' area.
    """
    height, width = trained_size(*picture.shape[1:], resolution)
    scale = max(height / picture.shape[1], width / picture.shape[2])
    if scale != 1 or picture.shape[1:] != (height, width):
        size = (max(height, round(picture.shape[1] * scale)), max(width, round(picture.shape[2] * scale)))
        picture = torch.nn.functional.interpolate(picture[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
    return picture[:, top : top + height, left : left + width]


def concerns(examples: Sequence[Example], trigger: str) -> list[str]:
    """Sentences about what is possible but seldom wanted."""
    concept = [example for example in examples if not example.prior]
    found = []
    if len(concept) == 1:
        found.append(
            "There is one picture of the concept: its background and pose are learned as a part of it. "
            "3 to 10 different pictures are usual."
        )
    if trigger and (lacking := [example for example in concept if trigger.lower() not in example.caption.lower()]):
        found.append(
            f"The trigger {trigger!r} is not in {len(lacking)} of {len(concept)} captions, such as that of "
            f"{lacking[0].source}: {lacking[0].caption!r}."
        )
    if not any(example.prior for example in examples):
        found.append("There are no class pictures: what the model knew may change with the concept.")
    return found
