r"""Encoder and decoder, decoder alone, LSTM with attention and without: which translates best for the same effort?

python experiments/translate.py --data FOLDER                            25 minutes on two CPU cores
python experiments/translate.py --data FOLDER --steps 50 --seeds 0 --sentences 50 --longer      a minute, to see it work

FOLDER (or LM_DATA) holds translation/fra-eng.train.tsv.xz and fra-eng.valid.tsv, English and French sentences of the
Tatoeba project; without it nothing is done. Only pairs of at most 10 words and marks a side are taken. The held-out
file shares no source with the other. All models have about as many parameters, read the same pairs in the same order
and share one vocabulary of byte pairs; the runs of a seed follow each other. `--longer 3000` also trains the encoder
and decoder again, for so many steps, with the first seed.

Answers are greedy unless a beam is named; BLEU and chrF are sacrebleu's, with every reference that the held-out file
has for a source. Everything is kept in --runs as it comes: the same command goes on, or draws again. Expected: for the
same pairs the decoder alone is ahead, for the same time the encoder-decoder; either LSTM is behind; the longer run
answers at BLEU 40.
"""

import argparse
import dataclasses
import functools
import json
import lzma
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from luong import LuongConfig
from translate_report import draw, searches, table

import lm
from lm.figures import save
from lm.files import whole
from lm.model import Batch, Inputs, Taps

Pair = tuple[str, str]
FIGURE = Path(__file__).parent / "figures" / "translate.svg"
LONGEST = 10
"""Words and punctuation marks on either side of a pair."""
CONTEXT, ROOM = 16, 28
"""Tokens a side in training (1% of the pairs are longer and left out), and in what is measured, where all fit."""
SEARCHED = 256
"""Held-out sources at most that are translated by beams."""
SENTENCE = "The cat is sleeping on the table."


def encoder_decoder(width: int) -> lm.ModelConfig:
    """Two blocks that read and two that write."""
    shape = dict(layers=2, width=width, context=CONTEXT)
    return lm.ModelConfig(**shape, tied=True, encoder=lm.EncoderConfig(**shape))


def decoder(mask: str) -> lm.ModelConfig:
    """Four blocks that read source and target as one text."""
    return lm.ModelConfig(layers=4, width=88, feedforward=400, context=2 * CONTEXT, tied=True, mask=mask)


def recurrent(attention: bool) -> LuongConfig:
    """Two layers of LSTM cells that read and two that write."""
    shape = dict(layers=2, width=72, context=CONTEXT)
    return LuongConfig(**shape, attention=attention, encoder=lm.RecurrentConfig(**shape))


