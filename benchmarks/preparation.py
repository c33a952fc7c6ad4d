"""The whole of preparation beside datatrove's local executor: same pile, steps and workers.

    python benchmarks/pile.py PILE --megabytes 100
    python benchmarks/preparation.py PILE --peer PYTHON [--workers 2] [--out FOLDER]

PYTHON is one that has `datatrove[processing,io]`, spacy and nltk's data, in an environment of its
own. Both read JSON lines, repair Unicode, filter with the rules of Gopher (quality, repetition),
C4 and FineWeb, find near duplicates with MinHash over word 5-grams, encode with the same
tokenizer.json and write token shards. They take turns; each is one whole process with its workers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

STEPS = ("unicode", "control", "gopher", "repetition", "c4", "fineweb")

_PEER = """
import sys
from datatrove.executor import LocalPipelineExecutor as Local
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster
from datatrove.pipeline.dedup import MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.formatters import FTFYFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers.jsonl import JsonlWriter

pile, out, tokenizer, workers, files = sys.argv[1:4] + [int(a) for a in sys.argv[4:6]]
minhash = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)


def go(name, *steps, tasks=files):
    Local(list(steps), tasks=tasks, workers=workers, logging_dir=f"{out}/logs/{name}").run()


if __name__ == "__main__":
    go(
        "clean", JsonlReader(pile), FTFYFormatter(),
        GopherRepetitionFilter(), GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False), FineWebQualityFilter(),
        JsonlWriter(f"{out}/clean", compression=None),
    )
    sign = MinhashDedupSignature(f"{out}/signatures", config=minhash)
    go("sign", JsonlReader(f"{out}/clean"), sign)
    go(
        "buckets", MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=minhash),
        tasks=minhash.num_buckets,
    )
    cluster = MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=minhash)
    go("cluster", cluster, tasks=1)
    go(
        "tokens", JsonlReader(f"{out}/clean"), MinhashDedupFilter(f"{out}/remove"),
        DocumentTokenizer(
            f"{out}/tokens", tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>",
            shuffle_documents=False,
        ),
    )
"""


def ours(pile: Path, out: Path, tokenizer: Path, workers: int) -> list[str]:
    return [
        *(sys.executable, "-m", "fourstage", "prepare", "own-text", "--only", "pretrain"),
        *("--out", str(out), f"data.pretrain={pile}", f"tokenizer.path={tokenizer}"),
        *(f"data.clean={','.join(STEPS)}", f"data.workers={workers}"),
    ]


def peer(python: str, pile: Path, out: Path, tokenizer: Path, workers: int) -> list[str]:
    out.mkdir(parents=True)
    script = out / "peer.py"
    script.write_text(_PEER)
    files = len(list(pile.glob("*.jsonl")))
    told = [str(pile), str(out), str(tokenizer), str(workers), str(files)]
    return [python, str(script), *told]


def timed(command: list[str], log: Path) -> float:
    start = time.perf_counter()
    with open(log, "w") as file:
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT)
    return time.perf_counter() - start


def train_tokenizer(pile: Path, folder: Path) -> Path:
    """A vocabulary of 8,192 for both, from the first file of the pile."""
    from fourstage.tokenizer import train_tokenizer as train

    with open(sorted(pile.glob("*.jsonl"))[0], encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(5000), file, strict=False)]
    train(texts, 8192, exact=False).save(folder)
    return folder / "tokenizer.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pile", type=Path)
    parser.add_argument("--peer", help="a Python that has datatrove", default=None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmark-preparation"))
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    pile, tokenizer = given.pile.resolve(), train_tokenizer(given.pile, given.out / "tokenizer")
    size = sum(path.stat().st_size for path in pile.glob("*.jsonl")) / 1e6
    seconds: dict[str, list[float]] = {"fourstage": [], "datatrove": []}
    for turn in range(given.repeats):
        out = given.out.resolve() / f"ours{turn}"
        command = ours(pile, out, tokenizer.resolve(), given.workers)
        seconds["fourstage"].append(timed(command, given.out / "ours.log"))
        report = json.loads((out / "data" / "report.json").read_text())["corpus"]
        if given.peer:
            out = given.out.resolve() / f"peer{turn}"
            command = peer(given.peer, pile, out, tokenizer.resolve(), given.workers)
            seconds["datatrove"].append(timed(command, given.out / "peer.log"))
    kept = report["train"] + report["validation"]
    print(f"{size:.0f} MB, {report['read']:,} documents read, {kept:,} kept by fourstage")
    for name, times in seconds.items():
        if times:
            print(f"{name:10} {min(times):7.1f} s   {size / min(times):6.2f} MB/s")
    if given.peer:
        ratio = min(seconds["datatrove"]) / min(seconds["fourstage"])
        print(f"fourstage is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
