"""What pretraining draws its batches from: the documents of a run, mixed as its recipe says."""

from __future__ import annotations

from fourstage.data.mixed import MixedSource, cells_by_source
from fourstage.data.mixture import Mix, shares
from fourstage.data.sources import DocumentSource
from fourstage.data.store import Store
from fourstage.recipe.schema import Recipe


def mix_of(recipe: Recipe, store: Store) -> Mix:
    """The shares of the sources over the run.

    Args:
        recipe: with the length of the run, where it is known; without it caps do not count yet.

    Raises:
        InputError: weights or caps that do not fit the sources.
    """
    mixture, stage = recipe.data.mixture, recipe.pretrain
    run_tokens = stage.steps * stage.batch_tokens if stage.steps and stage.batch_tokens else None
    return shares(
        cells_by_source(store.lengths, store.sources, store.source_names),
        mixture.weights or None,
        mixture.temperature,
        run_tokens,
        mixture.max_epochs if run_tokens else None,
        [phase.model_dump() for phase in mixture.phases],
    )


def text_source(
    recipe: Recipe, store: Store, batch_tokens: int, context: int
) -> DocumentSource | MixedSource:
    """Batches of documents: all of them once an epoch, or each source by its share.

    Args:
        recipe: resolved.
        context: most cells of a piece of a document.

    Raises:
        InputError: weights or caps that do not fit the sources.
    """
    data = recipe.data
    if data.mixture.is_natural or not store.source_names:
        return DocumentSource(store, batch_tokens, recipe.seed, context, data.overlap)
    return MixedSource(
        store,
        store.sources,
        store.source_names,
        mix_of(recipe, store),
        batch_tokens,
        recipe.seed,
        context,
        recipe.pretrain.steps or 1,
        data.overlap,
    )
