"""Teaching PixArt a concept, in the graph."""

from __future__ import annotations

from comfy_api.v0_0_2 import io, ui

from ..pixart.training.settings import TARGETS, TrainSettings
from .host import training


class PixArtTrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtTrainLora",
            display_name="PixArt Train LoRA",
            category="PixArt/training",
            description="Teaches PixArt a new concept from a few pictures, as a LoRA in models/loras. Class pictures "
            "keep what the model knew (DreamBooth's prior preservation). Stopped, it goes on from the last update when "
            "it is queued again. Needs the package accelerate.",
            search_aliases=["train lora", "dreambooth", "finetune", "fine-tune", "teach", "pixart training"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint to start from, straight from PixArt Load Checkpoint."),
                io.Clip.Input("clip", tooltip="The T5 of that checkpoint. It leaves the card before training begins."),
                io.Vae.Input("vae", tooltip="The VAE of that checkpoint: SD's for α, SDXL's for Σ."),
                io.Image.Input("images", tooltip="3 to 10 pictures of the concept: a batch, or a list of any sizes."),
                io.String.Input(
                    "captions",
                    multiline=True,
                    default="a photo of sks",
                    tooltip="One caption a line in the pictures' order, or one for all. A rare word names the concept.",
                ),
                io.String.Input(
                    "lora_name",
                    default="my-concept",
                    tooltip="Name of the file in models/loras. A file of another training is never overwritten.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip="The word that calls the concept, noted in the file. Write it into captions yourself.",
                ),
                io.Int.Input("steps", default=500, min=1, max=1000000, tooltip="Updates of the weights."),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="Pictures of the concept in each update. As many class pictures are added.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=1e-7,
                    max=1.0,
                    step=1e-7,
                    round=False,
                    tooltip="Size of an update; 1e-4 is usual. Lower it if pictures break, raise it if none change.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="Size of the LoRA: 4 to 64. A larger one can hold more, in a larger file.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="The same seed and settings give the same file.",
                ),
                io.Image.Input(
                    "class_images",
                    optional=True,
                    tooltip="Pictures of what the model should not forget, best drawn by the model itself.",
                ),
                io.String.Input(
                    "class_captions",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Captions of the class pictures: one a line in their order, or one for all.",
                ),
                io.Float.Input(
                    "prior_weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    optional=True,
                    tooltip="What class pictures count beside those of the concept.",
                ),
                io.String.Input(
                    "preview_prompts",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Prompts to draw while it trains, one a line. Left empty, the first caption is drawn.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=100000,
                    optional=True,
                    tooltip="Updates from one preview to the next. 0 draws one at the end.",
                ),
                io.Int.Input(
                    "save_every",
                    default=100,
                    min=0,
                    max=100000,
                    optional=True,
                    tooltip="Updates from one saved state to the next. 0 saves at the end, or when stopped.",
                ),
                io.Combo.Input(
                    "targets",
                    options=list(TARGETS),
                    default="attention",
                    optional=True,
                    advanced=True,
                    tooltip="Layers that learn: attention, the whole blocks, or all linear layers.",
                ),
                io.Float.Input(
                    "caption_dropout",
                    default=0.1,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Share of captions left out, which keeps CFG working.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="Weighs noise levels by min-SNR with this gamma; 5 is usual. 0 turns it off.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.99999,
                    step=0.0001,
                    round=False,
                    optional=True,
                    advanced=True,
                    tooltip="Saves an average of the weights with this decay, such as 0.99. 0 saves the last ones.",
                ),
                io.Int.Input(
                    "accumulation",
                    default=1,
                    min=1,
                    max=4096,
                    optional=True,
                    advanced=True,
                    tooltip="Splits an update into so many parts, for memory. Must divide batch_size.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Computes blocks twice to save memory. About a third slower, with the same result.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(training.PRECISIONS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="auto computes in bf16 where the card does, else in fp32. The LoRA is kept in fp32.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=8192,
                    step=16,
                    optional=True,
                    advanced=True,
                    tooltip="Pictures are scaled to the area of a square with this side. 0 takes the checkpoint's own.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="lora_name", tooltip="Name of the file, as LoRA loaders list it."),
                io.String.Output(display_name="report", tooltip="What was trained, and what to look at."),
                io.Image.Output(display_name="previews", tooltip="The previews, in the order of training."),
                io.Model.Output(tooltip="The model with the new LoRA at strength 1."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        images,
        captions,
        lora_name,
        trigger=("",),
        steps=(500,),
        batch_size=(1,),
        learning_rate=(1e-4,),
        rank=(16,),
        seed=(0,),
        class_images=None,
        class_captions=("",),
        prior_weight=(1.0,),
        preview_prompts=("",),
        preview_every=(100,),
        save_every=(100,),
        targets=("attention",),
        caption_dropout=(0.1,),
        min_snr_gamma=(0.0,),
        ema_decay=(0.0,),
        accumulation=(1,),
        gradient_checkpointing=(True,),
        precision=("auto",),
        resolution=(0,),
    ) -> io.NodeOutput:
        examples = training.examples_from(images, captions)
        if class_images is not None:
            examples += training.examples_from(class_images, class_captions, prior=True)
        prompts = [line.strip() for text in preview_prompts for line in text.splitlines() if line.strip()]
        settings = TrainSettings(
            steps=steps[0],
            batch_size=batch_size[0],
            accumulation=accumulation[0],
            learning_rate=learning_rate[0],
            rank=rank[0],
            targets=targets[0],
            caption_dropout=caption_dropout[0],
            prior_weight=prior_weight[0],
            min_snr=min_snr_gamma[0],
            ema=ema_decay[0],
            precision=training.precision_for(precision[0]),
            checkpointing=gradient_checkpointing[0],
            resolution=resolution[0],
            seed=seed[0],
            save_every=save_every[0],
            preview_every=preview_every[0],
        )
        trained = training.train_lora(
            model[0],
            clip[0],
            vae[0],
            examples,
            prompts or [examples[0].caption],
            settings,
            lora_name[0],
            trigger[0].strip(),
        )
        return io.NodeOutput(
            trained.name,
            trained.report,
            trained.pictures,
            training.with_lora(model[0], trained.path),
            ui=ui.PreviewText(trained.report),
        )


NODES = [PixArtTrainLora]
