"""What can go wrong while the pack works, how tests bring it about, and what the user then sees.

``python tests/harness/faults.py`` prints the table that tests/FAULTS.md holds. A row of ``FAULTS`` is run as it stands
by tests/host/test_faults.py; a row of ``STORIES`` names the test that acts it out and takes its words from the row.
"""

from __future__ import annotations

from dataclasses import dataclass

PICTURE = "the right picture, bit for bit"
NEARLY = "the right picture, within 2 of 255"  # tiles are summed in another order where there are several threads
STOPPED = "the workflow is stopped, without an error"
HOST_OOM = "This error means you ran out of memory on your GPU."
"""ComfyUI's words, after those of the exception."""


@dataclass(frozen=True)
class Fault:
    """One thing that is made to happen at the n-th call of a place of ``fault_pack`` in a running ComfyUI.

    workflow: a name in test_faults.py. sees: PICTURE, STOPPED, or words that are in the error on the node.
    node: the kind of node that shows the error.
    """

    what: str
    at: str
    do: str
    workflow: str
    sees: str
    node: str = ""
    call: int = 1
    times: int = 1

    @property
    def how(self) -> str:
        nth = f"call {self.call}" + (f" to {self.call + self.times - 1}" if self.times > 1 else "")
        return f"{self.at}, {nth}: {HOW[self.do]}"

    @property
    def shown(self) -> str:
        return self.sees if self.sees in (PICTURE, NEARLY, STOPPED) else f"{self.node}: “… {self.sees} …”"


@dataclass(frozen=True)
class Story:
    """test: the function that acts it out; sees: words that it asserts, or PICTURE."""

    what: str
    how: str
    test: str
    sees: str
    shown_as: str = ""

    @property
    def shown(self) -> str:
        return self.shown_as or (self.sees if self.sees in (PICTURE, NEARLY, STOPPED) else f"“… {self.sees} …”")


HOW = {
    "out of memory": "PyTorch's OutOfMemoryError is raised",
    "no memory": "PyTorch is asked for 32 PiB of main memory",
    "interrupt": "ComfyUI's interrupt_processing() is called",
    "unload": "ComfyUI's unload_all_models() is called",
    "disk full": "every write to the file meets /dev/full",
    "no replacing": "os.replace raises EDQUOT",
}

SAMPLER, ENCODER = "KSamplerAdvanced", "PixArtTextEncode"
CHECKPOINT, T5, CONTROLNET = "PixArtLoadCheckpoint", "PixArtLoadT5", "PixArtLoadControlNet"

OUT_OF_MEMORY = [
    Fault("loading a checkpoint", "load checkpoint", "out of memory", "load checkpoint", HOST_OOM, CHECKPOINT),
    Fault("loading T5", "load T5", "out of memory", "load T5", HOST_OOM, T5),
    Fault("loading a ControlNet", "load ControlNet", "out of memory", "load ControlNet", HOST_OOM, CONTROLNET, call=9),
    Fault("applying a LoRA", "load LoRA", "out of memory", "load LoRA", HOST_OOM, "PixArtLoadLora"),
    Fault("encoding a prompt", "T5", "out of memory", "text", HOST_OOM, ENCODER),
    Fault("ControlNet, second step", "ControlNet", "out of memory", "control", HOST_OOM, SAMPLER, call=2),
    Fault("patches, second step", "embedding", "out of memory", "text", HOST_OOM, SAMPLER, call=2),
    Fault("first block of the first step", "block", "out of memory", "text", HOST_OOM, SAMPLER, call=1),
    Fault("middle block of the second step", "block", "out of memory", "text", HOST_OOM, SAMPLER, call=8),
    Fault("last block of the last step", "block", "out of memory", "text", HOST_OOM, SAMPLER, call=20),
    Fault("self-attention", "self-attention", "out of memory", "text", HOST_OOM, SAMPLER, call=9),
    Fault("final layer of the last step", "final layer", "out of memory", "text", HOST_OOM, SAMPLER, call=4),
    Fault("a block, with a LoRA in the weights", "block", "out of memory", "LoRA", HOST_OOM, SAMPLER, call=8),
    Fault("a block, with a step cache", "block", "out of memory", "cache", HOST_OOM, SAMPLER, call=8),
    Fault("a block, with KV compression", "block", "out of memory", "compression", HOST_OOM, SAMPLER, call=8),
    Fault("main memory, on the processor", "block", "no memory", "text", "can't allocate memory", SAMPLER, call=8),
    Fault("decoding, once: ComfyUI decodes in tiles", "VAE decode", "out of memory", "text", NEARLY),
    Fault("decoding, in tiles too", "VAE decode", "out of memory", "text", HOST_OOM, "VAEDecode", times=99),
    Fault("training, second update", "training", "out of memory", "train", HOST_OOM, "PixArtTrainLora", call=2),
]

