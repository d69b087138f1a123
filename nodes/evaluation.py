"""Prompt sets: many prompts through one workflow, and what came of them on a sheet."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from .host import evaluation
from .host.messages import say

PROMPT_SET = io.Custom("PIXART_PROMPT_SET")


class PixArtPromptSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtPromptSet",
            display_name="PixArt Prompt Set",
            category="PixArt/evaluation",
            description="Reads a file of prompts (DrawBench, PartiPrompts or your own: CSV, TSV, JSON or TXT) and runs "
            "the workflow for each of them.",
            search_aliases=["prompt list", "drawbench", "partiprompts", "batch prompts", "csv prompts", "benchmark"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=evaluation.prompt_files(),
                    tooltip="A file in the input folder with a column prompt, and category and seed where wished. "
                    "A TXT has a prompt a line.",
                ),
                io.String.Input(
                    "category", default="", tooltip="Only these categories, separated by commas; empty for all."
                ),
                io.Int.Input(
                    "limit",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="At most so many prompts at once; 0 for all. With a run, each queue draws the next ones.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="Of the file's first prompt; every other has its place in the file added, or its own seed.",
                ),
                io.String.Input(
                    "run",
                    default="",
                    tooltip="A folder below output. Prompts that PixArt Contact Sheet has saved there under the same "
                    "name are left out, so that a run that was stopped goes on.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompts", is_output_list=True, tooltip="The prompts, one after another."
                ),
                io.String.Output(display_name="categories", is_output_list=True, tooltip="The category of each."),
                io.Int.Output(display_name="seeds", is_output_list=True, tooltip="The seed of each, for a sampler."),
                PROMPT_SET.Output(display_name="prompt_set", tooltip="All of it, for PixArt Contact Sheet."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, category: str = "", limit: int = 0, seed: int = 0, run: str = "") -> str:
        return evaluation.fingerprint(file, run)

    @classmethod
    def execute(cls, file: str, category: str = "", limit: int = 0, seed: int = 0, run: str = "") -> io.NodeOutput:
        chosen = evaluation.prompt_set(file, category, limit, seed, run)
        say(f"{len(chosen.prompts)} prompts", cls.hidden.unique_id)
        return io.NodeOutput(
            [prompt.text for prompt in chosen.prompts],
            [prompt.category for prompt in chosen.prompts],
            list(chosen.seeds),
            chosen,
        )


class PixArtContactSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtContactSheet",
            display_name="PixArt Contact Sheet",
            category="PixArt/evaluation",
            description="Puts a list of pictures on one labelled sheet, by category, with seeds, settings and time; "
            "with a run it also saves them, with a table (CSV), and shows all that the run has drawn so far.",
            search_aliases=["image grid", "grid", "comparison", "xy plot", "contact sheet", "labels", "montage"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures, as a list or a batch."),
                io.String.Input(
                    "labels", default="", tooltip="A label for each, such as its prompt.", force_input=True
                ),
                io.Int.Input("columns", default=5, min=1, max=100, tooltip="Pictures in a row."),
                io.String.Input(
                    "categories", optional=True, force_input=True, tooltip="The heading that each picture goes under."
                ),
                io.Int.Input(
                    "seeds", optional=True, force_input=True, tooltip="The seed of each, to be written below."
                ),
                PROMPT_SET.Input(
                    "prompt_set",
                    optional=True,
                    tooltip="From PixArt Prompt Set: brings categories, seeds and time, and is needed for a run.",
                ),
                io.String.Input(
                    "run",
                    default="",
                    optional=True,
                    tooltip="A folder below output for pictures, results.csv and sheet.png; the same as in PixArt "
                    "Prompt Set. Empty saves nothing.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The sheet, for Preview Image or Save Image."),
                io.String.Output(display_name="table", tooltip="Path of results.csv; empty without a run."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: list,
        labels: list[str],
        columns: list[int],
        categories: list[str] | None = None,
        seeds: list[int] | None = None,
        prompt_set: list | None = None,
        run: list[str] | None = None,
    ) -> io.NodeOutput:
        sheet, table, message = evaluation.contact_sheet(
            images,
            labels,
            columns[0],
            categories,
            seeds,
            prompt_set[0] if prompt_set else None,
            run[0] if run else "",
            evaluation.settings_of(cls.hidden.prompt),
        )
        say(message, cls.hidden.unique_id)
        return io.NodeOutput(sheet, table)


NODES = [PixArtPromptSet, PixArtContactSheet]
