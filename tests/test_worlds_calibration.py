"""The calibration world promises exact probabilities, exact checkers and known ceilings."""

from __future__ import annotations

import collections
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.errors import InputError
from fourstage.worlds import calibration as world
from fourstage.worlds import words
from fourstage.worlds.answers import INSTRUCTIONS, form_of, write_answer
from fourstage.worlds.manners import CLOSINGS, FILLERS, OPENINGS, undress
from fourstage.worlds.script import Reader, Unreadable, Writer

DOCUMENTS = 3000


@pytest.fixture(scope="module")
def documents():
    return [world.document(0, "validation", index) for index in range(DOCUMENTS)]


@pytest.fixture(scope="module")
def comparisons():
    return [world.comparison(0, "validation", index) for index in range(3000)]


def test_every_document_is_read_back_to_the_same_bits_and_spans(documents):
    for document in documents:
        read = world.read(document.text)
        assert read.kind == document.kind
        assert read.bits == pytest.approx(document.bits, abs=1e-9)
        assert read.determined == document.determined


def test_no_word_of_a_list_begins_another_so_a_choice_fits_only_one_option():
    lists = [
        words.NAMES,
        words.ANIMALS,
        words.COLOURS,
        words.THINGS,
        words.PLACES,
        words.TRAITS,
        words.DEEDS,
    ]
    lists += [[words.plural(thing) for thing in words.THINGS]]
    lists += [[*OPENINGS, *CLOSINGS, *FILLERS]]
    for options in lists:
        assert len(set(options)) == len(options)
        pairs = itertools.permutations(options, 2)
        assert not [(a, b) for a, b in pairs if b.startswith(a)]


def test_the_probabilities_of_all_texts_of_a_small_script_sum_to_one():
    def program(script):
        first = script.choose(["a", "b"], weights=[1.0, 3.0])
        script.say(" ")
        second = script.choose([word for word in "abc" if word != first])
        script.say(" ")
        script.recall(first + second)

    texts = set()
    for seed in range(300):
        writer = Writer(random.Random(seed))
        program(writer)
        texts.add(writer.text)
    total = 0.0
    for text in texts:
        reader = Reader(text)
        program(reader)
        reader.finish()
        total += 2**-reader.bits
    assert len(texts) == 4
    assert total == pytest.approx(1.0)


def test_frequencies_follow_the_stated_probabilities(documents):
    counts = collections.Counter(document.kind for document in documents)
    from fourstage.worlds.documents import KINDS

    total = sum(share for _, _, share in KINDS.values())
    for kind, (_, _, share) in KINDS.items():
        expected = share / total
        spread = 4 * math.sqrt(expected * (1 - expected) / DOCUMENTS)
        assert abs(counts[kind] / DOCUMENTS - expected) < spread


@pytest.mark.parametrize("damage", ["cut", "word", "tail", "empty"])
def test_a_text_the_world_cannot_write_is_refused(documents, damage):
    text = next(document.text for document in documents if " the " in document.text)
    damaged = {
        "cut": text[: len(text) // 2],
        "word": text.replace(" the ", " thee ", 1),
        "tail": text + " More.",
        "empty": "",
    }[damage]
    with pytest.raises(InputError, match="not a document of the calibration world"):
        world.log2_probability(damaged)


def test_entropy_and_overlap_are_as_published(documents):
    mean = sum(document.bits for document in documents) / len(documents)
    assert 30 <= mean <= 60
    training = {world.document(0, "train", index).text for index in range(20000)}
    shared = sum(document.text in training for document in documents) / len(documents)
    assert shared <= 0.05


def test_determined_spans_hold_words_that_stand_above_or_follow_from_it(documents):
    for document in documents:
        if document.kind in ("sums", "counting"):
            continue
        for start, end in document.determined:
            for word in document.text[start:end].rstrip(".").split():
                assert word in document.text[:start]


@given(
    st.integers(0, 10**6), st.sampled_from(sorted(INSTRUCTIONS)), st.sampled_from(["full", "short"])
)
@settings(max_examples=200, deadline=None)
def test_right_answers_are_right_and_spoilt_ones_wrong(seed, kind, form):
    rng = random.Random(seed)
    instruction = INSTRUCTIONS[kind]
    facts = instruction.ask(rng)
    assert form_of(kind, facts, write_answer(kind, facts, form, rng)) == form
    spoilt = instruction.spoil(rng, facts)
    assert form_of(kind, facts, write_answer(kind, spoilt, form, rng)) is None


def test_demonstrations_are_right_and_of_mixed_style():
    rows = [world.demonstration(0, index) for index in range(2000)]
    assert all(world.success(task, response) for task, response in rows)
    golds = [world.gold(task, response) for task, response in rows]
    assert 0.6 < sum(golds) / len(golds) < 0.8
    assert all(0 <= gold <= 1 for gold in golds)
    assert {task.kind for task, _ in rows} == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) >= 6