LARGE = "large encoder-decoder"
MODELS = {
    "encoder-decoder": encoder_decoder(64),
    "decoder, source both ways": decoder("prefix"),
    "decoder, source causal": decoder("causal"),
    "LSTM with attention": recurrent(attention=True),
    "LSTM, one vector": recurrent(attention=False),
    "encoder-decoder, smoothed": encoder_decoder(64),
    LARGE: encoder_decoder(128),
}
SMALL = [name for name in MODELS if name != LARGE]
SMOOTHING = {"encoder-decoder, smoothed": 0.1}
RATES = {LARGE: 8e-3}
"""Peak rates of what is no matrix in a block, where it is not the 0.024 of the others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LM_DATA", "")), help="holds translation/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--longer", type=int, nargs="*", default=[3000], help="steps of longer runs, one seed")
    parser.add_argument("--equal-time", action="store_true", help="also train for the encoder-decoder's seconds")
    parser.add_argument("--sentences", type=int, default=1000, help="held-out sources to translate, at most")
    parser.add_argument("--runs", type=Path, default=Path("runs/translate"), help="where runs and results are kept")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    folder = options.data / "translation"
    if not (folder / "fra-eng.valid.tsv").is_file():
        print(f"{folder}: no fra-eng.valid.tsv; give --data, the folder that holds translation/. Nothing was done.")
        return
    held = short_pairs(folder, options.runs)
    results = []
    for name in SMALL:
        results += outcomes(name, options.seeds, options.steps, held, options)
    if options.equal_time:
        seconds = {result["model"]: result["seconds"] for result in results if result["seed"] == options.seeds[0]}
        for name in SMALL[1:5]:
            steps = round(options.steps * seconds["encoder-decoder"] / seconds[name])
            results += outcomes(name, options.seeds[:1], steps, held, options)
    for steps in options.longer:
        results += outcomes(LARGE, options.seeds[:1], steps, held, options)
    print(table(results))
    print(searches(results))
    best = results[-1] if options.longer else results[0]
    save(draw(results, best, look(roomy(lm.load(options.runs / best["run"])), SENTENCE)), options.figure)
    print(options.figure)


# --- the pairs -------------------------------------------------------------------------------------------------------
def short_pairs(folder: Path, runs: Path) -> list[Pair]:
    """Write the short pairs of both files to runs/pairs; returns the held-out ones."""
    (runs / "pairs").mkdir(parents=True, exist_ok=True)
    for name, opened in (("train.tsv.xz", lzma.open), ("valid.tsv", open)):
        with opened(folder / f"fra-eng.{name}", "rt", encoding="utf-8") as file:
            pairs = [tuple(line.rstrip("\n").split("\t")) for line in file]
        pairs = [pair for pair in pairs if all(length(text) <= LONGEST for text in pair)]
        text = "source\ttarget\n" + "".join(f"{source}\t{target}\n" for source, target in pairs)
        with whole(runs / "pairs" / name.removesuffix(".xz")) as file:
            file.write(text)
    return pairs


def length(text: str) -> int:
    """Words and punctuation marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


