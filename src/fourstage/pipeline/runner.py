"""Works on the stages of a run: data, stages in order, lineage, report."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fourstage import kernels, precision
from fourstage.data.prepared import PreparedData
from fourstage.devices import memory_of
from fourstage.environments import building as environments
from fourstage.errors import FourstageError, Interrupted
from fourstage.files import explained, read_json, write_json, write_text
from fourstage.interchange import exportable
from fourstage.parallel.group import Group
from fourstage.parallel.mesh import Mesh
from fourstage.parallel.sizes import check_adapter, check_optimiser, check_sizes, sizes_for
from fourstage.pipeline import raw
from fourstage.pipeline.beginning import Say, announce, check_outside, require_ancestors
from fourstage.pipeline.datasets import Datasets
from fourstage.pipeline.decisions import RESULTS, Decision, decide, set_aside
from fourstage.pipeline.lineage import (
    Lineage,
    model_hash,
    outside_models,
    parents_of,
    section_hash,
    versions,
)
from fourstage.pipeline.planned import keep_plan
from fourstage.planning import Derived, model_config
from fourstage.planning.layouts import fits_one_device
from fourstage.recipe import STAGES, Recipe, load
from fourstage.rewards.building import own_files
from fourstage.stages import engines
from fourstage.stages.context import StageContext
from fourstage.stages.judging import check_rewards
from fourstage.training.clock import StageClock
from fourstage.training.fitting import Measured

# stage -> another one whose data it reads: references of the reward, instructions to measure on.
_READS_TOO = {"reward": "sft", "rl": "sft"}


@dataclass
class Runner:
    """One invocation of a run.

    Attributes:
        sections: stage -> its section as it was resolved for it.
    """

    recipe: Recipe
    folder: Path
    group: Group
    say: Say
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lineage = Lineage(self.folder)
        self.hashes: raw.Hashes = {}
        self.datasets: Datasets
        self.mesh: Mesh
        self.derived: list[Derived] = []

    def go(self, stages: list[str], redo: bool) -> None:
        """Works on `stages`, in order."""
        precision.use(precision.resolve(self.recipe.compute.precision, self.group.device))
        chain = [stage for stage in STAGES if stage in self._with_ancestors(stages)]
        self._open_data(stages, chain, redo)
        decisions = decide(self.folder, self.recipe, chain, self.lineage, self.inputs)
        require_ancestors(self.folder, stages, self.recipe, decisions)
        announce(stages, self.recipe, decisions, self.say)
        # Every process has read what stood there before the first one changes it.
        self.group.any(False)
        if self.group.writes:
            self._make_room({stage: decisions[stage] for stage in stages})
            self.lineage.content["raw"] = self.lineage.content.get("raw", {}) | self.hashes
            self.lineage.write()
        working = [stage for stage in stages if decisions[stage].action != "keep"]
        for stage in working:
            self._prepare_early(stage)
        self._check_rewards(working)
        self._plan({stage: decisions[stage] for stage in working})
        self._prepare_for_others(working, chain)
        if working:
            self._lay_out(working)
        for stage in stages:
            if stage in working:
                self._work(stage)
            else:
                self._keep(stage)
        if not working and self.group.writes:
            self._write_recipe(self.resolved(stages[-1]))
        self._close(chain)

    def prepare(self, stages: list[str], redo: bool) -> None:
        """Prepares the tokenizer and the data of `stages`, in order."""
        self._open_data(stages, stages, redo)
        for stage in stages:
            if self.datasets.can_prepare(stage):
                self._by_one(partial(self.datasets.prepare, stage))
            else:
                self.say(
                    f"data for {stage}: made when it runs, since the chat model has a part in it"
                )
        self.say(f"what was kept and dropped: {self.folder / 'data' / 'report.json'}")

    def _open_data(self, stages: list[str], chain: list[str], redo: bool) -> None:
        """Checks models and raw data from outside, and sees that there is a tokenizer.

        Raises:
            InputError: a folder cannot play its role, raw data changed under the run, or the model
                could not be saved.
        """
        check_outside(stages, self.recipe)
        self.hashes = raw.hashes_of(self.recipe, chain)
        if not redo:
            old = self._recipe_before()
            raw.check_unchanged(self.lineage.content.get("raw", {}), self.hashes, old, self.recipe)
        self._keep_threads()
        self.datasets = Datasets(
            self.recipe, self.folder, self.lineage, self.hashes, self.group.device, self.say
        )
        exportable(model_config(self.datasets.resolved()[0]))
        self._by_one(self.datasets.prepare_tokenizer)

    def _with_ancestors(self, stages: list[str]) -> set[str]:
        found = set(stages)
        for stage in reversed(STAGES):
            if stage in found:
                found |= set(parents_of(stage, self.recipe).values())
        return found

    def _recipe_before(self) -> Recipe | None:
        path = self.folder / "recipe.yaml"
        return load(str(path)) if path.exists() else None

    def _keep_threads(self) -> None:
        """Goes on with the threads the run began with: sums in other parts round differently."""
        known, group = self.lineage.content, self.group
        same = known.get("processes", group.world_size) == group.world_size
        if same and known.get("threads") and known.get("device") == group.device.type == "cpu":
            torch.set_num_threads(int(known["threads"]))

    def _make_room(self, decisions: dict[str, Decision]) -> None:
        """Sets old folders aside, the last stage first: cut off half-way, the rest is found out
        again from what is gone."""
        for stage in reversed(STAGES):
            decision = decisions.get(stage)
            if decision is None or decision.action not in ("repeat", "start"):
                continue
            if decision.action == "repeat":
                self.say(f"{stage}: its old folder is now {set_aside(self.folder, stage)}")
            self.lineage.forget(stage)

    def resolved(self, stage: str) -> Recipe:
        """The recipe with its open fields filled from what is known when `stage` begins."""
        recipe, self.derived = self.datasets.resolved()
        self.sections.setdefault(stage, recipe.to_dict()[stage])
        return recipe

    def inputs(self, stage: str) -> dict[str, Any] | None:
        """Everything that decides what comes out of a stage, by content."""
        if not self.datasets.is_known(stage):
            return None
        parents = {
            role: self.lineage[parent].get("model", "")
            for role, parent in parents_of(stage, self.recipe).items()
        }
        outside = outside_models(stage, self.recipe)
        parents |= {role: model_hash(folder) for role, folder in outside.items()}
        found = {
            "section": section_hash(self.datasets.resolved()[0], stage),
            "seed": self.recipe.seed,
            "tokenizer": self.datasets.tokenizer_hash(),
            "data": self.datasets.key(stage),
            "parents": parents,
        }
        if stage != "rl":
            return found
        own = {
            "rewards": own_files(self.recipe.rl.rewards),
            "environment": environments.own_files(self.recipe.rl.environment),
        }
        return found | {name: files for name, files in own.items() if files}

    def _keep(self, stage: str) -> None:
        self.resolved(stage)
        if self.group.writes and self.lineage[stage].get("status") != "finished":
            self._finished(stage, read_json(self.folder / stage / RESULTS))

    def _prepare_early(self, stage: str) -> None:
        """Prepares what needs no model before anything is trained: a fault in the last stage's data
        is told in the first minute."""
        if self.datasets.can_prepare(stage):
            with self._stage_clock(stage):
                self._by_one(partial(self.datasets.prepare, stage))

    def _check_rewards(self, working: list[str]) -> None:
        """Tries the rewards of the last stage, its environment and its engine, before hours are
        spent on those before it.

        Raises:
            InputError: one cannot work, or cannot judge some rows.
        """
        if self.group.writes and "rl" in working[1:]:
            section = self.datasets.resolved()[0].rl
            if section.asks_others:
                tasks = PreparedData.open(self.folder).tasks("rl", "train")
                check_rewards(section, tasks, self.say)
            engines.check(section.engine, self.say)
        self.group.any(False)

    def _plan(self, working: dict[str, Decision]) -> None:
        """Writes down what is expected before it is spent; the others wait for the clock's sake."""
        if self.group.writes:
            keep_plan(self.folder, self.datasets, working, self.group.world_size, self.say)
        self.group.any(False)

    def _prepare_for_others(self, working: list[str], chain: list[str]) -> None:
        """Prepares again what stages at work read of kept ones, where data/ has lost it."""
        read = {_READS_TOO.get(stage) for stage in working}
        if "rl" in working and self.recipe.rl.pretraining_mix:
            read.add("pretrain")
        for stage in chain:
            if stage in read and stage not in working:
                self._by_one(partial(self.datasets.prepare, stage))

    def _lay_out(self, working: list[str]) -> None:
        """Groups the processes, in one way for all stages.

        Raises:
            InputError: the sizes of `parallel` do not give the number of processes, or do not
                divide the model.
        """
        recipe, group = self.datasets.resolved()[0], self.group
        facts = self.datasets.facts()
        config = model_config(recipe, facts.vocab_size)
        device, memory = group.device.type, memory_of(group.device)
        fits = fits_one_device(recipe, config, memory, working, device)
        sizes, rule = sizes_for(recipe.parallel, group.world_size, not group.any(not fits))
        check_sizes(sizes, config)
        for stage in working:
            check_optimiser(sizes, stage, recipe.stage(stage).optimiser or "adamw")
            check_adapter(sizes, stage, recipe.stage(stage).adapter is not None)
        if group.world_size > 1:
            self.say(f"layout: {sizes}" + (f" ({rule})" if rule else ""))
        self.mesh = Mesh(group, sizes)

    def _work(self, stage: str) -> None:
        """Prepares what is still to be prepared, trains and measures, and records all of it."""
        with self._stage_clock(stage) as clock:
            if not self.datasets.can_prepare(stage):
                chat_model = self._parents(stage)["from"]
                # As in a process that begins here, whatever the stage before computed with.
                kernels.use(self.recipe.compute.kernels == "auto")
                self._by_one(partial(self.datasets.prepare, stage, chat_model))
            recipe = self.resolved(stage)
            self._describe(recipe)
            if self.group.writes:
                self._begin(stage)
            context = StageContext(
                recipe=recipe,
                run=self.folder,
                stage=stage,
                folder=self.folder / stage,
                device=self.group.device,
                tokenizer=self.datasets.tokenizer(),
                parents=self._parents(stage),
                clock=clock,
                say=self.say,
                group=self.group,
                mesh=self.mesh,
                measured=self._measured(stage),
            )
            results = importlib.import_module(f"fourstage.stages.{stage}").run(context)
            if self.group.writes:
                self._finished(stage, results)
                write_json(self.folder / stage / RESULTS, results)
        self._read_again()
        self.say(f"{stage}: done in {results['seconds']:.0f} s, {results['tokens']:,} tokens")

    @contextlib.contextmanager
    def _stage_clock(self, stage: str) -> Generator[StageClock]:
        """Counts what is done within as the stage's time; an end before its time is recorded."""
        folder = self.folder / stage
        if self.group.writes:
            if not self.lineage[stage]:
                self.lineage.begin(stage, {}, status="preparing")
            with explained(folder):
                folder.mkdir(parents=True, exist_ok=True)
        clock = StageClock(folder)
        try:
            yield clock
        except (FourstageError, KeyboardInterrupt) as error:
            if self.group.writes and folder.is_dir():
                clock.write(now=True)
                stopped = isinstance(error, FourstageError) and not isinstance(error, Interrupted)
                more = {"status": "stopped" if stopped else "interrupted"}
                if self.lineage[stage].get("inputs"):
                    self.lineage.note(stage, seconds=round(clock.seconds, 3), **more)
            raise
        if self.group.writes:
            clock.write(now=True)

    def _by_one(self, prepare: Callable[[], None]) -> None:
        """One process prepares; the others wait, then read what it left."""
        if self.group.writes:
            prepare()
        self._read_again()

    def _read_again(self) -> None:
        """Waits for the process that writes; the others then see what it wrote."""
        self.group.any(False)
        if not self.group.writes:
            self.lineage = self.datasets.lineage = Lineage(self.folder)

    def _begin(self, stage: str) -> None:
        inputs = self.inputs(stage)
        assert inputs is not None, "a prepared stage knows what it is made from"
        self.lineage.begin(
            stage,
            inputs,
            seed=self.recipe.seed,
            device=self.group.device.type,
            processes=self.group.world_size,
            layout=str(self.mesh.sizes),
            versions=versions(),
            facts=self.datasets.noted_facts(stage),
        )

    def _measured(self, stage: str) -> Measured:
        """What was chosen by measuring when the stage began, the same on every process."""
        self._read_again()
        keep = partial(self._keep_measured, stage) if self.group.writes else lambda found: None
        return Measured(self.lineage[stage].get("measured"), keep)

    def _keep_measured(self, stage: str, found: dict[str, Any]) -> None:
        self.lineage.note(stage, measured=found)

    def _parents(self, stage: str) -> dict[str, Path]:
        inside = parents_of(stage, self.recipe)
        folders = {role: self.folder / parent / "model" for role, parent in inside.items()}
        return folders | outside_models(stage, self.recipe)

    def _finished(self, stage: str, results: dict[str, Any]) -> None:
        self.lineage.note(
            stage,
            status="finished",
            seconds=results["seconds"],
            model=model_hash(self.folder / stage / "model"),
        )

    def _describe(self, recipe: Recipe) -> None:
        """Writes the recipe as it is resolved so far; tells new derived values with their rule."""
        if not self.group.writes:
            return
        told = {item["key"] for item in self.lineage.content.get("derived", [])}
        for item in self.derived:
            if item.key not in told:
                self.say(f"  {item}")
        self._write_recipe(recipe)
        device, processes = self.group.device.type, self.group.world_size
        self.lineage.describe(recipe, device, processes, self.derived)

    def _write_recipe(self, recipe: Recipe) -> None:
        """Writes the recipe, each stage's section as it was resolved for that stage."""
        from fourstage.recipe import recipe_from

        resolved = recipe_from(recipe.to_dict() | self.sections)
        write_text(self.folder / "recipe.yaml", resolved.to_yaml())

    def _close(self, chain: list[str]) -> None:
        if not self.group.writes:
            return
        from fourstage.pipeline.summary import summarise
        from fourstage.reporting import build_report

        summarise(self.folder, build_report(self.folder), chain, self.say)
