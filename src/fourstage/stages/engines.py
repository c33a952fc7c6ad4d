"""Other engines for the rollouts, from `rl.engine`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourstage.generation.actors import RayActors
from fourstage.generation.elsewhere import Elsewhere
from fourstage.generation.servers import OPENAI, SGLANG, Server
from fourstage.generation.vllm_engine import Vllm
from fourstage.interchange import save_model
from fourstage.model.transformer import Transformer
from fourstage.posting import Poster
from fourstage.stages.context import StageContext

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

_DIALECTS = {"openai": OPENAI, "sglang": SGLANG}
# Where weights that a server reads stand in the folder of the stage.
_FOLDER = "rollout-weights"


class WeightFolders:
    """Writes a model to a new folder each time, and drops those before the last."""

    def __init__(self, folder: Path, tokenizer: Tokenizer):
        self.folder, self.tokenizer = folder, tokenizer

    def __call__(self, model: Transformer) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        before = sorted(int(each.name) for each in self.folder.iterdir() if each.name.isdigit())
        path = self.folder / str(before[-1] + 1 if before else 0)
        save_model(path, model, self.tokenizer, card="# Weights on their way to a server")
        # The last one stays: a server may still be reading it.
        for old in before[:-1]:
            shutil.rmtree(self.folder / str(old), ignore_errors=True)
        return path.resolve()


def engine_of(section: Any, write: Callable[[Transformer], Path]) -> Elsewhere | None:
    """The engine of `rl.engine`; None draws with the one here.

    Args:
        section: `rl.engine`, or None.
        write: writes a model to a folder that the engine can read.
    """
    if section is None:
        return None
    if section.kind == "vllm":
        return Vllm(write, section.memory)
    if section.kind == "ray":
        return RayActors(section.actors, section.gpus, section.url)
    update = Poster(section.update, section.seconds) if section.update is not None else None
    return Server(
        _DIALECTS[section.kind],
        Poster(section.url, section.seconds),
        section.model,
        section.requests,
        write,
        update,
        section.token_env,
    )


def check(section: Any, say: Callable[[str], None]) -> None:
    """Tries the engine of `rl.engine`, before hours are spent on what comes before it.

    Raises:
        InputError, MachineError: it is not there, or does not answer as it should.
    """
    engine = engine_of(section, lambda model: Path())
    if engine is not None:
        engine.start(say)
        engine.close()


def started(context: StageContext) -> Elsewhere | None:
    """The engine of a stage, ready; on the process that writes, which alone asks it.

    Raises:
        InputError, MachineError: it is not there, or does not answer as it should.
    """
    if not context.group.writes:
        return None
    write = WeightFolders(context.folder / _FOLDER, context.tokenizer)
    engine = engine_of(context.section.engine, write)
    if engine is not None:
        engine.start(context.say)
    return engine