# --- one run ---------------------------------------------------------------------------------------------------------
def experiment(name: str, seed: int, steps: int, runs: Path) -> lm.Experiment:
    """A model on the short pairs; everything but the model, the steps and the smoothing is the same."""
    pairs = {"examples": str(runs / "pairs/train.tsv"), "validation_corpus": str(runs / "pairs/valid.tsv")}
    return lm.Experiment(
        name=f"{re.sub('[^a-z]+', '-', name.lower())}-{steps}-{seed}",
        model=MODELS[name],
        data=lm.DataConfig(**pairs, tokenizer="bpe", vocab=4096),
        optimizer=lm.OptimizerConfig(
            name="muon",
            learning_rate=RATES.get(name, 24e-3),
            matrix_learning_rate=0.03,
            momentum=0.9,
            beta2=0.95,
            newton_schulz=3,
        ),
        schedule=lm.ScheduleConfig(name="wsd", decay="60%"),
        train=lm.TrainConfig(
            steps=steps,
            batch=64,
            seed=seed,
            label_smoothing=SMOOTHING.get(name, 0.0),
            eval_every=max(1, steps // 8),
            checkpoint_every="20%",
        ),
    )


def outcomes(name: str, seeds: list[int], steps: int, held: list[Pair], options: argparse.Namespace) -> list[dict]:
    """Train with each seed side by side, translate and score; what results.jsonl has of it is not done again."""
    wanted, kept = [experiment(name, seed, steps, options.runs) for seed in seeds], options.runs / "results.jsonl"
    lines = map(json.loads, kept.read_text().splitlines()) if kept.is_file() else ()
    known = {line["run"]: line for line in lines if line["sentences"] == options.sentences}
    if not known.keys() >= {e.name for e in wanted}:
        runs = lm.train_pack(wanted, folder=options.runs)
        if not all(run.finished for run in runs):
            raise SystemExit(75)  # stopped and saved: the same command goes on
    for e in wanted:
        if e.name not in known:
            known[e.name] = outcome(name, options.runs / e.name, held, options.sentences)
            with kept.open("a") as file:
                file.write(json.dumps(known[e.name], ensure_ascii=False) + "\n")
    return [known[e.name] for e in wanted]


def outcome(name: str, path: Path, held: list[Pair], sentences: int) -> dict:
    """What a run is, how it learnt, and what it does."""
    run, m = lm.Run(path), roomy(lm.load(path))
    records, seed = run.metrics(), run.experiment.train.seed
    curve = [record for record in records if "val_loss" in record and record["step"] > 0]
    result = {
        "run": path.name, "model": name, "seed": seed, "steps": m.step, "sentences": sentences,
        "parameters": run.record["params_total"], "seconds": records[-1]["seconds"],
        "curve": [[record["step"], record["seconds"], record["val_loss"]] for record in curve],
    }  # fmt: skip
    result |= forced(m, held) | free(m, held, sentences)
    result["behind_mistakes"] = after_mistakes(result["right"], result["own"])
    if name == LARGE or (name == "encoder-decoder" and seed == 0):
        result |= search(m, *sources_of(held, min(SEARCHED, sentences)))
    return result


def roomy(m: lm.Trained) -> lm.Trained:
    """The same parameters with room for every held-out pair; positions are rotary or none, so none is untrained."""
    beside = m.experiment.model.encoder is not None
    changes = {"model.context": ROOM, "model.encoder.context": ROOM} if beside else {"model.context": 2 * ROOM}
    return dataclasses.replace(m, experiment=lm.replace(m.experiment, changes))


# --- what a model does with the references, and by itself ------------------------------------------------------------
@functools.partial(jax.jit, static_argnames=("model",))
def predict(model: lm.LanguageModel, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Nats of each target, [B, T], and whether it was the likeliest token."""
    tokens_BT, targets_BT = batch.tokens_BU[:, :-1], batch.tokens_BU[:, 1:]
    logits_BTV, _ = model.apply(params, batch.inputs(model, tokens_BT, None))
    logprobs_BTV = jax.nn.log_softmax(logits_BTV)
    nats_BT = -jnp.take_along_axis(logprobs_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return nats_BT, logits_BTV.argmax(axis=-1) == targets_BT


def forced(m: lm.Trained, held: list[Pair]) -> dict:
    """What each reference costs when its own tokens are read: nats, and the share of tokens that were the likeliest.

    right: of each pair, whether each token of its target was the likeliest; the last is the end of text.
    """
    columns = lm.data.held_out(lm.data.prepare(m.experiment.data).validation, m.experiment.data, m.model.config, 10**9)
    assert len(columns["tokens_BU"]) == len(held), "some held-out pairs do not fit"
    nats, right = [], []
    for start in range(0, len(held), 128):
        some = {name: column[start : start + 128] for name, column in columns.items()}
        nats_BT, right_BT = jax.device_get(predict(m.model, m.params, Batch(**some)))
        for row, (first, last) in enumerate(zip(some["start_B"], some["count_B"], strict=True)):
            nats.append(nats_BT[row, first:last])
            right.append(right_BT[row, first:last].tolist())
    return {"nats": float(np.concatenate(nats).mean()), "accuracy": float(np.concatenate(right).mean()), "right": right}


def sources_of(held: list[Pair], most: int) -> tuple[list[str], list[list[str]]]:
    """Held-out sources, each once, and the references of each; at most so many, spread over the file."""
    sources, references = lm.sample.references_by_source(*zip(*held, strict=True))
    chosen = np.linspace(0, len(sources) - 1, min(most, len(sources))).round().astype(int)
    return [sources[place] for place in chosen], [references[place] for place in chosen]


def free(m: lm.Trained, held: list[Pair], sentences: int) -> dict:
    """What the model answers greedily, reading its own tokens: BLEU, chrF, and its tokens beside the references'.

    own: of each pair whose source was translated, whether each token of its target stands in the answer's same place.
    """
    sources, references = sources_of(held, sentences)
    greedy = in_parts(sources, lambda some: translate(m, some))
    answers, end = [sample.text for sample in greedy], m.tokenizer.eot_token
    said = {source: [*sample.tokens, end] for source, sample in zip(sources, greedy, strict=True)}
    own = [places(said.get(source), [*m.tokenizer.encode_ordinary(target), end]) for source, target in held]
    bleu, chrf = lm.sample.bleu(answers, references), lm.sample.chrf(answers, references)
    examples = list(zip(sources, answers, strict=True))[:20]
    return {"bleu": bleu.value, "chrf": chrf.value, "signature": bleu.signature, "own": own, "examples": examples}


def places(said: list[int] | None, due: list[int]) -> list[bool] | None:
    """Whether each token that is due stands in its place in what was said; None where nothing was."""
    if said is None:
        return None
    return [place < len(said) and said[place] == token for place, token in enumerate(due)]


def after_mistakes(right: Sequence[Sequence[bool]], own: Sequence[Sequence[bool] | None]) -> tuple[float, float]:
    """Shares of right tokens behind a target's first wrong one: behind the reference's tokens, and behind the model's.

    Up to the first mistake the two are the same. An answer that goes another way may be as good and still have none of
    its tokens in the reference's places: the second share says at least how much is right.
    """
    corrected, left = [], []
    for right_T, own_T in zip(right, own, strict=True):
        if own_T is not None and not all(right_T):
            first = list(right_T).index(False)
            corrected += right_T[first + 1 :]
            left += own_T[first + 1 :]
    return (float(np.mean(corrected)), float(np.mean(left))) if left else (np.nan, np.nan)


def in_parts(sources: list[str], work: Callable[[list[str]], list], size: int = 128) -> list:
    """work(some of the sources) for all of them, joined; the last part is filled up, so that one program serves all."""
    made = []
    for start in range(0, len(sources), size):
        some = sources[start : start + size]
        made += work(some + [some[-1]] * (size - len(some)))[: len(some)]
    return made


def translate(m: lm.Trained, sources: list[str]) -> list[lm.Sample]:
    """Greedy answers."""
    return lm.generate(m, [""] * len(sources), lm.Sampler(temperature=0), sources=sources, max_tokens=ROOM - 1)


def search(m: lm.Trained, sources: list[str], references: list[list[str]]) -> dict:
    """BLEU of a beam of 1 and of 4, and how often each is known to have missed a likelier answer (no length penalty).

    missed: of a beam of 1, where a beam of 4 found a likelier one; of a beam of 4, where the first reference is one.
    """

    def found(beam: int, penalty: float) -> list[list[lm.sample.Hypothesis]]:
        how = dict(beam=beam, length_penalty=penalty, max_tokens=ROOM - 1)
        return in_parts(sources, lambda some: lm.sample.beam_search(m, [""] * len(some), sources=some, **how))

    one, four = found(1, 0.0), found(4, 0.0)
    scores = {"1": one, "4": four, "4, length penalty 0.6": found(4, 0.6)}
    bleu = {beam: lm.sample.bleu([each[0].text for each in some], references).value for beam, some in scores.items()}
    first = [texts[0] for texts in references]
    known = lm.sample.score_texts(m, [""] * len(sources), first, sources=sources, length_penalty=0.0)
    missed = lm.sample.search_errors(one, [each[0] for each in four]), lm.sample.search_errors(four, known)
    return {"beams": bleu, "missed": missed, "searched": len(sources)}


def look(m: lm.Trained, sentence: str) -> tuple[list[str], list[str], np.ndarray]:
    """Tokens read and written as it translates a sentence, and the cross-attention [T, S] of its last block."""
    end, read = m.tokenizer.eot_token, m.tokenizer.encode_ordinary(sentence)
    written = translate(m, [sentence])[0].tokens
    taps = Taps(("cross.weights",))
    source = Inputs(jnp.array([[*read, end]]))
    m.model.hidden(m.params, Inputs(jnp.array([[end, *written]]), source=source), taps=taps)
    weights_TS = np.asarray(taps.values["cross.weights"])[-1, 0].mean(axis=0)
    names = [[m.tokenizer.decode([token]) for token in row] + ["end"] for row in (read, written)]
    return names[0], names[1], weights_TS


if __name__ == "__main__":
    main()
