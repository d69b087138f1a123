"""From a file on disk to a PixArt transformer, and back: read safely, detect the config, translate names."""

from .detect import config_metadata as config_metadata
from .detect import detect_config as detect_config
from .keys import to_diffusers as to_diffusers
from .keys import to_original as to_original
from .loading import Checkpoint as Checkpoint
from .loading import load_transformer as load_transformer
from .loading import open_checkpoint as open_checkpoint
from .save import state_dict_to_save as state_dict_to_save
