"""Tiny comparisons, models and runs for the tests of preferences as the rl stage."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.adapters.adapting import adapt, base_of
from fourstage.data.batch import Batch, Example
from fourstage.data.store import Store, write_store
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.kto import KTO
from fourstage.objectives.preference import DirectPreference
from fourstage.objectives.preferences import preference_of
from fourstage.parallel.group import Group
from fourstage.parallel.mesh import Mesh
from fourstage.parallel.sizes import Sizes
from fourstage.randomness import numpy_generator
from fourstage.recipe.adapter import Adapter
from fourstage.stages.preference import Finishing, GivenSource
from fourstage.training.trainer import Trainer
from fourstage.training.update import Outcome
from pipeline_support import go, rows, tiny, weights
from training_support import CONFIG, tiny_model, trainer

REWARD = 39
# algorithm -> overrides of a tiny recipe, in whose run four stages are finished.
RUNS = {
    "dpo": ("rl.algorithm=dpo",),
    "kto": ("rl.algorithm=kto",),
    "online": ("rl.algorithm=dpo", "rl.online=true", "rl.group=4"),
    "raft": ("rl.algorithm=raft", "rl.distil.n=4", "rl.distil.rounds=2", "rl.distil.threshold=-2"),
}


def comparison_store(folder: Path, pairs: int = 24) -> Store:
    """Rows of two turns whose answers are trained, each ending in a token for the reward.

    A chosen last answer counts upwards, a rejected one downwards.
    """
    draw, examples = numpy_generator(0, "comparisons"), []
    for _ in range(pairs):
        first, length = int(draw.integers(0, 39)), int(draw.integers(2, 6))
        opening = [*draw.integers(0, 39, 3).tolist(), first]
        for stride in (1, -1):
            answer = [(first + stride * i) % 39 for i in range(1, length + 1)]
            tokens = [*opening, 7, 8, *answer, REWARD]
            mask = [False, False, True, True, False, False, *[True] * length, False]
            examples.append(Example(np.array(tokens), np.array(mask)))
    return write_store(folder, examples, vocab_size=40, masked=True)


def reference() -> Transformer:
    return tiny_model(1).eval().requires_grad_(False)


def learning(
    folder: Path, name: str, group: Group | None = None, adapted: bool = False, **settings: Any
) -> Trainer:
    """A trainer by a loss on comparisons; with an adapter, whose base is the reference."""
    group, policy = group or Group(), tiny_model(1)
    if adapted:
        adapt(policy, Adapter(rank=4), 0)
    if group.writes and not (folder / "store").exists():
        comparison_store(folder / "store")
    group.any(False)
    is_kto = name == "kto"
    has_reference = is_kto or preference_of(name).has_reference
    asked = base_of(policy).eval() if adapted else reference() if has_reference else None
    finishing = Finishing(asked, is_kto, CONFIG.context, group, adapted)
    source = GivenSource(Store.open(folder / "store"), 6, 0, finishing, apart=is_kto)
    objective = KTO() if is_kto else DirectPreference(preference_of(name))
    where = folder / name if group.writes else folder / "nothing-is-written-here"
    module = ActorCritic(policy)
    made = trainer(where, module, source, objective=objective, group=group, **settings)
    made.checkpoints.folder = folder / name / "checkpoints"
    return made


CASES: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo"},
    "kto": {"name": "kto"},
    "kto, sharded": {"name": "kto", "layout": {"shard": 2}},
    "dpo, an adapter, sharded": {"name": "dpo", "adapted": True, "layout": {"shard": 2}},
}


def losses(group: Group, folder: str) -> dict[str, list[float]]:
    """What the processes of the test of layouts do: loss and norm of each step of each case."""
    found = {}
    for case, told in CASES.items():
        layout = told.get("layout")
        mesh = Mesh(group, Sizes(**layout)) if layout and group.world_size > 1 else None
        found[case] = steps_of(
            learning(
                Path(folder) / case,
                told["name"],
                group,
                told.get("adapted", False),
                mesh=mesh,
                steps=5,
                micro_batch_tokens=40,
            )
        )
    return found


def steps_of(made: Trainer) -> list[float]:
    """Loss and gradient norm of each step of a training, one after the other."""
    found: list[float] = []
    judge = made.update.accepts

    def noted(outcome: Outcome) -> bool:
        found.extend([outcome.loss, outcome.gradient_norm])
        return judge(outcome)

    made.update.accepts = noted
    made.train()
    return found


def killed_runs(run: str, folder: str) -> None:
    """Each of `RUNS` twice from a finished run: undisturbed, and killed in its third step."""
    # Imported once, so that a fork costs nothing.
    import torch._dynamo

    import fourstage.stages.distilling
    import fourstage.stages.online
    import fourstage.stages.preference

    torch.set_num_threads(1)
    sources = (
        fourstage.stages.preference.GivenSource,
        fourstage.stages.online.OnlinePairs,
        fourstage.stages.distilling.BestResponses,
    )
    for name, overrides in RUNS.items():
        recipe = tiny(*overrides, "rl.checkpoint_every=2")
        for end in ("undisturbed", "killed"):
            shutil.copytree(run, Path(folder) / name / end)
        go(recipe, Path(folder) / name / "undisturbed")
        process = os.fork()
        if not process:
            for source in sources:
                _die_at(source, 3)
            go(recipe, Path(folder) / name / "killed")
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert code == -signal.SIGKILL, f"{name}: the run was not killed, but ended with {code}"
        said = go(recipe, Path(folder) / name / "killed")
        assert any("going on from step 2" in line for line in said), (name, said)
        ends = [Path(folder) / name / end for end in ("undisturbed", "killed")]
        assert weights(ends[0]) == weights(ends[1]), name
        assert _numbers(ends[0]) == _numbers(ends[1]), name
    print("the same")


def _die_at(source: type, step: int) -> None:
    draw = source.batch

    def batch(self: Any, number: int) -> Batch:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(self, number)

    source.batch = batch  # ty: ignore[invalid-assignment]


def _numbers(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows(run, "rl")]


if __name__ == "__main__":
    killed_runs(*sys.argv[1:])
