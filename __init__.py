"""PixArt-α and PixArt-Σ for ComfyUI."""

from importlib.util import find_spec

WEB_DIRECTORY = "./js"

if __package__ and find_spec("comfy_api"):
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
