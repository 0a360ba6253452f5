"""Where does a transformer tell the two meanings of a word apart, and what must it have read by then?

python experiments/meaning.py                            4 minutes on two CPU cores, no download
python experiments/meaning.py --steps 200 --seeds 0      half a minute, to see that it works

Writes a corpus in which six words (bank, bat, spring, crane, seal, pupil) have two meanings each. A sentence names two
things before or behind such a word: one tells its meaning (river or loan), the other belongs to another word. The
sentence ends in a word that goes with one meaning alone (muddy or closed). Trains a small transformer on it, then asks
linear probes for the meaning, by layer and by place. Each tested sentence has a twin that differs in the telling thing
alone, and those things were held out from the training of the probe: 0.5 is exact where a state cannot know, and a
probe that knows things by heart gains nothing. Controls: shuffled labels, and the meaning that the other thing tells of
a word that does not occur.
Expected: exactly 0.5 at layer 0, which is the word's vector and its place, and .93 from the first block on if the
context stands before the word; exactly 0.5 in every layer at the word itself if it stands behind, and 1.00 at the "was"
that follows. What the other thing tells is read as well (.93): a probe shows what is known of the context, not what is
made of it. That the word's own meaning is used is seen in the model's endings. Draws experiments/figures/meaning.svg.

Axes, beside the README's: L levels of the residual stream (0 is what enters the first block), R sentences.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lm
from lm.figures import STYLE, plt, save
from lm.files import whole

FIGURE = Path(__file__).parent / "figures" / "meaning.svg"
THINGS = {
    "bank": ("river stream water boat ferry bridge", "loan money cheque teller vault coin"),
    "bat": ("cave wing night moth fang dusk", "ball game pitch player team score"),
    "spring": ("blossom thaw april tulip lamb swallow", "wire steel mattress hinge lever clock"),
    "crane": ("marsh nest feather pond heron reed", "harbour girder load tower hook builder"),
    "seal": ("ice whale penguin fish sea rock", "wax letter envelope ring document crest"),
    "pupil": ("iris lens lash eyelid retina glance", "school teacher lesson desk exam class"),
}
"""What tells the two meanings of each word."""
ENDINGS = {
    "bank": ("muddy grassy steep", "closed rich trusted"),
    "bat": ("furry asleep hungry", "wooden cracked swung"),
    "spring": ("early mild rainy", "rusty coiled tight"),
    "crane": ("white shy graceful", "yellow rented heavy"),
    "seal": ("wet playful fat", "broken red official"),
    "pupil": ("wide dark dilated", "clever late absent"),
}
HOMONYMS = tuple(THINGS)
OPENERS = "near beside behind past under beyond"
PEOPLE = "she he we they anna paul"
VERBS = "saw drew noticed mentioned"
SENTENCES = {
    "before": "{opener} the {one} and the {two} , {who} {verb} the {word} , and it was {ending} .",
    "behind": "{who} {verb} the {word} {opener} the {one} and the {two} , and it was {ending} .",
}
"""Where the context stands."""
LAYERS = 3
SHUFFLES = 4
SEEN, HELD_OUT = slice(0, 4), slice(4, 6)
"""Which of a meaning's six things the probes are trained with, and which they are tested with."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """What is read by layer: of which sentences, at which word, and which meaning."""

    label: str
    where: str = "before"
    place: str = "word"
    turned: str = "told"
    """told: the word's meaning; other: what the second thing tells of a word that does not occur."""
    shuffled: bool = False
    """Whether the probe is trained on shuffled labels."""
    both_ways: bool = False
    """Whether attention sees what follows."""
    line: str = "-"


