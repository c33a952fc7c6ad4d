"""Tools, calls of them and their results as text, in the tags that Hermes and Qwen read."""

from __future__ import annotations

from typing import Any

from fourstage.data.shapes.values import json_text, unpacked


def tools_text(tools: Any) -> str:
    """The tools that a conversation may call; empty where there are none."""
    if unpacked(tools) in (None, "", [], {}):
        return ""
    return f"<tools>\n{json_text(tools)}\n</tools>"


def calls_text(calls: Any) -> str:
    """One call or several, each in tags of its own."""
    found = unpacked(calls)
    listed = found if isinstance(found, list) else [found]
    return "\n".join(f"<tool_call>\n{_call(call)}\n</tool_call>" for call in listed)


def _call(call: Any) -> str:
    """A call by name and arguments, whichever way round it is written."""
    call = unpacked(call)
    if not isinstance(call, dict):
        return json_text(call)
    function = call.get("function", call)
    if not isinstance(function, dict) or "name" not in function:
        return json_text(call)
    found = (function[key] for key in ("arguments", "parameters", "input") if key in function)
    return json_text({"name": function["name"], "arguments": unpacked(next(found, {}))})


def is_calls(value: Any) -> bool:
    """Whether a value is a list of calls, or the text of one."""
    found = unpacked(value)
    return (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(call, dict) and {"name", "arguments"} <= set(call) for call in found)
    )


def result_text(result: str) -> str:
    """What a tool answered; it is the user's to say."""
    return f"<tool_response>\n{result}\n</tool_response>"


def thought_text(thought: str) -> str:
    """Reasoning that stands in front of an answer."""
    return f"<think>\n{thought.strip()}\n</think>\n\n" if thought.strip() else ""
