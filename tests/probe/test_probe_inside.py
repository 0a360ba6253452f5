"""`lm probe RUN ...` on two models of a pack that learnt a small world: tables, JSON, figures; and what they know."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from close import assert_close

import lm
from lm import probe
from lm.commands import probe as command
from lm.errors import UserError

TEXT = "bob lives in oslo . the game of"
SUBJECT = ("bob lives in", "--subject", "bob", "--answer", "oslo")


@pytest.fixture
def run_path(knowing):
    return str(knowing[0][0].path)


@pytest.fixture
def ask(capsys, run_path):
    """ask("attention", TEXT, ...) -> what it prints; with --json, parsed."""

    def run(action, *arguments):
        capsys.readouterr()
        command.run([run_path, action, *map(str, arguments)])
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in arguments else out

    return run


# --- the model -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("member", [0, 1])
def test_members_of_a_pack_are_probed_like_any_run(knowing, member):
    """Loaded from its directory: the lens ends in the model's logits; a cached pass reads what a full one does."""
    m = lm.load(knowing[0][member])
    tokens = [[m.tokenizer.eot_token, *m.tokenizer.encode_ordinary(TEXT)]]
    logits_BTV, _ = m.apply(tokens)
    vocab = m.experiment.model.vocab
    assert_close(probe.lens_logits(m, tokens)[-1, ..., :vocab], logits_BTV[..., :vocab], relative=1e-4)
    by_pass, by_cache = (probe.attention_patterns(m, TEXT, cached=cached).weights_LNTS for cached in (False, True))
    assert_close(by_cache, by_pass, relative=1e-4)
    traces = [probe.trace(m, "bob lives in", "bob", "oslo", samples=4, cached=cached) for cached in (False, True)]
    for kind in traces[0].restored:
        assert_close(traces[1].restored[kind], traces[0].restored[kind], relative=1e-4)
    first, second = (lm.load(run).params["head"] for run in knowing[0])
    assert not np.array_equal(first, second)


def test_an_edit_changes_its_fact_and_leaves_others(knowing):
    """Bob moves, also in other words; most of what the model knew of others it still knows.

    In two layers the last token asks the subject itself in layer 0 and looks the answer up there: so edits go there.
    """
    run, file = knowing[0][0], knowing[1]
    m, facts = lm.load(run), probe.read_facts(file)
    edit = probe.edit_fact(m, "bob lives in", "bob", "rome", layer=0, at="last")
    moved = [probe.Fact("lives", "bob", prompt, "rome") for prompt in ("bob lives in", "the home of bob is")]
    same, other = probe.complete(edit.model, moved)
    assert same.correct and same.probability == pytest.approx(np.exp(-edit.answer_nats), rel=1e-2) and other.correct
    others = [fact for fact in facts if fact.subject != "bob" and fact.seen]
    before, after = (np.mean([c.correct for c in probe.complete(x, others)]) for x in (m, edit.model))
    assert after > before - 0.15
    text = lm.generate(edit.model, ["bob lives in"], lm.Sampler(temperature=0), max_tokens=1)[0].text
    assert text.strip() == "rome"


# --- the command -----------------------------------------------------------------------------------------------------
def test_facts(ask, knowing):
    """Seen phrasings are known; every fact is listed, and the means are those of the list."""
    answer = ask("facts", knowing[1], "--json")
    rows = {(row["relation"], row["seen"]): row for row in answer["relations"]}
    assert (
        rows["all", True]["accuracy"] >= 0.9 and rows["all", True]["facts"] == 42 and rows["all", False]["facts"] == 6
    )
    assert rows["plays", True]["choices"] == 4
    mean = np.mean([fact["correct"] for fact in answer["facts"] if fact["seen"]])
    assert rows["all", True]["accuracy"] == pytest.approx(mean)
    assert any(" " in fact["answer"] and fact["correct"] for fact in answer["facts"])  # new york, of two tokens
    table = ask("facts", knowing[1], "--cached")
    assert "unseen" in table and "lives" in table and f"{rows['all', True]['accuracy']:.3f}" in table


