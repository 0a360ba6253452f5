"""Can the blocks that learn text learn sound? Spoken digits to text, a vowel sample by sample, and time series.

python experiments/sound.py                              some 12 minutes on two CPU cores, estimated
python experiments/sound.py --parts series --seeds 0     a part of it, with one seed

Speech: one to three digits, spoken by espeak-ng (pip install espeakng-loader; without it this part is left out) in 104
voices, of which a quarter, whole families of voices, are held out; log-mel frames of 10 ms are vectors that
stand before the letters of the answer (decoder-only, mask "prefix"), or are what an encoder reads. Whole answers right,
against the nearest training utterance and logistic regression on stretched frames.
Vowel: a signal of 8,000 samples a second as 256 mu-law levels, each a token. Bits a sample of vowels held out, against
linear prediction; a beginning of 32 ms is continued, and written to .wav.
Series: values as 256 levels; forecasts of 24 values by sampled continuations, against seasonal naive and others.

Expected: the models answer .88 to .90 of held-out voices, plain recognisers .75; of the vowel the transformer needs 4.5
bits a sample, more than linear prediction fitted to the beginning (3.6), and its continuation loses the pitch; it
forecasts the chaotic series far better than the others, the seasonal one worse than whoever knows the periods. A seed
draws other voices, utterances, vowels and series, and another start of the model.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sound_signals as signals
import sound_speech as speech
from scipy.io import wavfile
from scipy.special import log_softmax
from sound_figure import draw, table
from sound_signals import BEGINNING, CONTINUED, HISTORY, HORIZON, LEVELS, SCORED

import lm
from lm.figures import save
from lm.files import whole

FIGURE = Path(__file__).parent / "figures" / "sound.svg"
STEPS = {"speech": 400, "vowel": 250, "series": 200}
LETTERS = 18
"""Places that the longest answer takes: "three seven eight", begun by an end of text."""
SHOWN = 8
"""Values of a series that its source shows; the others are its target."""
PATHS = 40
"""Continuations drawn of a series."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--steps", type=int, help="training steps of every model, instead of each part's own")
    parser.add_argument("--scale", type=float, default=1.0, help="of the amounts of data; below 1 to see that it works")
    parser.add_argument("--runs", type=Path, default=Path("runs/sound"), help="where data, runs and results are kept")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    kept = options.runs / "results.jsonl"
    results = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for seed in options.seeds:
        for part in options.parts:
            what = dict(part=part, seed=seed, steps=options.steps or STEPS[part], scale=options.scale)
            if any(what.items() <= result.items() for result in results):
                continue
            start = time.perf_counter()
            scores = STUDIES[part](seed, options)
            if scores is None:
                continue
            results.append(what | dict(scores=scores, seconds=time.perf_counter() - start))
            with kept.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(f"{part}, seed {seed}: {results[-1]['seconds']:.0f} s", flush=True)
    results = [result for result in results if result["seed"] in options.seeds]
    print(*(table(part, results) for part in STEPS if any(r["part"] == part for r in results)), sep="\n\n")
    save(draw(results, options.runs, options.seeds[0]), options.figure)
    print(options.figure)


def train(name: str, model: lm.ModelConfig, data: lm.DataConfig, part: str, seed: int, options) -> lm.Trained:
    """The trained model, from its run's directory where it is there already."""
    experiment = lm.Experiment(
        name=f"{part}-{name}-{seed}".replace(" ", "-"),
        model=model,
        data=data,
        optimizer=lm.OptimizerConfig(name="muon", learning_rate=4e-3, matrix_learning_rate=0.02, newton_schulz=3),
        schedule=lm.ScheduleConfig(name="wsd", decay="50%"),
        train=lm.TrainConfig(
            steps=options.steps or STEPS[part], batch=8 if part == "vowel" else 32, seed=seed, eval_every="100%",
            eval_tokens=4096, checkpoint_every="100%",
        ),
    )  # fmt: skip
    run = lm.train(experiment, folder=options.runs, display=False)
    if not run.finished:
        raise SystemExit(75)  # stopped and saved: the same command goes on
    return lm.load(run.path)