CURVES = {
    "before": Curve("at the word, context before it"),
    "behind": Curve("at the word, context behind it", where="behind"),
    "later": Curve('at the later "was", context behind the word', where="behind", place="was"),
    "both ways": Curve("at the word, context behind it, attention both ways", where="behind", both_ways=True),
    "other": Curve("at the word, context before it: what the other thing tells", turned="other", line="--"),
    "shuffled": Curve("at the word, context before it, labels shuffled", shuffled=True, line=":"),
}
BY_PLACE = {
    "before": ("before", False),
    "causal attention": ("behind", False),
    "attention both ways": ("behind", True),
}
"""What is read by place: of which sentences, and whether attention sees what follows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--both-ways", action="store_true", help="a model with attention both ways as well")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of twins that train a probe; as many test it")
    parser.add_argument("--runs", type=Path, help="where the runs are kept, to go on from; nowhere by default")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    studies = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary)
        for seed in options.seeds:
            kinds = (False, True) if options.both_ways else (False,)
            models = {both_ways: train(seed, options.steps, folder, both_ways) for both_ways in kinds}
            studies.append(study(models, options.pairs))
    print(table(studies))
    save(draw(studies), options.figure)
    print(options.figure)


# --- the corpus ------------------------------------------------------------------------------------------------------
def sentence(rng, where: str, told: tuple[str, int], other: tuple[str, int], things: slice = slice(None)) -> str:
    """A sentence about a word in one of its meanings: told is both, other what the second thing belongs to.

    where: a key of SENTENCES. things: which of a meaning's things may stand there. With generators of one state, the
    sentences of two meanings differ in the telling thing and in the ending alone.
    """

    def choice(words: list[str]) -> str:
        return str(rng.choice(words))

    (word, meaning), (beside, its_meaning) = told, other
    two = [choice(THINGS[word][meaning].split()[things]), choice(THINGS[beside][its_meaning].split()[things])]
    rng.shuffle(two)
    return " " + SENTENCES[where].format(
        opener=choice(OPENERS.split()), who=choice(PEOPLE.split()), verb=choice(VERBS.split()), word=word,
        one=two[0], two=two[1], ending=choice(ENDINGS[word][meaning].split()),
    )  # fmt: skip


def corpus(count: int, seed: int = 0) -> str:
    """Sentences with the words, meanings and places of the context drawn evenly, each a document."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        word, other = rng.choice(HOMONYMS, 2, replace=False)
        meanings = rng.integers(2, size=2)
        made.append(sentence(rng, str(rng.choice(list(SENTENCES))), (word, meanings[0]), (other, meanings[1])))
    return "<|endoftext|>".join(made)


def train(seed: int, steps: int, folder: Path, both_ways: bool) -> lm.Trained:
    """A transformer to whose words a vector of their place is added, as to the first one's.

    both_ways: attention sees what follows as well, and hidden words are predicted instead of the next one; for three
    times the steps, as they are few.
    """
    text = folder / "sentences.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with whole(text) as file:
        file.write(corpus(20_000))
    seeing = dict(mask="full", mask_token=True) if both_ways else {}
    e = lm.Experiment(
        name=f"{'both-ways' if both_ways else 'causal'}-{seed}",
        model=lm.ModelConfig(layers=LAYERS, width=64, heads=4, context=72, positions="learned", **seeing),
        data=lm.DataConfig(corpus=str(text), tokenizer="words", vocab=512, packing=True, validation=0.05),
        optimizer=lm.OptimizerConfig(name="muon", learning_rate=6e-3, matrix_learning_rate=0.02),
        train=lm.TrainConfig(
            steps=3 * steps if both_ways else steps,
            batch=16,
            seed=seed,
            objective="masked" if both_ways else "next_token",
        ),
    )
    run = lm.train(e, folder=folder)
    if not run.finished:
        raise SystemExit(75)  # stopped and saved: the same command goes on
    last = run.metrics()[-1]
    print(f"{run.name}: {last['val_loss']:.3f} nats a word, {last['seconds']:.0f} s", flush=True)
    return lm.load(run.path)


