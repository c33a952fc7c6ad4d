"""The tokenizer of a run: the same vocabulary, turns and masks through all four stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from fourstage import files
from fourstage.errors import InputError
from fourstage.tokenizer.adoption import read_tokenizer
from fourstage.tokenizer.batches import BatchEncoder
from fourstage.tokenizer.bytelevel import BYTE_TO_CHARACTER, CHARACTER_TO_BYTE
from fourstage.tokenizer.chat import END_OF_TEXT, OWN, PAD, REWARD, ChatFormat, format_of

if TYPE_CHECKING:
    from fourstage.data.batch import Example

Messages = Sequence[dict[str, str]]
# What other tokenizers call the token that ends a document, the likeliest first.
_ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


class Tokenizer:
    """Text to ids and back. Special tokens are set by their ids alone, never by typed text.

    Attributes:
        start_of_text: the id in front of a document; `end_of_text` unless the vocabulary has one.
        end_of_text, user, assistant, system, end_of_turn, reward, pad: ids of special tokens.
        chat: how turns are written.
        added: special tokens that an adopted vocabulary lacked; a model of it needs rows for them.
    """

    def __init__(self, backend: Backend, named: dict[str, str] | None = None):
        """Takes a `tokenizers` backend; special tokens that it lacks are added.

        Args:
            backend: any vocabulary.
            named: contents of `bos_token`, `eos_token` and `pad_token`, where they are known.
        """
        self._backend = backend
        named = named or {}
        specials = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
        self.chat: ChatFormat = format_of(specials) or OWN
        end = self._end_of_text(specials, named)
        pad = named.get("pad_token")
        # A pad that also ends something would hide where texts end.
        if pad is None or pad in (end, self.chat.end, named.get("eos_token")):
            pad = PAD
        wanted = dict.fromkeys([end, *self.chat.specials, REWARD, pad])
        before = backend.get_vocab_size(with_added_tokens=True)
        missing = [token for token in wanted if token not in specials]
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])
        self.added = tuple(t for t in missing if self._id(t) >= before)
        # Typed special tokens become plain bytes.
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._batches = BatchEncoder(backend, self.encode)

        start = named.get("bos_token", end)
        self.end_of_text = self._id(end)
        self.start_of_text = self._id(start) if start in specials else self.end_of_text
        self.end_of_turn = self._id(self.chat.end)
        self.reward, self.pad = self._id(REWARD), self._id(pad)
        openings = {role: self.chat.opening[role] for role in self.chat.opening}
        self._opening = {role: self._pieces(parts) for role, parts in openings.items()}
        self._after = self._plain(self.chat.after)
        self.system, self.user, self.assistant = (
            self._opening[role][0] for role in ("system", "user", "assistant")
        )

    def _end_of_text(self, specials: set[str], named: dict[str, str]) -> str:
        candidates = [token for token in _ENDS_OF_TEXT if token in specials]
        eos = named.get("eos_token")
        # Chat models name the end of a turn their eos; a document ends in another token.
        if eos in specials and eos != self.chat.end and eos not in candidates:
            candidates.insert(0, eos)
        return candidates[0] if candidates else END_OF_TEXT

    def _id(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        assert found is not None, f"{token} was added when the tokenizer was made"
        return found

    def _plain(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids if text else []

    def _pieces(self, parts: Iterable[str]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += [self._id(part)] if part in self.chat.specials else self._plain(part)
        return ids

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def stop_ids(self) -> tuple[int, int]:
        """The ids that end a completion: of the text, of the turn."""
        return self.end_of_text, self.end_of_turn

    @property
    def special_ids(self) -> frozenset[int]:
        decoder = self._backend.get_added_tokens_decoder()
        return frozenset(i for i, token in decoder.items() if token.special)

    @property
    def backend(self) -> Backend:
        """The `tokenizers` object, for streaming decoders."""
        return self._backend

    def is_same_as(self, other: Tokenizer) -> bool:
        """Whether every text and every role gets the same ids from both."""
        probe = "The quick brown fox, 0123456789: ÄÖÜ 你好 \n\t<|x|>"
        roles = {
            (*each.stop_ids, each.start_of_text, each.reward, each.pad) for each in (self, other)
        }
        vocabularies = [each.backend.get_vocab(with_added_tokens=True) for each in (self, other)]
        same_ids = vocabularies[0] == vocabularies[1] and len(roles) == 1
        return same_ids and self.encode(probe) == other.encode(probe)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: nothing is put in front, and no special token comes out.

        Lone surrogates, which are no characters, become their three bytes.
        """
        try:
            return self._plain(text)
        except TypeError:  # how the backend refuses lone surrogates
            return self.encode_bytes(text.encode("utf-8", "surrogatepass"))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return self._batches.lists(texts)

    def encode_batch_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`encode_batch` as arrays: all ids in a row, uint32, and how many each text has, int64."""
        return self._batches.flat(texts)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes, UTF-8 or not; `decode_bytes` gives the same bytes back.

        Raises:
            InputError: an adopted vocabulary that has no token for one of the bytes.
        """
        ids: list[int] = []
        while data:
            try:
                return ids + self._plain(data.decode("utf-8"))
            except UnicodeDecodeError as fault:
                ids += self._plain(data[: fault.start].decode("utf-8"))
                ids += [self._byte_id(byte) for byte in data[fault.start : fault.end]]
                data = data[fault.end :]
        return ids

    def _byte_id(self, byte: int) -> int:
        for name in (BYTE_TO_CHARACTER[byte], f"<0x{byte:02X}>"):
            found = self._backend.token_to_id(name)
            if found is not None:
                return found
        raise InputError(f"the tokenizer has no token for the byte 0x{byte:02X}: give it UTF-8")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of byte-level ids; added tokens stand for their own names.

        Of other vocabularies, the bytes of each piece, with spaces for SentencePiece's marks.
        """
        added = self._backend.get_added_tokens_decoder()
        return b"".join(self._bytes_of(int(i), int(i) in added) for i in ids)

    def _bytes_of(self, token: int, is_added: bool) -> bytes:
        name = self._backend.id_to_token(token) or ""
        if is_added:
            return name.encode()
        if self.is_byte_level:
            return bytes(CHARACTER_TO_BYTE[character] for character in name)
        if len(name) == 6 and name.startswith("<0x"):
            return bytes.fromhex(name[3:5])
        return name.replace("\u2581", " ").encode()

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether tokens are written in characters that stand for bytes, as GPT-2's are."""
        return all(self._backend.token_to_id(name) is not None for name in BYTE_TO_CHARACTER)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def token_text(self, token: int) -> str:
        """One token as text, for people to look at."""
        return self.decode([token], skip_special=False)

    @property
    def after_turn(self) -> list[int]:
        """Ids between the end of a turn and the next opening; none in our own format."""
        return list(self._after)

    def turn(self, role: str, content: str) -> tuple[list[int], list[int]]:
        """Ids that open a turn, and ids of its content with its end-of-turn token.

        Raises:
            InputError: a role that the chat template does not know.
        """
        if role not in self._opening:
            roles = ", ".join(self._opening)
            raise InputError(f"unknown role {role!r} in a conversation: write one of {roles}")
        return self._opening[role], [*self.encode(content), self.end_of_turn]

    def _lead(self) -> list[int]:
        """What stands in front of a conversation: nothing, or a vocabulary's own first token."""
        return [self.start_of_text] if self.start_of_text != self.end_of_text else []

    def chat_prompt(self, messages: Messages | str) -> list[int]:
        """Ids of a conversation up to where the assistant answers; a str is one user's turn."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids = self._lead()
        for message in messages:
            opening, content = self.turn(message["role"], message["content"])
            ids += opening + content + self._after
        return ids + self._opening["assistant"]

    def chat_example(self, messages: Messages, trained: Sequence[bool] = ()) -> Example:
        """A conversation whose trained tokens are the assistant's contents and their ends.

        The mask comes from how the row is built, turn by turn, never from comparing renderings.

        Args:
            trained: of each message, whether it is trained on if it is an answer; () is all.
        """
        from fourstage.data.batch import Example

        ids = self._lead()
        mask = [False] * len(ids)
        for message, wanted in zip(messages, trained or [True] * len(messages), strict=True):
            opening, content = self.turn(message["role"], message["content"])
            ids += opening + content + self._after
            is_trained = wanted and message["role"] == "assistant"
            mask += [False] * len(opening) + [is_trained] * len(content)
            mask += [False] * len(self._after)
        return Example(np.array(ids, np.int64), np.array(mask, bool))

    def reward_row(self, messages: Messages) -> list[int]:
        """A conversation and the token at whose cell its reward is read."""
        return [*self.chat_example(messages).tokens.tolist(), self.reward]

    def reward_example(self, messages: Messages) -> Example:
        """`reward_row` with the mask of `chat_example`, for a language loss beside the score."""
        from fourstage.data.batch import Example

        example = self.chat_example(messages)
        mask = np.append(example.trained(), False)
        return Example(np.append(example.tokens, self.reward), mask)

    def document(self, text: str) -> Example:
        """A document between its start and its end."""
        from fourstage.data.batch import Example

        return Example(np.array([self.start_of_text, *self.encode(text), self.end_of_text]))

    def save(self, folder: Path) -> None:
        """Writes the files from which `transformers` makes the same ids and the same turns."""
        folder = Path(folder)
        names = {i: self._backend.id_to_token(i) or "" for i in self.special_ids}
        special = {
            "bos_token": names[self.start_of_text],
            "eos_token": names[self.end_of_text],
            "pad_token": names[self.pad],
        }
        extra = [name for _, name in sorted(names.items()) if name not in special.values()]
        special_map: dict[str, Any] = {**special, "additional_special_tokens": extra}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
            **special_map,
        }
        files.write_text(folder / "tokenizer.json", self._backend.to_str(pretty=False))
        files.write_json(folder / "tokenizer_config.json", settings)
        files.write_json(folder / "special_tokens_map.json", special_map)
        lead = names[self.start_of_text] if self._lead() else ""
        files.write_text(folder / "chat_template.jinja", lead + self.chat.template())

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Opens a folder with a tokenizer.json, or that file itself, from here or elsewhere.

        Special tokens that it lacks are added after its own and named in `added`.

        Raises:
            InputError: there is no such file, or it holds no tokenizer that keeps text.
        """
        backend, named = read_tokenizer(Path(folder))
        return cls(backend, named)
