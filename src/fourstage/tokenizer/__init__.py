"""Text to token ids and back, and conversations to rows whose trained tokens are known."""

from fourstage.tokenizer.chat import ChatFormat
from fourstage.tokenizer.tokenizer import Tokenizer
from fourstage.tokenizer.training import train_tokenizer

__all__ = ["ChatFormat", "Tokenizer", "train_tokenizer"]
