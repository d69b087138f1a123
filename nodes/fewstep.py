"""Samplers: few-step models, and the official pipelines' own."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..pixart.sampling import DIFFUSERS, DPM_SOLVER, FEW_STEP_METHODS, LCM, ORIGINAL, REFERENCE_METHODS
from .host import sampling
from .host.model import pixart_model


class PixArtFewStep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtFewStep",
            display_name="PixArt Few Step",
            category="PixArt/sampling",
            description="Draws with a distilled PixArt in 1 to 8 steps: LCM, DMD, Flash or Nitro. Connect MODEL to a "
            "Basic Guider, since guidance is built into such weights, and all three to Sampler Custom Advanced.",
            search_aliases=["lcm", "dmd", "flash diffusion", "nitro", "turbo", "one step", "lightning", "consistency"],
            inputs=[
                io.Model.Input("model", tooltip="A distilled PixArt, or PixArt with an LCM or Flash LoRA."),
                io.Combo.Input(
                    "method",
                    options=list(FEW_STEP_METHODS),
                    default=LCM,
                    tooltip="How the weights were distilled. dmd is one step from timestep 400, nitro the same and "
                    "more steps where wished; lcm and flash jump from the whole noise.",
                ),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=1,
                    max=50,
                    tooltip="Forwards of the model: 1 for dmd, 1 to 8 for nitro, 2 to 8 for lcm, 4 for flash.",
                ),
                io.Combo.Input(
                    "timesteps",
                    options=[DIFFUSERS, ORIGINAL],
                    default=DIFFUSERS,
                    advanced=True,
                    tooltip="Where lcm and flash jump to: as diffusers spaces them, or as PixArt's own first code did.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the prediction that the method needs, for a Basic Guider."),
                io.Sigmas.Output(tooltip="The noise levels of the method's timesteps."),
                io.Sampler.Output(tooltip="The method's sampler; a seed gives the noise it gives in diffusers."),
            ],
        )

    @classmethod
    def execute(cls, model, method: str, steps: int = 4, timesteps: str = DIFFUSERS) -> io.NodeOutput:
        pixart_model(model)
        return io.NodeOutput(*sampling.few_step(model, method, steps, timesteps))


class PixArtReferenceSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtReferenceSampling",
            display_name="PixArt Reference Sampling",
            category="PixArt/sampling",
            description="The timesteps and the sampler of PixArt's official pipelines, number for number, to draw "
            "published pictures again from their seed. Their guidance scale is 4.5.",
            search_aliases=["dpm-solver++", "sa-solver", "official sampler", "reproduce", "diffusers", "scheduler"],
            inputs=[
                io.Combo.Input(
                    "method",
                    options=list(REFERENCE_METHODS),
                    default=DPM_SOLVER,
                    tooltip="DPM-Solver++ is the official default. SA-Solver adds noise on its way, and is the other "
                    "choice of the official demos.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=999, tooltip="20 for DPM-Solver++, 25 for SA-Solver officially."
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 an existing latent is changed only in part: the share of the noise to begin from.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(tooltip="The noise levels of the official timesteps."),
                io.Sampler.Output(tooltip="The official solver; a seed gives the noise it gives in diffusers."),
            ],
        )

    @classmethod
    def execute(cls, method: str, steps: int = 20, denoise: float = 1.0) -> io.NodeOutput:
        return io.NodeOutput(*sampling.reference(method, steps, denoise))


NODES = [PixArtFewStep, PixArtReferenceSampling]
