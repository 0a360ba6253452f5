"""lm eval RUN: loss, perplexity and bits per byte of a text."""

import dataclasses
from pathlib import Path

from lm.arguments import parse
from lm.commands.common import Checkpoint, Json, RunName, prepare_jax, print_json


@dataclasses.dataclass(frozen=True)
class Options:
    """Loss, perplexity and bits per byte of a text under a trained model, each token scored once."""

    run: RunName
    """A run's directory, or its name under runs/."""
    text: Path | None = None
    """A UTF-8 text file; without it, the run's whole validation split."""
    stride: int | None = None
    """Tokens scored per window; smaller than the context (the default) gives each token more to go by."""
    checkpoint: Checkpoint = "latest"
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm eval")
    prepare_jax()
    from lm.evaluation import evaluate, evaluate_validation, read_text
    from lm.run import load
    from lm.training.display import Display

    text = None if o.text is None else read_text(o.text)
    m = load(o.run, o.checkpoint)
    with Display() as display:
        options = dict(stride=o.stride, report=lambda done, total: display.stage("scoring windows", done, total))
        score = evaluate_validation(m, **options) if text is None else evaluate(m, text, **options)
    result = {name: getattr(score, name) for name in ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")}
    if o.json:
        print_json(result)
        return
    what = o.text or f"the validation split of {m.experiment.data.corpus}"
    print(f"{m.run.name} at step {m.step} on {what}: {score.tokens:,} tokens, {score.bytes:,} bytes")
    print(f"loss {score.loss:.4f} nats/token, perplexity {score.perplexity:.3f}, {score.bits_per_byte:.4f} bits/byte")