# --- the probes ------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Study:
    """What was read out of the models of a seed: mean accuracies over the words."""

    by_level_L: dict[str, np.ndarray]
    """Of each of CURVES."""
    by_place_T: dict[str, np.ndarray]
    """Of each of BY_PLACE, after the last block: at end-of-text and each word up to "was"."""
    endings: dict[str, float]
    """Share of sentences in which the causal model's likeliest next word is of the right meaning."""


def study(models: dict[bool, lm.Trained], pairs: int) -> Study:
    """models: the causal one under False; under True, if there is one, that with attention both ways."""
    by_level, by_place, endings = {}, {}, {}
    for name, c in CURVES.items():
        if m := models.get(c.both_ways):
            by_level[name] = np.mean([read_levels(m, word, c, pairs) for word in HOMONYMS], axis=0)
    for name, (where, both_ways) in BY_PLACE.items():
        if m := models.get(both_ways):
            by_place[name] = np.mean([read_places(m, word, where, pairs) for word in HOMONYMS], axis=0)
    for where in SENTENCES:
        endings[where] = float(np.mean([right_endings(models[False], word, where, pairs) for word in HOMONYMS]))
    return Study(by_level, by_place, endings)


def read_levels(m: lm.Trained, word: str, curve: Curve, pairs: int) -> np.ndarray:
    """Accuracy [L] at the curve's place; with shuffled labels, the mean over SHUFFLES."""
    seen, held_out = (twins(word, curve.where, pairs, things, curve.turned) for things in (SEEN, HELD_OUT))
    place = 1 + seen[0].split().index(word if curve.place == "word" else "was")
    x_LRD, tested_LRD = (states(m, texts)[:, :, place] for texts in (seen, held_out))
    right_R, rng = np.tile([0, 1], pairs), np.random.default_rng(HOMONYMS.index(word))
    labels = [rng.permutation(right_R) for _ in range(SHUFFLES)] if curve.shuffled else [right_R]
    levels = list(zip(x_LRD, tested_LRD, strict=True))
    return np.mean([[accuracy(*level, labels_R, right_R) for level in levels] for labels_R in labels], axis=0)


def read_places(m: lm.Trained, word: str, where: str, pairs: int) -> list[float]:
    """Accuracy at each place after the last block."""
    x_RTD, tested_RTD = (states(m, twins(word, where, pairs, things))[-1] for things in (SEEN, HELD_OUT))
    labels_R = np.tile([0, 1], pairs)
    return [accuracy(x_RTD[:, t], tested_RTD[:, t], labels_R, labels_R) for t in range(x_RTD.shape[1])]


def twins(word: str, where: str, pairs: int, things: slice, turned: str = "told") -> list[str]:
    """Sentences in pairs that differ in one meaning, 0 and then 1: that of the word, or what the other thing tells."""
    other = HOMONYMS[HOMONYMS.index(word) - 1]
    made = []
    for pair in range(pairs):
        seed = (pair, things.start, HOMONYMS.index(word))
        fixed = int(np.random.default_rng(seed).integers(2))
        for label in (0, 1):
            told, beside = (label, fixed) if turned == "told" else (fixed, label)
            rng = np.random.default_rng((*seed, 1))
            made.append(sentence(rng, where, (word, told), (other, beside), things))
    return made


def tokens(m: lm.Trained, texts: list[str]) -> np.ndarray:
    """[R, T] end-of-text and a sentence's words up to "was": sentences of a kind are equally long."""
    return np.array([[m.tokenizer.eot_token, *m.tokenizer.encode_ordinary(text)[:-2]] for text in texts])


def states(m: lm.Trained, texts: list[str]) -> np.ndarray:
    """[L, R, T, D] the residual stream: what enters the first block, and what leaves each."""
    _, taps = m.apply(tokens(m, texts), taps=("embedding", "residual.after"))
    return np.concatenate([taps["embedding"][None], taps["residual.after"]]).astype(float)