# --- speech ----------------------------------------------------------------------------------------------------------
def study_speech(seed: int, options) -> dict | None:
    """Shares of whole answers right, by method and by the number of digits; None without espeak-ng."""
    try:
        speaker = speech.Speaker()
    except ImportError:
        print("speech is left out: pip install espeakng-loader", flush=True)
        return None
    files = [options.runs / f"speech-{part}-{seed}.npz" for part in ("train", "held")]
    for index, voices in enumerate(speech.divide(speaker.voices, seed)):
        if not files[index].exists():  # made once: the engine's own noise has no seed
            count = max(6, int((5000, 600)[index] * options.scale))
            with whole(files[index], "wb") as file:
                np.savez(file, **speech.utterances(speaker, voices, count, seed=2 * seed + index))
    spoken, held = (dict(np.load(file)) for file in files)
    examples = [options.runs / f"speech-{part}-{seed}-stacked.npz" for part in ("train", "held")]
    for file, some in zip(examples, (spoken, held), strict=True):
        np.savez(file, **speech.stacked(some))
    data = lm.DataConfig(examples=str(examples[0]), validation_corpus=str(examples[1]), tokenizer="chars")
    shape, read = dict(width=64, heads=4), dict(vectors=speech.STACKED * speech.BANDS)
    places = speech.MOST_FRAMES // speech.STACKED
    models = {
        "decoder-only": lm.ModelConfig(
            layers=3, mask="prefix", context=places + LETTERS, **read, **shape
        ),
        "encoder-decoder": lm.ModelConfig(
            layers=1, context=LETTERS, **shape,
            encoder=lm.EncoderConfig(layers=2, context=places + 1, **read, **shape),
        ),
    }  # fmt: skip
    answers = speech.plain_answers(spoken, held)
    asked = speech.stacked(held)
    shown = [vectors_IE[:count] for vectors_IE, count in zip(asked["frames"], asked["frame_counts"], strict=True)]
    for name, model in models.items():
        m = train(name, model, data, "speech", seed, options)
        written = lm.generate(m, [""] * len(shown), lm.Sampler(temperature=0), max_tokens=LETTERS, vectors=shown)
        answers[name] = [sample.text for sample in written]
    with whole(options.runs / f"speech-answers-{seed}.npz", "wb") as file:
        np.savez(file, **{name: np.array(some) for name, some in answers.items()})
    return {name: right_answers(some, held["captions"]) for name, some in answers.items()}


def right_answers(answers: list[str], captions: np.ndarray) -> dict[str, float]:
    """Shares of answers that are the caption to the letter."""
    right, digits = np.array(answers) == captions, np.array([len(text.split()) for text in captions])
    return {"all": right.mean()} | {f"{n} digits" if n > 1 else "1 digit": right[digits == n].mean() for n in (1, 2, 3)}


# --- a vowel ---------------------------------------------------------------------------------------------------------
def study_vowel(seed: int, options) -> dict:
    """Bits a sample by method; and of continuations the error of the pitch and the distance of the spectrum."""
    rng = np.random.default_rng(seed)
    trained_on = [signals.vowel(rng, 4000) for _ in range(max(4, int(400 * options.scale)))]
    held = [signals.vowel(rng, BEGINNING + CONTINUED) for _ in range(max(4, int(64 * options.scale)))]
    files = {}
    for part, some in (("train", trained_on), ("held", held)):
        files[part] = options.runs / f"vowel-{part}-{seed}.txt"
        texts = [signals.write(signals.mu_law(one.wave_T)) for one in some]
        with whole(files[part]) as file:
            file.write("<|endoftext|>".join(texts))
    data = lm.DataConfig(corpus=str(files["train"]), validation_corpus=str(files["held"]), tokenizer="chars")
    model = lm.ModelConfig(layers=3, width=64, heads=4, context=2 * BEGINNING)
    m = train("transformer", model, data, "vowel", seed, options)
    scores = {name: {"bits a sample": bits} for name, bits in vowel_bits(m, trained_on, held).items()}
    for name, measured in continuations(m, held[:8], seed, options).items():
        scores[name] = scores.get(name, {}) | measured
    return scores


