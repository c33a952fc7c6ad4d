"""Raw text to an aligned chat model in four stages.

Importing the package loads nothing heavy: torch is imported by the parts that compute.
"""

__version__ = "0.1.0"
