"""T5 v1.1 of any size as the host's CLIP."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import comfy.model_management
import comfy.supported_models_base
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.t5
import comfy.utils
import folder_paths
import torch
from comfy import sd1_clip

from ...pixart.text.encoder import T5File, open_t5
from ...pixart.text.layout import FINAL_NORM, RELATIVE_BIAS
from ...pixart.text.provenance import mark_t5, provenance
from ...pixart.text.tokens import JsonTokenizer
from . import compat

NAME = "t5xxl"
"""What the host calls PixArt's encoder whatever its size: LoRA maps and token dictionaries use it."""

END, PAD = 1, 0
XXL_WIDTH = 4096

EMBEDDING_WORD = re.compile(r"embedding:[^\s,:()]+")

PROVENANCE = "pixart_caption"
"""Where a conditioning's dict says what was encoded and by which T5."""

DTYPES = {
    "auto": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


class T5Encoder(sd1_clip.SDClipModel):
    """The host's T5 with the shape that the file has. It sees real tokens only: no padding, so no mask."""

    def __init__(self, device="cpu", dtype=None, model_options=None, t5_config=None):
        super().__init__(
            device=device,
            dtype=dtype,
            layer="last",
            textmodel_json_config=dict(t5_config),
            special_tokens={"end": END, "pad": PAD},
            model_class=comfy.text_encoders.t5.T5,
            model_options=model_options or {},
        )

    def gen_empty_tokens(self, special_tokens, length):
        """The point that prompt weights move a token away from or towards: padding, as the host's PixArt has it."""
        return [PAD] * length


class HostTokenizer:
    """One of the library's tokenizers, with the call that the host makes of a Hugging Face tokenizer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, tokenizer) -> HostTokenizer:
        return cls(tokenizer)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [*self.tokenizer.encode(text), END]}

    def get_vocab(self) -> dict[str, int]:
        return self.tokenizer.vocabulary()

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode([i for i in ids if i not in (END, PAD)] if skip_special_tokens else ids)


def host_vocabulary() -> JsonTokenizer:
    """T5's vocabulary as the host ships it, for encoder files that bring none."""
    folder = Path(inspect.getfile(comfy.text_encoders.pixart_t5)).parent / "t5_tokenizer"
    return JsonTokenizer((folder / "tokenizer.json").read_bytes())


def tokenizer_class(file: T5File | None):
    """The host's tokenizer class around the file's own vocabulary, or else the host's."""
    brought = file is not None and (file.tokenizer is not None or file.tokenizer_json is not None)
    tokenizer = file.make_tokenizer() if brought else host_vocabulary()
    width = file.config.d_model if file is not None else XXL_WIDTH

    class T5Tokenizer(sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                tokenizer,
                tokenizer_class=HostTokenizer,
                embedding_directory=embedding_directory,
                embedding_size=width,
                embedding_key=NAME,
                pad_with_end=False,
                has_start_token=False,
                pad_to_max_length=False,
                max_length=99999999,
                min_length=1,
                tokenizer_data=tokenizer_data or {},
            )

    class PixArtTokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                embedding_directory=embedding_directory,
                tokenizer_data=tokenizer_data or {},
                clip_name=NAME,
                name=NAME,
                tokenizer=T5Tokenizer,
            )

    return PixArtTokenizer