def vowel_bits(m: lm.Trained, trained_on: list[signals.Vowel], held: list[signals.Vowel]) -> dict[str, float]:
    """Bits a sample of what follows the beginnings, each predicted from all before it. Order and ridge of the linear
    predictors were chosen on other vowels."""
    end = BEGINNING + SCORED
    levels_MT = np.stack([signals.mu_law(one.wave_T[:end]) for one in held])
    known = np.concatenate([signals.mu_law(one.wave_T) for one in trained_on])
    scored_MT, wave_MT = levels_MT[:, BEGINNING:], signals.from_mu_law(levels_MT)
    share_V = (np.bincount(known, minlength=LEVELS) + 1) / (len(known) + LEVELS)
    pooled = signals.fit_linear(np.stack([signals.from_mu_law(signals.mu_law(o.wave_T)) for o in trained_on[:50]]), 32)

    def linear_bits(model: signals.Linear, row: int) -> float:
        order = len(model.weights_Q) - 1
        before, _ = signals.columns(wave_MT[row, None, BEGINNING - order :], order)
        return signals.gaussian_bits(scored_MT[row], before @ model.weights_Q, model.deviation).mean()

    rows = range(len(held))
    tokens_MT = np.stack([m.tokenizer.encode_ordinary(signals.write(levels_T)) for levels_T in levels_MT])
    logits_MTV, _ = m.apply(tokens_MT[:, :-1])
    logprobs_MTV = log_softmax(np.asarray(logits_MTV[:, BEGINNING - 1 :]), axis=-1)
    logprobs_MT = np.take_along_axis(logprobs_MTV, tokens_MT[:, BEGINNING:, None], axis=-1)
    informed = [
        signals.gaussian_bits(scored_T, one.mean_T[BEGINNING:end], one.deviation).mean()
        for scored_T, one in zip(scored_MT, held, strict=True)
    ]
    return {
        "uniform": np.log2(LEVELS),
        "histogram": -np.log2(share_V[scored_MT]).mean(),
        "linear, of all vowels": np.mean([linear_bits(pooled, row) for row in rows]),
        "linear, of this beginning": np.mean([linear_bits(adapted(wave_MT[row, :BEGINNING]), row) for row in rows]),
        "transformer": -logprobs_MT.mean() / np.log(2),
        "who made it": np.mean(informed),
    }


def adapted(beginning_T: np.ndarray) -> signals.Linear:
    """The linear predictor of a beginning: 80 samples reach back over most pitch periods."""
    return signals.fit_linear(beginning_T[None], 80, ridge=1e-4)