INTERRUPT = [
    Fault("loading a checkpoint", "load checkpoint", "interrupt", "load checkpoint", STOPPED),
    Fault("loading T5", "load T5", "interrupt", "load T5", STOPPED),
    Fault("loading a ControlNet", "load ControlNet", "interrupt", "load ControlNet", STOPPED),
    Fault("encoding a prompt", "T5", "interrupt", "text", STOPPED),
    Fault("between two steps", "sampling step", "interrupt", "text", STOPPED, call=2),
    Fault("in a block", "block", "interrupt", "text", STOPPED, call=8),
    Fault("in the ControlNet", "ControlNet", "interrupt", "control", STOPPED, call=2),
    Fault("with a LoRA in the weights", "sampling step", "interrupt", "LoRA", STOPPED, call=2),
    Fault("with a step cache", "sampling step", "interrupt", "cache", STOPPED, call=3),
    Fault("decoding", "VAE decode", "interrupt", "text", STOPPED),
    Fault("training; the next run goes on", "training", "interrupt", "train", STOPPED, call=2),
]

UNLOADED = [
    Fault("between two steps", "sampling step", "unload", "text", PICTURE, call=3),
    Fault("between two steps, with a LoRA", "sampling step", "unload", "LoRA", PICTURE, call=3),
    Fault("between two steps, with a ControlNet", "sampling step", "unload", "control", PICTURE, call=3),
    Fault("between two steps, with a step cache", "sampling step", "unload", "cache", PICTURE, call=3),
    Fault("between two steps, with KV compression", "sampling step", "unload", "compression", PICTURE, call=3),
    Fault("while a prompt is encoded", "T5", "unload", "text", PICTURE),
    Fault("before decoding", "VAE decode", "unload", "text", PICTURE),
]

NO_ROOM, NO_QUOTA = "No space left on device. Nothing was changed there. Make room on that disk", "Disk quota exceeded"

DISK = [
    Fault("a caption file", "save", "disk full", "caption", NO_ROOM, "PixArtSaveCaption"),
    Fault("a caption file, at its renaming", "save", "no replacing", "caption", NO_QUOTA, "PixArtSaveCaption"),
    Fault("a picture of a prompt set", "save", "disk full", "sheet", NO_ROOM, "PixArtContactSheet", call=2),
    Fault("the table (CSV)", "save", "disk full", "sheet", NO_ROOM, "PixArtContactSheet", call=3),
    Fault("the contact sheet", "save", "disk full", "sheet", NO_ROOM, "PixArtContactSheet", call=4),
    Fault("the table, at its renaming", "save", "no replacing", "sheet", NO_QUOTA, "PixArtContactSheet", call=3),
    Fault("a training's state", "save", "disk full", "train", NO_ROOM, "PixArtTrainLora", call=1),
    Fault("a trained LoRA", "save", "disk full", "train", NO_ROOM, "PixArtTrainLora", call=2),
]

FAULTS = [*OUT_OF_MEMORY, *INTERRUPT, *UNLOADED, *DISK]

QUEUED = "another prompt holds the queue meanwhile"
KILLS = "SIGKILL before, amid and after its bytes, and on both sides of its renaming"
WHOLE = "what is under the final name is the old file or the new one, whole"

