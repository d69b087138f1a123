"""``python tools/brand.py``: the icon and banner that registries show, and cards for templates without a picture.

Needs Pillow. What is drawn are the frames of the aspect-ratio table at base 1024. A template for released checkpoints
gets a card and not a picture, since none was drawn with it here.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image, ImageDraw, ImageFont

from pixart.resolution import bins
from tools.environment import ROOT

BACK, BLUE, INK = (24, 26, 32), (100, 181, 246), (236, 240, 246)
COLOURS = ((239, 83, 80), (255, 167, 38), (255, 238, 88), (102, 187, 106), (66, 165, 245), (171, 71, 188))
CARDS = {
    "text_to_image_sigma": ("PixArt Sigma", "text to image, 1024"),
    "text_to_image_sigma_2k": ("PixArt Sigma 2K", "text to image, 2560 by 1536"),
    "text_to_image_alpha_1024": ("PixArt alpha", "text to image, 1024"),
    "image_to_image_sigma": ("Image to image", "PixArt Sigma, 1024"),
    "inpaint_sigma": ("Inpainting", "PixArt Sigma, 1024"),
    "cascade_sigma": ("Cascade", "PixArt Sigma, 1536"),
    "high_guidance_sigma": ("Strong guidance", "PixArt Sigma, cfg 15"),
    "reference_sampling_sigma": ("Reference", "the official sampler, Sigma"),
    "prompt_set_sigma": ("Prompt set", "PixArt Sigma, on a sheet"),
    "step_cache_sigma": ("Step cache", "PixArt Sigma, faster"),
    "few_step_alpha": ("Four steps", "PixArt alpha LCM"),
    "controlnet_alpha": ("ControlNet", "PixArt alpha, 1024"),
    "controlnet_two_alpha": ("Two ControlNets", "PixArt alpha, 1024"),
    "dreambooth_train_sigma": ("Train a subject", "PixArt Sigma, 512"),
    "lora_sigma": ("LoRA", "PixArt Sigma, 512"),
    "large_2k_sigma": ("2K", "PixArt Sigma, two passes"),
    "large_4k_sigma": ("4K", "PixArt Sigma, two passes"),
    "offline_captions_save": ("Save captions", "encode once, demo"),
    "offline_captions_sigma": ("Saved captions", "draw without T5, Sigma"),
    "offline_captions_save_sigma": ("Save captions", "encode once with T5-XXL"),
}
"""Template → what its card says."""

SCALE = 4  # drawn larger and reduced, for smooth edges
LONGEST = 2048


def frames(draw: ImageDraw.ImageDraw, centre: tuple[float, float], side: float) -> None:
    """The table's frames around one point, widest to tallest in the colours of the rainbow, the square filled."""
    table = bins(1024)
    for index, entry in enumerate(table):
        part = index / (len(table) - 1) * (len(COLOURS) - 1)
        first, second = COLOURS[int(part)], COLOURS[min(int(part) + 1, len(COLOURS) - 1)]
        share = part - int(part)
        colour = tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
        w, h = entry.width / LONGEST * side / 2, entry.height / LONGEST * side / 2
        box = (centre[0] - w, centre[1] - h, centre[0] + w, centre[1] + h)
        draw.rounded_rectangle(box, radius=side / 60, outline=colour, width=max(1, round(side / 220)))
    half = side / 4
    box = (centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)
    draw.rounded_rectangle(box, radius=side / 30, fill=BACK, outline=INK, width=round(side / 60))


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def icon(size: int = 400) -> Image.Image:
    big = Image.new("RGB", (size * SCALE, size * SCALE), BACK)
    draw = ImageDraw.Draw(big)
    middle = size * SCALE / 2
    frames(draw, (middle, middle), size * SCALE * 0.9)
    draw.text((middle, middle), "Px", font=font(int(size * SCALE * 0.22)), fill=INK, anchor="mm")
    return big.resize((size, size), Image.LANCZOS)


def banner(width: int = 1260, height: int = 540) -> Image.Image:
    big = Image.new("RGB", (width * SCALE // 2, height * SCALE // 2), BACK)
    draw = ImageDraw.Draw(big)
    tall = big.height
    frames(draw, (tall * 0.55, tall / 2), tall * 0.88)
    draw.text((tall * 0.55, tall / 2), "Px", font=font(int(tall * 0.2)), fill=INK, anchor="mm")
    left = tall * 1.1
    draw.text((left, tall * 0.36), "PixArt", font=font(int(tall * 0.2)), fill=INK, anchor="ls")
    draw.text((left, tall * 0.5), "alpha and Sigma in ComfyUI", font=font(int(tall * 0.085)), fill=BLUE, anchor="ls")
    lines = ("any file, any size, any depth", "T5 captions, counted as you type", "trained shapes at a click")
    for row, line in enumerate(lines):
        draw.text((left, tall * (0.63 + 0.08 * row)), line, font=font(int(tall * 0.05)), fill=INK, anchor="ls")
    return big.resize((width, height), Image.LANCZOS)


def card(title: str, line: str, size: int = 400) -> Image.Image:
    big = Image.new("RGB", (size * SCALE, size * SCALE), BACK)
    draw = ImageDraw.Draw(big)
    side = size * SCALE
    frames(draw, (side / 2, side * 0.42), side * 0.72)
    draw.text((side / 2, side * 0.42), "Px", font=font(int(side * 0.17)), fill=INK, anchor="mm")
    draw.text((side / 2, side * 0.88), title, font=font(int(side * 0.085)), fill=INK, anchor="ms")
    draw.text((side / 2, side * 0.95), line, font=font(int(side * 0.05)), fill=BLUE, anchor="ms")
    return big.resize((size, size), Image.LANCZOS)


def main() -> None:
    folder = ROOT / "assets"
    folder.mkdir(exist_ok=True)
    icon().save(folder / "icon.png", optimize=True)
    banner().save(folder / "banner.png", optimize=True)
    for name, (title, line) in CARDS.items():
        card(title, line).save(ROOT / "workflows" / f"{name}.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main()
