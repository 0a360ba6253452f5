"""The folder that command lines and damages are tried in."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import fuzzing
import pytest
import tiny

from lm import tokenizer
from lm.bench import compare
from lm.data.kingdom import facts

CONFIG = """
import sys
sys.path.insert(0, {helpers!r})
import tiny
experiment = tiny.experiment({corpus!r})
"""


@pytest.fixture(scope="module")
def place(tiny_run, corpus, tmp_path_factory, request) -> Iterator[Path]:
    """The current folder: the tiny run, a config of it, and a file of every kind a verb reads, each also damaged."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_run.path, place / "runs" / "tiny")
    config = CONFIG.format(helpers=str(Path(tiny.__file__).parent), corpus=str(corpus))
    pairs = "king queen man woman\nking queen old fish\n"
    rows = [
        f"{n},{d},{6 * n * d},{1.7 + 400 / n**0.34 + 400 / d**0.28:.6f}"
        for n in (1e6, 4e6, 2e7)
        for d in (1e8, 1e9, 4e9)
    ]
    files = {
        "text.txt": tiny.text(300), "points.csv": "\n".join(["params,tokens,flops,loss", *rows]) + "\n",
        "suite.txt": f": family\n{pairs}: other\n{pairs}", "groups.txt": ": a\nking queen\n: b\nfish river\n",
        "facts.jsonl": "".join(json.dumps(dataclasses.asdict(fact) | {"seen": True}) + "\n" for fact in facts()[:3]),
        "similarity.txt": "king queen 8.5\nfish river 6\nold mat 1\n", "demo.py": config, "configs/demo.py": config,
        "list.py": f"{config}\nexperiments = [experiment]\ndel experiment\n", "broken.py": "experiment = undefined\n",
        "exits.py": "import sys\nsys.exit(3)\n", "records.jsonl": json.dumps({"text": tiny.text(50)}) + "\n",
        "design.json": '{"rows": []}', "prediction.json": '{"predictions": [], "sha256": "0"}',
    }  # fmt: skip
    (place / "configs").mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    tokenizer.save(tokenizer.load(tiny_run.path / "tokenizer.json"), place / "tokenizer.json")
    (place / "folder").mkdir()
    os.mkfifo(place / "pipe")
    (place / "broken-link").symlink_to("nowhere")
    (place / "unreadable").write_text("secret")
    (place / "unreadable").chmod(0)
    rng = random.Random(request.config.getoption("--fuzz-seed"))
    copies = max(1, round(6 * request.config.getoption("--fuzz-cases")))
    for name in (*files, "tokenizer.json"):
        if "/" not in name:
            content = (place / name).read_bytes()
            for number in range(copies):
                suffix = Path(name).suffix
                (place / f"damaged-{Path(name).stem}{number}{suffix}").write_bytes(fuzzing.damaged(content, rng))
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        # Where PyTorch is installed its compiler takes a minute; peers have tests of their own.
        patch.setattr("lm.bench.training.training_peers", lambda *_: [])
        patch.setattr("lm.bench.decoding.decoding_peers", lambda *_: [])
        for module in ("training", "decoding"):  # nor is it the clock that is tried
            patch.setattr(f"lm.bench.{module}.compare", lambda some, *_, **rest: compare(some, 0.05, 2, **rest))
        yield place