FILES = [
    Story(
        "a checkpoint is removed",
        QUEUED,
        "test_a_checkpoint_removed_after_queueing_is_named",
        "is not in models/checkpoints or models/diffusion_models or models/diffusers. Put it there",
    ),
    Story(
        "a checkpoint in use is replaced by another",
        f"os.replace; {QUEUED}",
        "test_a_checkpoint_replaced_after_queueing_is_opened_anew",
        PICTURE,
        "the picture of the new file, bit for bit",
    ),
    Story(
        "a checkpoint in use is overwritten in place",
        f"as many bytes into the same file; {QUEUED}",
        "test_a_checkpoint_overwritten_in_place_is_opened_anew",
        PICTURE,
        "the picture of the new file, bit for bit",
    ),
    Story(
        "a checkpoint in use is cut short",
        f"truncated to half; {QUEUED}",
        "test_a_checkpoint_cut_short_after_queueing_is_named",
        "The file is cut short: its header speaks of",
    ),
    Story(
        "a T5 in use is replaced by another",
        f"os.replace; {QUEUED}",
        "test_a_t5_replaced_after_queueing_is_opened_anew",
        PICTURE,
        "the picture of the new file, bit for bit",
    ),
    Story(
        "a LoRA in use is replaced by another",
        f"os.replace; {QUEUED}",
        "test_a_lora_replaced_after_queueing_is_opened_anew",
        PICTURE,
        "the picture of the new file, bit for bit",
    ),
    Story(
        "a LoRA is removed",
        QUEUED,
        "test_a_lora_removed_after_queueing_is_named",
        "is not in models/loras. Put it there",
    ),
    Story(
        "a ControlNet in use is replaced by another",
        f"os.replace; {QUEUED}",
        "test_a_control_net_replaced_after_queueing_is_opened_anew",
        PICTURE,
        "the picture of the new file, bit for bit",
    ),
    Story(
        "a caption file is removed",
        QUEUED,
        "test_a_caption_removed_after_queueing_is_named",
        "is not there. Caption files are looked for in models/captions, input and output",
    ),
    Story(
        "a file of prompts is removed",
        QUEUED,
        "test_a_prompt_file_removed_after_queueing_is_named",
        "is not in the input folder. Put it there",
    ),
]

CLIENTS = [
    Story(
        "two clients queue prompts at once",
        "two websockets, three prompts each, in turn",
        "test_two_clients_at_once_get_their_own_pictures",
        PICTURE,
        "each gets its own pictures, bit for bit those of a client alone, and none of the other's",
    ),
    Story(
        "one client stops its prompt, another waits",
        "POST /interrupt while the first is sampled",
        "test_one_client_stops_and_the_other_gets_its_picture",
        PICTURE,
        "the first is stopped, the second gets the right picture, bit for bit",
    ),
]

KILLED = [
    Story("saving a caption", KILLS, "test_killed_while_saving[caption]", WHOLE),
    Story("saving a trained file", KILLS, "test_killed_while_saving[lora]", WHOLE),
    Story("saving a training's state", KILLS, "test_killed_while_saving[state]", WHOLE),
    Story("saving encoded pictures", KILLS, "test_killed_while_saving[features]", WHOLE),
    Story("saving a contact sheet", KILLS, "test_killed_while_saving[sheet]", WHOLE),
]

GROUPS: list[tuple[str, list]] = [
    ("Out of memory", OUT_OF_MEMORY),
    ("Interrupt", INTERRUPT),
    ("Every model is unloaded", UNLOADED),
    ("The disk is full while saving", DISK),
    ("Files change between queue and run", FILES),
    ("Two clients", CLIENTS),
    ("The process is killed", KILLED),
]

HEAD = """# Faults

What goes wrong, how the tests bring it about in a real ComfyUI on the demo model, and what the user sees. ComfyUI
0.33.0 goes through all rows; 0.24.0 and 0.14.0 through every third of the first four tables and all of the others.
After each fault but a kill the same workflow is queued again, in the same process: it ends with the very result, bit
for bit, that it had before, and nothing half written lies in the output and model folders.

This page is printed by `python tests/harness/faults.py`, and a test compares the two. `tests/host/test_faults.py` and
`tests/host/test_killed.py` run the rows.

Not guarded: a model file that is cut short **in place while it is being sampled from**. Weights stay in the file's own
memory pages, and the system ends a process that reads a page that is no longer there. Programs that download or copy
under another name first, and rename, do no harm; `--disable-mmap` keeps the weights off the file."""


def render() -> str:
    """The page, as tests/FAULTS.md holds it."""
    lines = [HEAD]
    for title, rows in GROUPS:
        lines += ["", f"## {title}", "", "| what | how | what the user sees |", "|---|---|---|"]
        lines += [f"| {row.what} | {row.how} | {row.shown} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(render())