def encoder_class(file: T5File, weight_dtype: torch.dtype, quantization: dict | None):
    """The host's wrapper class around ``T5Encoder`` for this file, its weights kept in ``weight_dtype``."""

    class PixArtTextModel(sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            options = dict(model_options or {})
            if quantization is not None:
                options["quantization_metadata"] = quantization
            super().__init__(
                device=device,
                dtype=weight_dtype,
                name=NAME,
                clip_model=T5Encoder,
                model_options=options,
                t5_config=file.config.host_dict(),
            )

    return PixArtTextModel


def load_clip(path: str, dtype: str = "auto", device: str = "auto", disable_dynamic: bool = False):
    """Load a T5 v1.1 encoder as a CLIP.

    path: a file or a Hugging Face folder; dtype: a key of DTYPES, "auto" keeps the file's own;
    device: "auto" leaves it to the host, "cpu" keeps the encoder in system memory.
    Raises ValueError when the file is no T5 v1.1 encoder, naming what it is.
    """
    management = comfy.model_management
    file = open_t5(path)
    state, _ = comfy.utils.convert_old_quants(dict(file.state_dict), "", metadata={})
    quantization = comfy.utils.detect_layer_quantization(state, "")
    options: dict = {}
    if device == "cpu":
        options["load_device"] = options["offload_device"] = torch.device("cpu")
    wanted = DTYPES[dtype]
    if wanted is not None:
        options["dtype"] = wanted
    weight_dtype = wanted if wanted is not None else state[FINAL_NORM].dtype
    load_device = options.get("load_device", management.text_encoder_device())
    if quantization is None and management.supports_cast(load_device, weight_dtype):
        # On no device, since every parameter is replaced by the file's own tensor, not copied into.
        options["initial_device"] = torch.device("meta")

    target = comfy.supported_models_base.ClipTarget(
        tokenizer_class(file), encoder_class(file, weight_dtype, quantization)
    )
    clip = compat.make_clip(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=sum(t.nelement() for t in state.values()),
        model_options=options,
        disable_dynamic=disable_dynamic,
    )
    assign_weights(clip, state if quantization else weights_to_keep(state, weight_dtype))
    clip.cond_stage_model.pixart_t5 = mark_t5(file)
    compat.remember_loader(clip.patcher, load_clip_patcher, (path, dtype, device))
    return clip


def load_clip_patcher(path: str, dtype: str, device: str, disable_dynamic: bool = False):
    """The ModelPatcher of a CLIP loaded anew, for hosts that ask for it."""
    return load_clip(path, dtype, device, disable_dynamic).patcher


def weights_to_keep(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The encoder's weights as they are to lie in memory; those already of the right type stay in the file's pages.

    fp8 is for the blocks' matrices. Norms, the attention bias by distance and the embedding of words keep the file's
    own type: the first two are small, and an error in the last goes through every block.
    """
    keep_mapped = compat.keeps_files_mapped()
    kept = {}
    for name, tensor in state.items():
        is_matrix = name.startswith("encoder.block.") and tensor.ndim == 2 and not name.endswith(RELATIVE_BIAS)
        cast = tensor.to(dtype) if is_matrix or dtype.itemsize > 1 else tensor
        kept[name] = cast.clone() if cast is tensor and not keep_mapped else cast
    return kept


def assign_weights(clip, state: dict[str, torch.Tensor]) -> None:
    """Give the encoder these tensors as its parameters, without a copy."""
    encoder = getattr(clip.cond_stage_model, NAME)
    encoder.can_assign_sd = True
    encoder.load_sd(state)
    compat.archive_dtypes(clip.cond_stage_model)


def tokenize(clip, text: str) -> tuple[dict, list]:
    """The host's tokens for a prompt, weights parsed, and the list of (token, weight) inside them.

    Raises ValueError when the CLIP is not a single T5.
    """
    tokens = clip.tokenize(text)
    if set(tokens) != {NAME}:
        found = ", ".join(sorted(tokens))
        raise ValueError(
            f"This CLIP holds {found}, not a single T5. PixArt reads captions through T5 v1.1: load it with "
            "“PixArt Load T5”, or with the host's CLIP loader set to type “pixart”."
        )
    return tokens, tokens[NAME][0]


def cut(clip, text: str, max_tokens: int) -> tuple[dict, int, str]:
    """Tokens cut to ``max_tokens`` with the end of sentence kept: (tokens, number before the cut, text lost)."""
    tokens, pairs = tokenize(clip, text)
    count = len(pairs)
    if count <= max_tokens:
        return tokens, count, ""
    kept, end = pairs[: max_tokens - 1], pairs[-1]
    lost = [token for token, _ in pairs[max_tokens - 1 : -1] if isinstance(token, int)]
    return {NAME: [[*kept, end]]}, count, getattr(clip.tokenizer, NAME).tokenizer.decode(lost)


class Counter:
    """The tokenizer of a T5 file without its encoder: counts and cuts exactly as the node does.

    path: None for T5's vocabulary as the host ships it. Textual embeddings are left out, since their files are not
    opened here. Raises ValueError when the file is no T5 v1.1 encoder.
    """

    def __init__(self, path: str | None):
        self.tokenizer = tokenizer_class(open_t5(path) if path else None)(embedding_directory=None)

    def tokenize(self, text: str) -> dict:
        return self.tokenizer.tokenize_with_weights(EMBEDDING_WORD.sub("", text))

    def count(self, text: str, max_tokens: int) -> tuple[int, str]:
        """(number of tokens, text that ``max_tokens`` leaves out)."""
        _, count, lost = cut(self, text, max_tokens)
        return count, lost


def carried(clip, prompt: str, tokens: int) -> dict:
    """What an encoded prompt tells of its making, for the conditioning's dict.

    tokens: those that T5 read. A CLIP of the host's own loaders does not say which T5 it is.
    """
    mark = getattr(getattr(clip, "cond_stage_model", None), "pixart_t5", None)
    return {PROVENANCE: provenance(prompt, tokens, mark)}


def tokens_of(conditioning: list | None, otherwise: int) -> int:
    """Tokens of a conditioning's caption, or ``otherwise`` where there is none."""
    return conditioning[0][0].shape[1] if conditioning else otherwise


def padded_empty(clip, length: int) -> torch.Tensor:
    """Features (1, length, C) of the empty caption padded to ``length`` tokens, as Σ's own scripts guide away from.

    T5 reads the end token alone, but its output at the padding is kept, and attended to like any other token.
    """
    tokenize(clip, "")
    clip.load_model()
    transformer = getattr(clip.cond_stage_model, NAME).transformer
    ids = torch.tensor([[END] + [PAD] * (length - 1)], device=clip.patcher.load_device)
    features = transformer(ids, (ids == END).long(), dtype=torch.float32)[0]
    return features.float().to(comfy.model_management.intermediate_device())