def accuracy(x_RD: np.ndarray, tested_RD: np.ndarray, labels_R: np.ndarray, right_R: np.ndarray) -> float:
    """Share of the tested states that a logistic regression, fitted to the others, labels rightly."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(x_RD, labels_R)
    return float(np.mean(probe.predict(tested_RD) == right_R))


def right_endings(m: lm.Trained, word: str, where: str, pairs: int) -> float:
    """Share of sentences in which the model's likeliest next word is an ending of the right meaning."""
    logits_RTV, _ = m.apply(tokens(m, twins(word, where, pairs, HELD_OUT)))
    guesses = [m.tokenizer.decode([token]).strip() for token in np.argmax(logits_RTV[:, -1], axis=-1)]
    return float(np.mean([guess in ENDINGS[word][i % 2].split() for i, guess in enumerate(guesses)]))


# --- what is shown ---------------------------------------------------------------------------------------------------
def mean_and_spread(values: list) -> tuple[np.ndarray, np.ndarray]:
    """Over seeds; the spread of a single seed is 0."""
    return np.mean(values, axis=0), np.std(values, axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])


def table(studies: list[Study]) -> str:
    """Markdown: accuracy of each curve by level, mean and deviation over seeds; and the model's own guesses."""
    levels = ["layer 0 (vector + place)", *(f"after block {i + 1}" for i in range(LAYERS))]
    lines = [f"| read | {' | '.join(levels)} |", "|---" * (LAYERS + 2) + "|"]
    for name in studies[0].by_level_L:
        mean_L, spread_L = mean_and_spread([s.by_level_L[name] for s in studies])
        cells = [f"{mean:.3f} +- {spread:.3f}" for mean, spread in zip(mean_L, spread_L, strict=True)]
        lines.append(f"| {CURVES[name].label} | {' | '.join(cells)} |")
    for where in SENTENCES:
        mean, spread = mean_and_spread([s.endings[where] for s in studies])
        lines.append(f"\nContext {where} the word: {mean:.3f} +- {spread:.3f} of guessed endings have its meaning.")
    return "\n".join(lines)


def draw(studies: list[Study]):
    """Accuracy by level on the left; on the right by place after the last block, for each place of the context."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 6), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
        draw_levels(left.subplots(), studies)
        for axis, where in zip(right.subplots(2, 1), SENTENCES, strict=True):
            draw_places(axis, where, studies)
    return figure


def draw_levels(axis, studies: list[Study]) -> None:
    for i, name in enumerate(studies[0].by_level_L):
        curve = CURVES[name]
        mean_L, spread_L = mean_and_spread([s.by_level_L[name] for s in studies])
        x_L = np.arange(len(mean_L)) + 0.03 * (i - 3)  # beside each other where they are equal
        axis.errorbar(x_L, mean_L, spread_L, marker="o", capsize=3, label=curve.label, linestyle=curve.line)
    axis.set(xticks=range(LAYERS + 1), xlabel="layer (0: the word's vector and its place)", ylim=(0.4, 1.03))
    axis.set(ylabel="share of meanings read rightly", title="Meaning, by layer")
    axis.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), fontsize=10)


def draw_places(axis, where: str, studies: list[Study]) -> None:
    """The words under the axis are one sentence's; things and persons vary."""
    example = dict(opener="near", one="river", two="ball", who="anna", verb="saw", word="BANK", ending="")
    words = SENTENCES[where].format(**example).split()[:-1]
    for name, (shown, _) in BY_PLACE.items():
        if shown == where and name in studies[0].by_place_T:
            mean_T, spread_T = mean_and_spread([s.by_place_T[name] for s in studies])
            axis.errorbar(range(len(words)), mean_T[1:], spread_T[1:], marker="o", capsize=3, label=name)
    axis.set_xticks(range(len(words)), words, rotation=45, ha="right", rotation_mode="anchor")
    axis.set(ylim=(0.4, 1.03), ylabel="read rightly", title=f"After the last block, context {where} the word")
    if where == "behind":
        axis.legend(loc="lower right", fontsize=10)


if __name__ == "__main__":
    main()
