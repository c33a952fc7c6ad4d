"""Stage 3: a reward model from comparisons or judged answers, read at `<|reward|>`.

Starts from the chat model's body with a new scalar head; reads data/reward. Measured by how it
orders held-out pairs, against the ceiling that the noise of the preferences sets, and by what its
scores rest on. With `reward.ensemble` it is several, of which all but the first train in members/.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fourstage.data.batch import Batch
from fourstage.data.comparing import (
    Elements,
    Scales,
    label_scales,
    reward_batch,
    reward_source,
)
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.evaluation.agreement import agreement
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.judgements import held_out_judgements
from fourstage.evaluation.likelihood import (
    Opinion,
    Turn,
    WithLikelihood,
    known_to_the_chat_model,
)
from fourstage.evaluation.preferences import pair_accuracy
from fourstage.evaluation.scoring import Scorer, device_of
from fourstage.interchange import save_model
from fourstage.interchange.rewards import (
    LIKELIHOOD,
    LIKELIHOOD_NUMBERS,
    STEPWISE,
    ensemble_config,
    heads_config,
    member_folder,
    write_heads,
)
from fourstage.model.ensemble import Ensemble
from fourstage.model.heads import Heads, give_heads
from fourstage.model.transformer import Transformer
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.judged import Judged, StepJudged
from fourstage.objectives.objective import Objective
from fourstage.parallel.group import Group
from fourstage.precision import autocast
from fourstage.randomness import seed_for
from fourstage.recipe.rewarding import RewardKind
from fourstage.stages.adapting import narrow, widen
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import held_out_pairs
from fourstage.stages.judges import (
    Judge,
    Offsets,
    References,
    WithOffsets,
    chat_models_opinion,
    fold,
    judge_of,
    scale,
    settle,
)
from fourstage.stages.models import aside, results, save, starting_model
from fourstage.training.contracts import Source
from fourstage.training.counts import TrainResult
from fourstage.training.guards import GuardFailed, documents_do_not_leak
from fourstage.training.metrics import add_metrics
from fourstage.worlds.calibration import PREFERENCE_SCALE

# Held-out elements that are watched as it trains, and cells of them that are scored at a time.
_WATCHED, _CELLS = 200, 8192


@dataclass
class Member:
    """A trained scorer, its heads where it has several, and what its training took."""

    model: Transformer
    heads: Heads | None
    numbers: Numbers
    trained: TrainResult


def run(context: StageContext) -> dict[str, Any]:
    """Trains the reward model; the content of results.json."""
    section = context.section
    if not (context.data / "reward" / "train").is_dir():
        raise InputError(
            "data.preferences holds single judgements (label), and a reward model needs "
            "comparisons: give prompt + chosen + rejected, or write reward.objective=binary"
        )
    chat_model = starting_model(context)
    references = References(context, chat_model)
    opinion = _opinion_alone(context, chat_model) if section.likelihood else None
    members: list[Member] = []
    for number in range(section.ensemble):
        with aside(context.device, *(member.model for member in members)):
            members.append(train_member(context, chat_model, references, number, opinion))
    model, numbers = members[0].model, Numbers().update(members[0].numbers)
    if opinion is not None:
        for name in LIKELIHOOD_NUMBERS:
            numbers.add(f"likelihood_alone_{name}", getattr(opinion, name))
    scorer: Transformer | Ensemble = model
    if len(members) > 1:
        scorer = Ensemble([member.model for member in members], section.caution)
        numbers.update(context.measure("ensemble_scale", lambda: scale(scorer, references)))
        settle(scorer, numbers)
    judge: Scorer = scorer
    if section.likelihood:
        judge = _with_likelihood(context, scorer, chat_model, references, numbers)
    log_odds = _log_odds(section, numbers)
    numbers.update(
        context.measure("pairs", lambda: _pairs(context, judge, scorer, chat_model, log_odds))
    )
    _save(context, members, judge, numbers)
    return results(context, numbers, _together([member.trained for member in members]))


def _with_likelihood(
    context: StageContext,
    scorer: Transformer | Ensemble,
    chat_model: Transformer,
    references: References,
    numbers: Numbers,
) -> WithLikelihood:
    """The scorer beside the chat model's own opinion of an answer, with a zero and unit anew."""
    fitted = context.measure("likelihood", lambda: _opinion(context, scorer, chat_model))
    # A process that did not measure scores nothing.
    told = {name: fitted.metrics.get(f"likelihood_{name}", 0.0) for name in LIKELIHOOD_NUMBERS}
    judge = WithLikelihood(scorer, chat_model, Turn.of(context.tokenizer), Opinion(**told))
    numbers.update(fitted)
    numbers.update(context.measure("likelihood_scale", lambda: scale(judge, references)))
    settle(judge, numbers)
    return judge


