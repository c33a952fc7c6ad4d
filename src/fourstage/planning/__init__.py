"""Before spending: what a run takes in operations, memory, time and money, and by which rules."""

from fourstage.planning.facts import DataFacts
from fourstage.planning.parent import parent_folder, parent_shape
from fourstage.planning.resolve import model_config, resolve
from fourstage.planning.rules import Derived

__all__ = ["DataFacts", "Derived", "model_config", "parent_folder", "parent_shape", "resolve"]