def continuations(m: lm.Trained, held: list[signals.Vowel], seed: int, options) -> dict[str, dict[str, float]]:
    """Draw them, write them to .wav after their beginnings, and measure the second half against the truth's."""
    rng = np.random.default_rng(seed)
    waves_MT = [signals.from_mu_law(signals.mu_law(one.wave_T)) for one in held]
    prompts = [signals.write(signals.mu_law(one.wave_T[:BEGINNING])) for one in held]
    drawn = lm.generate(m, prompts, max_tokens=CONTINUED, seed=seed, past_context="slide")
    half = CONTINUED // 2
    made = {
        "transformer": [],
        "linear, of this beginning": [],
        "the last period again": [],
        "the truth's first half": [],
    }
    for sample, wave_T in zip(drawn, waves_MT, strict=True):
        beginning_T = wave_T[:BEGINNING]
        period = round(signals.RATE / signals.pitch_of(beginning_T))
        levels = np.append(signals.read(sample.text), np.full(CONTINUED, LEVELS // 2))  # silence, where it ended early
        made["transformer"].append(signals.from_mu_law(levels[:CONTINUED]))
        linear_1T = signals.draw_linear(adapted(beginning_T), beginning_T, CONTINUED, 1, rng)
        made["linear, of this beginning"].append(np.clip(linear_1T[0], -1, 1))
        made["the last period again"].append(np.resize(beginning_T[-period:], CONTINUED))
        made["the truth's first half"].append(np.tile(wave_T[BEGINNING : BEGINNING + half], 2))
    scores = {}
    for name, waves in made.items():
        pitches = [abs(signals.pitch_of(w[half:]) / one.pitch - 1) for w, one in zip(waves, held, strict=True)]
        spectra = [signals.spectral_distance(w[half:], t[-half:]) for w, t in zip(waves, waves_MT, strict=True)]
        scores[name] = {"pitch off, %": 100 * float(np.median(pitches)), "spectrum off, dB": float(np.mean(spectra))}
    with whole(options.runs / f"vowel-waves-{seed}.npz", "wb") as file:
        np.savez(file, truth=waves_MT, continued=made["transformer"])
    for index, (wave_T, continued_T) in enumerate(zip(waves_MT, made["transformer"], strict=True)):
        heard_T = np.concatenate([wave_T, np.zeros(2000), wave_T[:BEGINNING], continued_T])
        path = options.runs / f"vowel-{seed}-{index}-true-then-continued.wav"
        wavfile.write(path, signals.RATE, (heard_T * 32767).astype(np.int16))
    return scores


# --- time series -----------------------------------------------------------------------------------------------------
def study_series(seed: int, options) -> dict:
    """MASE and coverage of forecasts by method, for each kind of series."""
    rng = np.random.default_rng(seed)
    count, asked = max(8, int(2000 * options.scale)), max(4, int(40 * options.scale))
    drawn = {kind: np.stack([forecastable(kind, rng) for _ in range(count + asked)]) for kind in signals.SERIES}
    files = {}
    for part, rows in (("train", slice(0, count)), ("held", slice(count, None))):
        files[part] = options.runs / f"series-{part}-{seed}.jsonl"
        texts = [signals.write(signals.series_levels(z_T)) for z_MT in drawn.values() for z_T in z_MT[rows]]
        lines = [json.dumps(dict(source=text[:SHOWN], target=text[SHOWN:])) for text in texts]
        with whole(files[part]) as file:
            file.write("\n".join(lines))
    data = lm.DataConfig(examples=str(files["train"]), validation_corpus=str(files["held"]), tokenizer="chars")
    model = lm.ModelConfig(layers=3, width=64, heads=4, context=HISTORY + HORIZON + 2)
    m = train("transformer", model, data, "series", seed, options)
    scores = {}
    for kind, z_MT in drawn.items():
        history_MT, truth_MT = np.split(z_MT[count:], [HISTORY], axis=1)
        paths = forecasts(m, history_MT, seed)
        for name, paths_MWT in paths.items():
            found = signals.forecast_scores(paths_MWT, truth_MT, history_MT)
            scores.setdefault(name, {}).update({f"{kind}, {what}": value for what, value in found.items()})
        with whole(options.runs / f"series-{kind}-{seed}.npz", "wb") as file:
            np.savez(file, series=z_MT[count:], paths=paths["transformer"])
    return scores


def forecastable(kind: str, rng: np.random.Generator) -> np.ndarray:
    return signals.standardised(signals.time_series(kind, rng))


def forecasts(m: lm.Trained, history_MT: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Paths [M, W, HORIZON] by method."""
    rng, horizon = np.random.default_rng(seed), HORIZON
    texts = [signals.write(signals.series_levels(history_T)) for history_T in history_MT]
    drawn = lm.generate(
        m, [text[SHOWN:] for text in texts], sources=[text[:SHOWN] for text in texts], samples=PATHS,
        max_tokens=horizon, seed=seed,
    )  # fmt: skip
    ends = [signals.read(sample.text) for sample in drawn]
    levels = np.array([np.append(end, np.full(horizon, end[-1:] if len(end) else 0))[:horizon] for end in ends])
    plain: dict[str, Callable] = {
        "seasonal naive": lambda x_T: signals.seasonal_naive(x_T, 200, rng),
        "autoregression": lambda x_T: signals.draw_linear(signals.best_autoregression(x_T), x_T, horizon, 200, rng),
        "waves of known periods": lambda x_T: signals.seasonal_regression(x_T, 200, rng),
    }
    paths = {name: np.stack([forecast(x_T) for x_T in history_MT]) for name, forecast in plain.items()}
    return paths | {"transformer": signals.from_series_levels(levels).reshape(len(texts), PATHS, horizon)}


STUDIES = {"speech": study_speech, "vowel": study_vowel, "series": study_series}


if __name__ == "__main__":
    main()