def test_attention(ask, run_path, workplace):
    answer = ask("attention", TEXT, "--json", "--figure", "grid.svg")
    assert len(answer["heads"]) == 8 and answer["tokens"][:3] == ["<eot>", "bob", "·lives"]
    assert answer["figure"] == "grid.svg" and "layer 1 head 3" in (workplace / "grid.svg").read_text()
    weights = probe.attention_patterns(lm.load(run_path), TEXT).weights_LNTS
    head = next(head for head in answer["heads"] if (head["layer"], head["head"]) == (1, 2))
    assert head["previous"] == pytest.approx(np.mean([weights[1, 2, t, t - 1] for t in range(1, 9)]))
    one = ask("attention", TEXT, "--layer", 1, "--head", 2, "--json")
    assert_close(one["weights"], weights[1, 2][None], relative=1e-6)
    assert one["heads"] == [head]
    table = ask("attention", TEXT, "--layer", 1, "--head", 2)
    assert "if uniform" in table and "random tokens twice" in table and "·lives" in table


def test_lens_and_loss(ask, run_path, workplace):
    answer = ask("lens", TEXT, "--json", "--figure", "lens.png")
    assert [entry["entry"] for entry in answer["entries"]] == ["embedding", "layer 0", "layer 1"]
    losses = ask("loss", TEXT, "--json", "--figure", "made/loss.svg")
    assert answer["entries"][-1]["loss"] == pytest.approx(losses["loss"], rel=1e-4)
    assert answer["entries"][-1]["kl"] == pytest.approx(0, abs=1e-5)
    score = lm.evaluate(lm.load(run_path), TEXT)
    assert losses["loss"] == pytest.approx(score.loss, rel=1e-4)
    assert losses["bits_per_byte"] == pytest.approx(score.bits_per_byte, rel=1e-4)
    assert (workplace / "lens.png").stat().st_size > 5000 and (workplace / "made" / "loss.svg").stat().st_size > 5000
    assert "oslo" in ask("lens", TEXT) and f"{score.loss:.4f} nats per token" in ask("loss", TEXT)


def test_what_adds_to_a_logit(ask, run_path):
    """Parts of the difference of two answers' logits, which a full pass gives too."""
    text = "bob lives in"
    parts = ask("lens", text, "--answer", "oslo", "--other", "rome", "--json")["attribution"]
    m = lm.load(run_path)
    logits_V = np.asarray(m.apply([[m.tokenizer.eot_token, *m.tokenizer.encode_ordinary(text)]])[0])[0, -1]
    oslo, rome = (m.tokenizer.encode_ordinary(word)[0] for word in (" oslo", " rome"))
    assert parts["total"] == pytest.approx(logits_V[oslo] - logits_V[rome], rel=1e-3)
    assert parts["total"] == pytest.approx(parts["embedding"] + np.sum(parts["heads"]) + np.sum(parts["mlp"]), rel=1e-3)
    assert "layer 1 feed-forward" in ask("lens", text, "--answer", "oslo")


def test_ablate(ask, knowing, workplace):
    """Without any feed-forward or without any attention the facts are lost; the base is the answers' loss."""
    answer = ask("ablate", "--facts", knowing[1], "--json", "--figure", "bars.svg", "--parts", "layers")
    parts = {(part["kind"], part["layer"]): part for part in answer["parts"]}
    assert len(parts) == 6 and "head" not in {kind for kind, _ in parts}
    assert parts["attention", None]["accuracy"] < 0.5 < answer["accuracy"]
    m = lm.load(knowing[0][0])
    facts = probe.fact_rows(m, probe.read_facts(knowing[1]))
    layers = [part for part in probe.every_part(m) if part.kind != "head"]
    assert answer["loss"] == pytest.approx(probe.ablate(m, facts, layers).base)
    assert "feed-forward" in (workplace / "bars.svg").read_text()
    table = ask("ablate", TEXT, "--how", "mean", "--figure", "both.png")
    assert "layer 1 head 3" in table and "mean ablation" in table


