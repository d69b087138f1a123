"""A cascade: the second, larger pass."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..pixart.cascade import METHODS
from ..pixart.resolution import BASES
from .host import upscale
from .host.model import pixart_model


class PixArtUpscaleLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtUpscaleLatent",
            display_name="PixArt Upscale Latent",
            category="PixArt/latent",
            description="Enlarges a finished latent, adds noise to it, and gives the noise levels that finish it at "
            "the larger size: Imagen's cascade, with PixArt for both passes. For Sampler Custom Advanced with "
            "Disable Noise.",
            search_aliases=["hires fix", "cascade", "super resolution", "upscale", "second pass", "noise augmentation"],
            inputs=[
                io.Model.Input("model", tooltip="The model of the second pass: its latents' scale is needed."),
                io.Latent.Input("latent", tooltip="A finished picture's latent, from the first pass or a VAE Encode."),
                io.Combo.Input(
                    "target",
                    options=["scale", *(str(base) for base in BASES)],
                    default="scale",
                    tooltip="scale enlarges by the factor below. A number is the base whose trained size, nearest in "
                    "shape, is taken.",
                ),
                io.Float.Input(
                    "scale", default=2.0, min=1.0, max=8.0, step=0.05, tooltip="Factor for target scale, either side."
                ),
                io.Float.Input(
                    "noise_augmentation",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much noise to add, as the share of the timesteps the second pass begins at. More "
                    "draws more anew, less keeps more of the first picture; 0 only enlarges.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the noise that is added.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps of the second pass."),
                io.Combo.Input(
                    "upscale_method",
                    options=list(METHODS),
                    default=METHODS[0],
                    advanced=True,
                    tooltip="How latents are enlarged before the noise is added.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The enlarged latent with its noise, for Sampler Custom Advanced."),
                io.Sigmas.Output(tooltip="The noise levels of the second pass, from the one that was added to none."),
                io.Int.Output(display_name="width", tooltip="Width of the larger picture in pixels."),
                io.Int.Output(display_name="height", tooltip="Height of the larger picture in pixels."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        latent: dict,
        target: str = "scale",
        scale: float = 2.0,
        noise_augmentation: float = 0.4,
        seed: int = 0,
        steps: int = 20,
        upscale_method: str = METHODS[0],
    ) -> io.NodeOutput:
        pixart_model(model)
        return io.NodeOutput(
            *upscale.second_pass(model, latent, target, scale, noise_augmentation, steps, seed, upscale_method)
        )


NODES = [PixArtUpscaleLatent]
