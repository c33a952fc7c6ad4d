"""How a conversation is written in tokens: our own turns, or those an adopted tokenizer knows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
REWARD = "<|reward|>"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ChatFormat:
    """Each turn is `opening[role] + content + end + after`; an answer follows its opening.

    Attributes:
        name: what the format is known as.
        opening: for each role the pieces in front of its content; pieces written `<|...|>` are
            special tokens, others plain text.
        end: the special token that ends a turn; trained, and a stop token.
        after: plain text after the end token, never trained.
        specials: every special token the format is written with.
    """

    name: str
    opening: dict[str, tuple[str, ...]]
    end: str
    after: str = ""
    specials: tuple[str, ...] = field(default=())

    def template(self) -> str:
        """The Jinja template that renders the same conversations in `transformers`."""
        openings = [f"{role!r}: {''.join(self.opening[role])!r}" for role in ROLES]
        return (
            "{%- set opening = {" + ", ".join(openings) + "} -%}\n"
            "{%- for message in messages -%}\n"
            "{%- if message['role'] not in opening -%}\n"
            "{{- raise_exception('unknown role ' ~ message['role']) -}}\n"
            "{%- endif -%}\n"
            "{{- opening[message['role']] + message['content'] + "
            f"{self.end + self.after!r} -}}}}\n"
            "{%- endfor -%}\n"
            "{%- if add_generation_prompt -%}\n"
            "{{- opening['assistant'] -}}\n"
            "{%- endif -%}\n"
        )


OWN = ChatFormat(
    name="fourstage",
    opening={role: (f"<|{role}|>",) for role in ROLES},
    end="<|end|>",
    specials=(*(f"<|{role}|>" for role in ROLES), "<|end|>"),
)
CHATML = ChatFormat(
    name="chatml",
    opening={role: ("<|im_start|>", f"{role}\n") for role in ROLES},
    end="<|im_end|>",
    after="\n",
    specials=("<|im_start|>", "<|im_end|>"),
)
LLAMA3 = ChatFormat(
    name="llama3",
    opening={role: ("<|start_header_id|>", role, "<|end_header_id|>", "\n\n") for role in ROLES},
    end="<|eot_id|>",
    specials=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
FORMATS = (OWN, CHATML, LLAMA3)


def format_of(specials: Collection[str]) -> ChatFormat | None:
    """The first format that all of whose special tokens a tokenizer has."""
    return next((form for form in FORMATS if set(form.specials) <= set(specials)), None)