def test_trace(ask, workplace):
    """The answer is near certain; restoring the subject's embedding, or the last stream of all, brings it back."""
    arguments = ("bob lives in", "--subject", "bob", "--answer", "oslo", "--samples", 4)
    answer = ask("trace", *arguments, "--json", "--figure", "trace.svg")
    assert answer["subject"] == [False, True, False, False]
    assert answer["clean"] > 0.8 > answer["corrupted"]
    residual = np.array(answer["residual"])
    assert residual[0, 1] == pytest.approx(answer["clean"], rel=1e-3) == residual[-1, 3]
    assert "oslo" in (workplace / "trace.svg").read_text()
    table = ask("trace", *arguments, "--other", "anna", "--cached")
    assert "bob*" in table and "the attention output" in table


def test_markup_and_control_characters_of_a_text_are_shown_as_they_are(ask, workplace, monkeypatch):
    """In every table and figure; a word of several tokens is asked about by its first, which is named."""
    monkeypatch.setenv("COLUMNS", "150")
    odd = "bob [/x] $y_^$ \x1b[31m"
    for action in ("loss", "lens", "attention"):
        out = ask(action, odd, "--figure", f"{action}.svg")
        assert "\x1b" not in out and ("\\x1b" in out) == (action != "attention")  # whose table shows no text
    assert "the logit of · over that of ·oslo" in ask("lens", "bob lives in", "--answer", "[/x]", "--other", "oslo")
    facts = [probe.Fact(odd, "bob", "bob lives in", "[/x]")]
    Path("odd.jsonl").write_text(json.dumps(vars(facts[0])) + "\n")
    assert "bob [/x] $y_^$ \\x1b[31m" in ask("facts", "odd.jsonl", "--figure", "facts.svg")
    assert "p([/x])" in ask(
        "trace", "bob lives in", "--subject", "bob", "--answer", "[/x]", "--samples", 4, "--figure", "trace.svg"
    )


def test_a_run_that_diverged_is_refused(run_path, monkeypatch):
    m = lm.load(run_path)
    broken = dataclasses.replace(m, params=m.params | {"embedding": m.params["embedding"] * np.nan})
    monkeypatch.setattr("lm.run.load", lambda run, checkpoint, parallel: broken)
    with pytest.raises(UserError, match="parameters of step 250 are not finite"):
        command.run([run_path, "loss", TEXT])


@pytest.mark.parametrize(
    "action, arguments, said",
    [
        ("attention", [TEXT, "--layer", "2"], "--layer 2: the model has layers 0 to 1"),
        ("attention", [TEXT, "--head", "9"], "--head 9: the model has heads 0 to 3"),
        ("attention", [""], "the text is empty"),
        ("lens", [TEXT, "--figure", "lens.jpg"], "--figure lens.jpg: write a .png, .svg, .pdf"),
        ("lens", [TEXT, "--other", "rome"], "--other: against which --answer"),
        ("lens", [TEXT * 9], "the model's context holds 32"),
        ("facts", ["none.jsonl"], "cannot read none.jsonl"),
        ("ablate", [], "ablate what"),
        ("ablate", [TEXT, "--facts", "f"], "ablate what"),
        ("trace", [TEXT, "--subject", "nobody", "--answer", "x"], "'nobody' is not in"),
        ("trace", [TEXT, "--answer", "x"], "subject"),
        ("attention", [TEXT, "--layer", "-1"], "--layer -1: must be at least 0"),
        ("attention", [TEXT, "--seed", "-1"], "--seed -1: must be at least 0"),
        ("lens", [TEXT, "--answer", " "], "the answer ' ' is blank"),
        ("facts", ["pipe"], "cannot read pipe: not a file of text"),
        ("facts", ["deep.jsonl"], "deep.jsonl, line 1: not JSON (nested too deeply)"),
        ("ablate", ["--facts", "pipe"], "cannot read pipe: not a file of text"),
        ("trace", [*SUBJECT, "--noise", "1e300"], "--noise 1e+300: must be above 0 and finite in float32"),
        ("trace", [*SUBJECT, "--noise", "nan"], "--noise nan: not a finite number"),
        ("trace", [*SUBJECT, "--samples", "1000000000"], "samples 1000000000: from 1 to 10,000"),
        ("trace", [*SUBJECT, "--other", "bob"], "other 'bob': the subject itself corrupts nothing"),
    ],
)
def test_mistakes_are_told_in_a_sentence(run_path, workplace, action, arguments, said):
    os.mkfifo("pipe")
    Path("deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError) as refusal:
        command.run([run_path, action, *arguments])
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