def test_an_instructions_split_is_decided_by_its_text():
    prompts = {
        split: {world.instruction(0, split, index).prompt for index in range(3000)}
        for split in world.SPLITS
    }
    for one, other in itertools.combinations(prompts, 2):
        assert not prompts[one] & prompts[other]
    for split, found in prompts.items():
        assert all(world.split_of(prompt) == split for prompt in found)


def test_everything_is_a_function_of_seed_split_and_index():
    assert world.document(3, "train", 7) == world.document(3, "train", 7)
    assert world.document(3, "train", 7) != world.document(4, "train", 7)
    assert world.demonstration(3, 7) == world.demonstration(3, 7)
    assert world.comparison(3, "train", 7) == world.comparison(3, "train", 7)
    assert world.comparison(3, "train", 7) != world.comparison(3, "validation", 7)


def test_gold_pays_for_being_right_complete_kind_and_brief_and_charges_repeats():
    task = world.instruction(0, "train", 0)
    core = write_answer(task.kind, task.facts, "full", random.Random(0))
    short = write_answer(task.kind, task.facts, "short", random.Random(0))
    best = f"{OPENINGS[0]} {core} {CLOSINGS[0]}"
    assert world.gold(task, best) == world.best_gold(task) == pytest.approx(1.0)
    worse = [
        core,
        f"{OPENINGS[0]} {short} {CLOSINGS[0]}",
        f"{OPENINGS[0]} {OPENINGS[1]} {core} {CLOSINGS[0]}",
        f"{OPENINGS[0]} {FILLERS[0]} {core} {CLOSINGS[0]}",
        f"{OPENINGS[0]} {core} {CLOSINGS[0]} {CLOSINGS[0]}",
        f"{OPENINGS[0]} {core} {core} {CLOSINGS[0]}",
        "",
    ]
    assert all(world.gold(task, response) < 1 for response in worse)
    wrong = INSTRUCTIONS[task.kind].spoil(random.Random(0), task.facts)
    spoilt = write_answer(task.kind, wrong, "full", random.Random(0))
    dressed = f"{OPENINGS[0]} {spoilt} {CLOSINGS[0]}"
    assert world.gold(task, best) - world.gold(task, dressed) >= 0.3
    assert world.gold(task, core) > world.gold(task, dressed)


def test_undressing_never_eats_the_answer():
    for index in range(500):
        task, response = world.demonstration(1, index)
        dressing = undress(response)
        parts = [*dressing.before, dressing.core, *dressing.after]
        assert " ".join(parts) == response
        assert form_of(task.kind, task.facts, dressing.core)


def test_preferences_have_their_published_ceiling(comparisons):
    ceiling = [
        world.preference(
            max(pair.gold_chosen, pair.gold_rejected), min(pair.gold_chosen, pair.gold_rejected)
        )
        for pair in comparisons
    ]
    assert 0.75 < sum(ceiling) / len(ceiling) < 0.9
    drawn = sum(pair.gold_chosen > pair.gold_rejected for pair in comparisons)
    tied = sum(pair.gold_chosen == pair.gold_rejected for pair in comparisons)
    observed = (drawn + tied / 2) / len(comparisons)
    assert observed == pytest.approx(sum(ceiling) / len(ceiling), abs=0.03)


def test_no_surface_feature_alone_orders_the_pairs(comparisons):
    phrases = [*OPENINGS, *CLOSINGS, *FILLERS]
    features = {
        "length": len,
        "words": lambda text: len(text.split()),
        "sentences": lambda text: text.count("."),
        "an opening": lambda text: any(phrase in text for phrase in OPENINGS),
        "a closing": lambda text: any(phrase in text for phrase in CLOSINGS),
        "filler": lambda text: any(phrase in text for phrase in FILLERS),
        **{phrase: (lambda text, phrase=phrase: phrase in text) for phrase in phrases},
    }
    half = len(comparisons) // 2
    table = collections.Counter()
    for pair in comparisons[:half]:
        table[pair.chosen.split()[0]] += 1
        table[pair.rejected.split()[0]] -= 1
    features["first word"] = lambda text: table[text.split()[0]]
    for name, feature in features.items():
        right = 0.0
        for pair in comparisons[half:]:
            one, other = feature(pair.chosen), feature(pair.rejected)
            right += 0.5 if one == other else float(one > other)
        share = right / (len(comparisons) - half)
        assert max(share, 1 - share) <= 0.65, name


def test_a_script_that_fits_two_options_is_unreadable():
    with pytest.raises(Unreadable):
        Reader("abc").choose(["a", "ab"])
