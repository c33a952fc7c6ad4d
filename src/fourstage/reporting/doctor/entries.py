"""What was found as JSON, for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from fourstage.reporting.doctor.examining import Findings
from fourstage.reporting.doctor.lengths import quantiles
from fourstage.reporting.doctor.measuring import Measured, Tools


def entry(found: Findings, tools: Tools) -> dict[str, Any]:
    """What is told of a file, but for its bad rows."""
    told: dict[str, Any] = {
        "path": found.path,
        "format": found.survey.format,
        "encoding": found.survey.encoding,
        "compression": found.survey.compression,
        "shape": found.survey.shape,
        "rows": found.rows,
        "usable": found.usable,
        "stages": found.stages,
        "junk": found.survey.junk,
    }
    if found.survey.error:
        told["error"] = found.survey.error
    if found.measured:
        told |= _numbers(found.measured, tools)
    return told


def _numbers(measured: Measured, tools: Tools) -> dict[str, Any]:
    tokens: dict[str, Any] = quantiles(measured.tokens)
    tokens["estimated"] = tools.tokenizer is None
    if tools.context is not None:
        tokens["over_context"] = measured.over
    told: dict[str, Any] = {
        "tokens": tokens,
        "duplicates": {
            "exact": measured.exact,
            "near": measured.near,
            "near_of": measured.signed,
            "elsewhere": measured.elsewhere,
        },
        "languages": dict(measured.languages.most_common()),
        "languages_of": measured.listened,
        "pii": dict(measured.pii.most_common()),
    }
    if tools.contamination is not None:
        told["contamination"] = {"rows": measured.contaminated, "hits": measured.hits}
    return told


def as_json(
    findings: Sequence[Findings],
    tools: Tools,
    passed: Sequence[str] = (),
    runs: Sequence[dict[str, Any]] = (),
) -> Iterator[str]:
    """One JSON object in pieces, so that millions of bad rows are never one string.

    It is ASCII: lone surrogates, which rows and file names may have, are no UTF-8.
    """
    yield '{"files": ['
    for number, found in enumerate(findings):
        head = json.dumps(entry(found, tools))
        yield (", " if number else "") + head[:-1] + ', "bad": ['
        for place, bad in enumerate(found.bad):
            yield (", " if place else "") + json.dumps(bad._asdict())
        yield "]}"
    yield f'], "passed": {json.dumps(list(passed))}'
    yield f', "runs": {json.dumps(list(runs))}}}' if runs else "}"
