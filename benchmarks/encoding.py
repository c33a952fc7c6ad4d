"""Megabytes a second of batch encoding beside `tokenizers` and `tiktoken`, in the same run.

    RAYON_NUM_THREADS=2 python benchmarks/encoding.py [FILE ...] [--vocab 16000] [--repeats 3]

All three encode with the same vocabulary, trained here on the same text, and take turns; the best
of the repeats counts, so that another process takes from all alike. Ours and tokenizers' ids are
compared. A FILE is text, a document a paragraph; without any, text is made: tales of the embedded
world, the Python files of this repository, and rows of Chinese words.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import tiktoken
from turns import best_seconds

from fourstage.data import fromworld
from fourstage.reporting.tables import print_table
from fourstage.tokenizer import Tokenizer, train_tokenizer
from fourstage.tokenizer.batches import usual_threads
from fourstage.tokenizer.fast import fast_encoder

_NOUNS = "山水 江河 春风 明月 青草 故人 先生 孩子 老师 学校 城市 机器 数据 语言 文字 历史".split()
_VERBS = "看见 听说 知道 喜欢 离开 带来 研究 学习 写下 记得 等待 想起 走过 发现".split()
_ENDS = "。，；！？"


def chinese(size: int) -> list[str]:
    """Documents of about 500 characters, `size` bytes together."""
    dice, documents = random.Random(0), []
    while 3 * sum(map(len, documents)) < size:
        words = (dice.choice(kind) for _ in range(60) for kind in (_NOUNS, _VERBS, _NOUNS, _ENDS))
        documents.append("".join(words))
    return documents


def made_texts(size: int) -> dict[str, list[str]]:
    """Documents by kind, about `size` bytes of each."""
    tales = list(fromworld.documents(0, size // 300))
    here = Path(__file__).resolve().parent.parent
    files = sorted(here.glob("src/**/*.py")) + sorted(here.glob("tests/*.py"))
    code = [file.read_text(encoding="utf-8") for file in files]
    return {"tales": tales, "Python": code, "Chinese": chinese(size)}


def runs_of(
    tokenizer: Tokenizer, encoding: tiktoken.Encoding, texts: Sequence[str]
) -> dict[str, Callable[[], object]]:
    """The encoders to compare, each of all texts."""
    texts, threads = list(texts), usual_threads()
    backend = tokenizer.backend
    return {
        "tokenizers": lambda: backend.encode_batch_fast(texts, add_special_tokens=False),
        "tiktoken": lambda: encoding.encode_ordinary_batch(texts, num_threads=threads),
        "lists": lambda: tokenizer.encode_batch(texts),
        "arrays": lambda: tokenizer.encode_batch_flat(texts),
    }


def equal_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> bool:
    """Whether both ways of ours give the ids of `tokenizers`."""
    encodings = tokenizer.backend.encode_batch_fast(list(texts), add_special_tokens=False)
    wanted = [encoding.ids for encoding in encodings]
    ids, lengths = tokenizer.encode_batch_flat(texts)
    flat = list(chain.from_iterable(wanted))
    return (
        tokenizer.encode_batch(texts) == wanted
        and ids.tolist() == flat
        and lengths.tolist() == list(map(len, wanted))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--vocab", type=int, default=16000)
    parser.add_argument("--split", default="gpt4", choices=["gpt2", "gpt4", "chinese"])
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    kinds = {
        file.name: file.read_text(encoding="utf-8").split("\n\n") for file in arguments.files
    } or made_texts(int(arguments.megabytes * 1e6))
    every = chain.from_iterable(kinds.values())
    tokenizer = train_tokenizer(every, arguments.vocab, split=arguments.split, exact=False)
    # The encoder is proven and made once a process, on the first two million characters.
    fast = fast_encoder(tokenizer.backend)
    if fast is None:
        raise SystemExit("tiktoken has no proven encoder for this vocabulary")
    tokenizer.encode_batch(["warm up "] * 300_000)

    rows, all_equal = [], True
    for kind, texts in kinds.items():
        megabytes = sum(len(text.encode("utf-8")) for text in texts) / 1e6
        best = best_seconds(runs_of(tokenizer, fast.encoding, texts), arguments.repeats)
        speeds = {name: megabytes / seconds for name, seconds in best.items()}
        ratio = speeds["lists"] / speeds["tokenizers"]
        equal = equal_ids(tokenizer, texts)
        all_equal &= equal
        rows.append([kind, megabytes, *speeds.values(), ratio, "equal" if equal else "differ"])
    header = ["text", "MB", "tokenizers", "tiktoken", "lists", "arrays", "ratio", "ids"]
    title = f"MB/s, {tokenizer.vocab_size:,} tokens, {usual_threads()} threads"
    print_table(header, rows, title)
    if not all_equal:
        raise SystemExit("the ids differ from those of tokenizers")


if __name__ == "__main__":
    main()