def _opinion_alone(context: StageContext, chat_model: Transformer) -> Opinion:
    """What a scorer is trained beside."""
    return Opinion(**context.decided("opinion", lambda: _fitted(context, None, chat_model)))


def _opinion(context: StageContext, scorer: Scorer, chat_model: Transformer) -> Numbers:
    numbers = Numbers()
    for name, value in _fitted(context, scorer, chat_model).items():
        numbers.add(f"likelihood_{name}", value)
    return numbers


def _fitted(
    context: StageContext, scorer: Scorer | None, chat_model: Transformer
) -> dict[str, float]:
    """The fields of the chat model's opinion beside a scorer, or by itself."""
    store = Store.open(context.data / "reward" / "train")
    return asdict(chat_models_opinion(scorer, chat_model, context.tokenizer, store))


def train_member(
    context: StageContext,
    chat_model: Transformer,
    references: References,
    number: int,
    opinion: Opinion | None = None,
) -> Member:
    """Member `number` of the ensemble; the first is all there is, unless more are asked for.

    With the chat model's `opinion` it learns what to add to that.
    """
    section, seed = context.section, context.seed
    if number:
        context, seed = of_member(context, number), seed_for(seed, "member", number)
    names = tuple(section.heads)
    model = chat_model.with_scalar_head(seed)
    if names:
        give_heads(model, names, seed)
    narrow(context, model)
    data = context.data / "reward"
    store, held_out = Store.open(data / "train"), Store.open(data / "validation")
    head = chat_model.output_weight if section.language_coefficient else None
    module = judge_of(model, head, section.ties, store)
    if section.adapter is not None and isinstance(module, Judge) and head is not None:
        module.head.requires_grad_(False)
    scales = label_scales(store, names) if section.objective == "regression" else {}
    objective = objective_of(section)
    source: Source = reward_source(store, section.pairs_per_step, seed, names, scales)
    alone, waiting = None, [chat_model]
    if opinion is not None and opinion.weight:
        turn, waiting = Turn.of(context.tokenizer), []
        source = WithOffsets(source, Offsets(chat_model, turn, opinion, context.group))
        # Only the process that writes watches.
        alone = Offsets(chat_model, turn, opinion, Group(device=context.device))
    with aside(context.device, *waiting):
        trained = context.train(
            module,
            objective,
            source,
            guards=[ends_in(context.tokenizer.reward), documents_do_not_leak()],
            validate=lambda: watch(module, objective, held_out, names, scales, alone),
            seed=seed,
        )
    numbers = context.measure(
        "judgements", lambda: held_out_judgements(model, held_out, section.objective, names)
    )
    heads = None
    if names:
        units = context.measure("head_scales", lambda: scale(model, references, names))
        heads = fold(model, dict(section.heads), units)
    numbers.update(context.measure("scale", lambda: scale(model, references)))
    settle(model, numbers)
    return Member(model, heads, numbers, trained)


def of_member(context: StageContext, number: int) -> StageContext:
    """The stage as member `number` sees it, with a folder of its own."""
    return dataclasses.replace(context, folder=context.folder / "members" / str(number))


def objective_of(section: RewardKind) -> Objective:
    """What `reward.objective` minimises."""
    if section.objective == "process":
        return StepJudged()
    if section.objective != "bradley_terry":
        return Judged(section.objective)
    return BradleyTerry(
        section.centring,
        section.language_coefficient,
        margin=section.margin,
        smoothing=section.label_smoothing,
        ties=section.ties,
    )


def ends_in(token: int):
    """A guard: each row is read at `token`, which stands nowhere else in it."""

    def guard(module: nn.Module, objective: Objective, batch: Batch) -> None:
        marks = (batch.tokens == token).nonzero().squeeze(1)
        if not torch.equal(marks, batch.last_cells):
            raise GuardFailed(
                "first batch: a row does not end in <|reward|>, the cell where its score is read"
            )

    return guard


