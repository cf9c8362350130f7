"""BM25: what indexing costs in memory and time, and what our face on bm25s costs in speed.

    python benchmarks/bm25.py                                  # 100,000 passages: questions a second, ours against
    raw bm25s python benchmarks/bm25.py --passages 1000000 --index-only  # the memory target: within 8 GB

Passages are synthetic: 100 words each, drawn by Zipf's law from 200,000 words, streamed from a seed. Both sides
answer the same questions in one process from the same index with the same threads, taking turns; their scores are
compared in the same run. `raw` is given the questions' terms ready-made; `raw_text` analyses them by
`bm25s.tokenize`; ours always starts from text. One JSON line is written to --out.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from retrievers.analysis import Analyzer
from retrievers.bm25 import BM25Retriever
from retrievers.types import Passage

WORDS = 200_000
BLOCK = 1_000


class SyntheticCorpus:
    """Passages by seed; the same ones each time it is gone through, never all in memory."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        self.count, self.seed = count, seed
        syllables = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
        base = len(syllables)
        self.words = np.array([_word(number + base, syllables) for number in range(WORDS)], dtype=object)
        weights = 1.0 / (np.arange(WORDS) + 2.7) ** 1.05
        self.cumulative = np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Passage]:
        for start in range(0, self.count, BLOCK):
            drawn = self._draw(np.random.default_rng([self.seed, start]), BLOCK, 100)
            for offset in range(min(BLOCK, self.count - start)):
                yield Passage(str(start + offset), " ".join(self.words[drawn[offset]]), f"Title {start + offset}")

    def _draw(self, rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
        return np.minimum(np.searchsorted(self.cumulative, rng.random((rows, width))), WORDS - 1)

    def questions(self, count: int) -> list[str]:
        """Questions of eight words; the commonest two hundred words are left out, as stopwords would be."""
        drawn = self._draw(np.random.default_rng([self.seed, 10**9]), count, 16)
        return [" ".join(self.words[[word for word in row if word >= 200][:8]]) for row in drawn]


def _word(number: int, syllables: list[str]) -> str:
    word = ""
    while number:
        number, digit = divmod(number, len(syllables))
        word += syllables[digit]
    return word


def peak_gb() -> float:
    """Peak resident memory of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def index(corpus: SyntheticCorpus, folder: Path) -> dict[str, Any]:
    """Build the index; seconds, peak memory, and the estimate given before."""
    said: list[str] = []
    before = peak_gb()
    start = time.perf_counter()
    BM25Retriever.build(corpus, folder, log=said.append)
    return {
        "index_seconds": round(time.perf_counter() - start, 1),
        "peak_gb_before": round(before, 2),
        "peak_gb": round(peak_gb(), 2),
        "estimate": said[-1],
        "disk_gb": round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9, 2),
    }


def compare(folder: Path, questions: list[str], *, k: int, repeats: int, threads: int) -> dict[str, Any]:
    """Questions a second of raw bm25s and of ours, taking turns; medians and spreads, and whether scores are equal."""
    import bm25s
    import Stemmer

    ours = BM25Retriever.open(folder, threads=threads)
    raw = bm25s.BM25.load(folder / "index", mmap=False, show_progress=False)
    terms = [Analyzer().terms(question) for question in questions]
    stemmer = Stemmer.Stemmer("porter")

    def raw_ready() -> Any:
        return raw.retrieve(terms, k=k, show_progress=False, n_threads=threads)

    def raw_text() -> Any:
        tokens = bm25s.tokenize(questions, stemmer=stemmer, show_progress=False)
        return raw.retrieve(tokens, k=k, show_progress=False, n_threads=threads)

    sides: dict[str, Callable[[], Any]] = {
        "raw": raw_ready,
        "ours_search": lambda: ours.search(questions, k),
        "raw_text": raw_text,
        "ours_rank": lambda: ours.rank(questions, k),
        "ours_retrieve": lambda: ours.retrieve(questions, k),
    }
    equal = all(
        np.array_equal(scores, np.sort(theirs[theirs > 0])[::-1])
        for (_, scores), theirs in zip(ours.search(questions, k), raw_ready().scores, strict=True)
    )
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    speed = {name: sorted(len(questions) / value for value in values) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["raw"], seconds["ours_search"], strict=True)]
    return {
        "threads": threads,
        "questions": len(questions),
        "k": k,
        "scores_equal": equal,
        "per_second": {name: round(statistics.median(values)) for name, values in speed.items()},
        "spread": {name: [round(values[0]), round(values[-1])] for name, values in speed.items()},
        "ours_search_over_raw": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=2_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--index-only", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the index here, or use the one that is here")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    corpus = SyntheticCorpus(args.passages)
    result: dict[str, Any] = {"benchmark": "bm25", "passages": args.passages, "python": platform.python_version()}
    for package in ("bm25s", "numba", "numpy"):
        result[package] = __import__(package).__version__
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.exists() else ""
    result["cpu"] = next((line.split(":")[1].strip() for line in flags.splitlines() if "model name" in line), "")
    result["cpu_flags"] = [flag for flag in ("avx2", "avx512f", "amx_tile") if flag in flags]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "index"
        if not folder.exists():
            result.update(index(corpus, folder))
        if not args.index_only:
            questions = corpus.questions(args.questions)
            result["search"] = [
                compare(folder, questions, k=args.k, repeats=args.repeats, threads=threads) for threads in args.threads
            ]
    print(json.dumps(result, indent=1))
    if args.out:
        with args.out.open("a") as stream:
            stream.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
