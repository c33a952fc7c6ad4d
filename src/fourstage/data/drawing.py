"""What pretraining draws its batches from: the documents of a run, mixed as its recipe says."""

from __future__ import annotations

from fourstage.data.mixed import MixedSource, cells_by_source
from fourstage.data.mixture import Mix, shares, with_share
from fourstage.data.sources import DocumentSource
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.recipe.data import REPLAY
from fourstage.recipe.ramp import StepCells
from fourstage.recipe.schema import Recipe


def mix_of(recipe: Recipe, store: Store) -> Mix:
    """The shares of the sources over the run.

    Args:
        recipe: with the length of the run, where it is known; without it caps do not count yet.

    Raises:
        InputError: weights or caps that do not fit the sources.
    """
    mixture, stage, replay = recipe.data.mixture, recipe.pretrain, recipe.data.replay
    known = stage.steps and stage.batch_tokens
    run_tokens = stage.drawn_tokens() if known else None
    cells = cells_by_source(store.lengths, store.sources, store.source_names)
    earlier = cells.pop(REPLAY) if replay else 0
    if run_tokens and replay:
        run_tokens = round(run_tokens * (1 - replay.share))
    mix = shares(
        cells,
        mixture.weights or None,
        mixture.temperature,
        run_tokens,
        mixture.max_epochs if run_tokens else None,
        [phase.model_dump() for phase in mixture.phases],
    )
    return with_share(mix, REPLAY, earlier, replay.share) if replay else mix


def text_source(
    recipe: Recipe, store: Store, batch_tokens: int | StepCells, context: int
) -> DocumentSource | MixedSource:
    """Batches of documents: all of them once an epoch, or each source by its share.

    Args:
        recipe: resolved.
        batch_tokens: cells of a step, or of each (`recipe.pretrain.step_cells()`).
        context: most cells of a piece of a document.

    Raises:
        InputError: weights or caps that do not fit the sources; steps below the context while the
            batch grows.
    """
    steps = StepCells.of(batch_tokens)
    if steps.least < min(context, steps.batch_tokens):
        raise InputError(
            f"pretrain.batch_ramp.from_tokens={steps.least} is less than model.context={context}, "
            f"so texts would be cut shorter: write {context} or more"
        )
    data = recipe.data
    if not data.replay and (data.mixture.is_natural or not store.source_names):
        return DocumentSource(store, steps, recipe.seed, context, data.overlap)
    return MixedSource(
        store,
        store.sources,
        store.source_names,
        mix_of(recipe, store),
        steps,
        recipe.seed,
        context,
        recipe.pretrain.steps or 1,
        data.overlap,
    )