@torch.no_grad()
def watch(
    module: Any,
    objective: Objective,
    store: Store,
    heads: Sequence[str] = (),
    scales: Scales | None = None,
    offsets: Offsets | None = None,
) -> dict[str, float]:
    """Loss and accuracy on some held-out elements, by their labels."""
    elements = Elements(store)
    chosen = list(range(min(_WATCHED, len(elements))))
    batch = reward_batch(elements, chosen, heads, scales)
    if offsets is not None:
        batch = offsets(batch)
    device, sums = device_of(module), {}
    for micro in batch.split(_CELLS):
        with autocast(device):
            _, metrics = objective.sums(module, micro.to(device))
        add_metrics(sums, metrics)
    read = {name: float(total) / (float(count) or 1.0) for name, (total, count) in sums.items()}
    loss = read.get("preference_loss", read.get("squared_error"))
    found = {"validation_loss": loss} if loss is not None else {}
    if "accuracy" in read:
        found["validation_pair_accuracy"] = read["accuracy"]
    return found


def _log_odds(section: RewardKind, numbers: Numbers) -> float | None:
    """The log-odds of a unit of raw score; None of scores that are none."""
    if section.likelihood:
        return numbers.metrics.get("likelihood_log_odds", 1.0)
    return 1.0 if section.objective == "bradley_terry" and not section.heads else None


def _pairs(
    context: StageContext,
    judge: Scorer,
    scorer: Transformer | Ensemble,
    chat_model: Transformer,
    log_odds: float | None,
) -> Numbers:
    """What held-out comparisons tell of the judge and its parts; nothing where there are none."""
    recipe = context.recipe
    pairs = held_out_pairs(context, recipe.evaluation.pairs)
    if not pairs:
        return Numbers()
    drawn_by_gold = recipe.data.origin("preferences") == "world"
    numbers = pair_accuracy(
        judge,
        context.tokenizer,
        pairs,
        PREFERENCE_SCALE if drawn_by_gold else None,
        context.seed,
        log_odds=log_odds,
    )
    if isinstance(scorer, Ensemble):
        numbers.update(agreement(scorer, context.tokenizer, pairs))
    if all("gold_chosen" in pair for pair in pairs):
        numbers.update(known_to_the_chat_model(chat_model, context.tokenizer, pairs))
    return numbers


def _save(
    context: StageContext,
    members: Sequence[Member],
    judge: Scorer,
    numbers: Numbers,
) -> None:
    """Writes the model folder: the first member, its heads, and all else inside it."""
    first, others = members[0], members[1:]
    told: dict[str, Any] = heads_config(first.heads) if first.heads else {}
    if context.section.objective == "process":
        told |= STEPWISE
    scorer = judge.scorer if isinstance(judge, WithLikelihood) else judge
    if isinstance(scorer, Ensemble):
        told |= ensemble_config(scorer)
    if isinstance(judge, WithLikelihood):
        told |= {
            "reward_likelihood": {
                **{name: getattr(judge.opinion, name) for name in LIKELIHOOD_NUMBERS},
                "mean": judge.reward_mean,
                "std": judge.reward_std,
            }
        }

    if context.group.writes:
        for number, member in enumerate(others, 1):
            # Its adapter by itself, too, and the member whole below.
            widen(of_member(context, number), member.model)

    def beside(folder: Path) -> None:
        _write_heads(folder, first)
        if isinstance(judge, WithLikelihood):
            card = f"# {context.recipe.name}: the chat model beside the reward model"
            save_model(folder / LIKELIHOOD, judge.language, context.tokenizer, card=card)
        for number, member in enumerate(others, 1):
            save_model(
                member_folder(folder, number),
                member.model,
                context.tokenizer,
                card=f"# {context.recipe.name}: member {number} of the reward model",
                extra_config=heads_config(member.heads) if member.heads else None,
                beside=lambda inside, member=member: _write_heads(inside, member),
            )

    save(context, first.model, numbers, extra_config=told, beside=beside)


def _write_heads(folder: Path, member: Member) -> None:
    if member.heads is not None:
        write_heads(folder, member.heads)


def _together(trained: Sequence[TrainResult]) -> TrainResult:
    """What the training of all members took."""
    return dataclasses.replace(
        trained[0],
        tokens=sum(each.tokens for each in trained),
        seconds=sum(each.seconds for each in trained),
        flops=sum(each.flops for each in trained),
        skipped=sum(each.skipped for each in trained),
    )
