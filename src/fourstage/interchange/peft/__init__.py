"""Adapters as PEFT lays them out: adapter_config.json and adapter_model.safetensors in a folder."""

from fourstage.interchange.peft.reading import base_folder, is_adapter, merged, scores
from fourstage.interchange.peft.writing import lacks_the_layers, save_adapter

__all__ = ["base_folder", "is_adapter", "lacks_the_layers", "merged", "save_adapter", "scores"]
