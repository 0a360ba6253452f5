"""Our models in lm-evaluation-harness: requests answered as the plain computation has them, tasks run offline."""

import dataclasses
import importlib
import importlib.metadata
import json
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from lm.errors import UserError
from lm.evaluation import evaluate
from lm.records import read_harness
from lm.run import Run, load
from lm.sample.generate import generate
from lm.sample.samplers import Sampler

(importlib.import_module if os.environ.get("LM_REQUIRE_PARITY") == "1" else pytest.importorskip)("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model, model_registry  # noqa: E402

from lm.exchange import harness  # noqa: E402
from lm.exchange.harness import HarnessModel, generation  # noqa: E402

pytestmark = pytest.mark.parity
TASKS = os.path.join(os.path.dirname(__file__), "..", "..", "experiments", "harness_tasks")
T = 16
LINES = {
    "lambada": [{"text": "a king sat on a mat"}, {"text": "the old fish"}, {"text": "his queen ran to the river"}],
    "hellaswag": [{"ctx": "the king", "endings": ["sat on", "fish"], "label": 0}] * 2,
    "texts": [{"text": "the king ran"}, {"text": tiny.text(30)}],
    "continue": [{"prompt": "the ", "answer": "king"}] * 3,
    "arc": [{"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}],
}


@pytest.fixture(scope="module")
def m(tiny_run):
    """A model whose documents began with the end of text."""
    m = load(tiny_run)
    record = m.run.record | {"documents": 3}
    return dataclasses.replace(m, run=SimpleNamespace(record=record, path=m.run.path))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The files that the tasks of experiments/harness_tasks read."""
    for name, lines in LINES.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("LM_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def runs(tiny_run, tmp_path):
    """A copy of the tiny run that may be written to."""
    import shutil

    return shutil.copytree(tiny_run.path, tmp_path / "runs" / "tiny")


def asked(kind, *several):
    return [Instance(kind, {}, arguments, number) for number, arguments in enumerate(several)]


def plain(m, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """What one token after the other costs, each from a pass of its own over at most T tokens; and whether greedy."""
    nats, greedy, tokens = 0.0, True, [*context, *continuation]
    window = tokens[-(T + 1) :]
    for place in range(len(window) - len(continuation), len(window)):
        read = np.pad(window[:place], (0, T - place))[None]
        logits_V = np.asarray(m.apply(read)[0][0, place - 1], np.float64)[: m.tokenizer.n_vocab]
        nats += np.log(np.exp(logits_V).sum()) - logits_V[window[place]]
        greedy &= int(logits_V.argmax()) == window[place]
    return -nats, greedy


def test_continuations_are_worth_what_they_cost_token_by_token(m):
    """Contexts empty, ending in a space, longer than the model's; a continuation that greedy decoding would say."""
    said = generate(m, ["the"], Sampler(temperature=0), max_tokens=4)[0].text
    pairs = [("the ", "king"), ("the", said), ("", "a mat"), ("the queen ran to the", " river"), ("a", "t" * T)]
    made = HarnessModel(m, batch_size=2).loglikelihood(asked("loglikelihood", *pairs))
    encode, end = m.tokenizer.encode_ordinary, m.tokenizer.eot_token
    pairs[0] = ("the", " king")  # where spaces belong
    for (context, continuation), (logprob, greedy) in zip(pairs, made, strict=True):
        wanted, all_greedy = plain(m, encode(context) or [end], encode(continuation))
        assert logprob == pytest.approx(wanted, abs=1e-5) and greedy == all_greedy
    assert made[1][1] and not made[4][1]


def test_a_continuation_is_what_both_together_have_beyond_the_context(m):
    """Tokens that would span both belong to the context; where all of them do, the last one is the continuation's."""
    pairs = {"ab": [2], "abcd": [2, 2], "abc": [2, 1], "a": [1], " a": [2], "": []}
    merging = SimpleNamespace(name="pairs", eot_token=9, n_vocab=10, encode_ordinary=pairs.__getitem__)
    model = HarnessModel(dataclasses.replace(m, tokenizer=merging))
    assert model._pair("ab", "cd") == ([2], [2])
    assert model._pair("abc", "d") == ([2], [2])
    assert model._pair("", "abc") == ([9], [2, 1])
    assert model._pair("a", "b") == ([9], [2])
    assert model._pair(" ", "a") == ([9], [2])  # the space goes to the continuation, and nothing is before it


def test_rolling_has_more_context_in_its_last_window_than_evaluate(m):
    """Within the context both are one number; beyond it the plain windows of each are."""
    short, long = "the king ran", tiny.text(9, seed=3).rstrip()
    tokens = m.tokenizer.encode_ordinary(long)
    assert T < len(tokens) < 3 * T and len(tokens) % T
    model = HarnessModel(m)
    made = model.loglikelihood_rolling(asked("loglikelihood_rolling", (short,), (long,), ("",)))
    assert made[0] == pytest.approx(-evaluate(m, short).nats, abs=1e-5) and made[2] == 0
    stream, whole = [m.tokenizer.eot_token, *tokens], len(tokens) // T * T
    windows = [(stream[start : start + 1], stream[start + 1 : start + T + 1]) for start in range(0, whole, T)]
    ours = [*windows, (stream[whole : whole + 1], stream[whole + 1 :])]
    theirs = [*windows, (stream[-(T + 1) : whole + 1], stream[whole + 1 :])]
    assert made[1] == pytest.approx(sum(plain(m, *pair)[0] for pair in theirs), abs=1e-4)
    assert -evaluate(m, long).nats == pytest.approx(sum(plain(m, *pair)[0] for pair in ours), abs=1e-4)
    assert abs(made[1] + evaluate(m, long).nats) > 1e-2


def test_generation_stops_where_it_should(m):
    """Greedy as `generate` has it; cut at a stop string; a prompt too long loses its beginning; seeds repeat."""
    greedy = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    warm = {"until": [], "max_gen_toks": 6, "temperature": 1.0}
    long = "the queen ran to the river"
    settings = [("the ", greedy), (long, greedy), ("the ", warm), ("the ", warm), ("the ", greedy | {"until": " "})]
    model = HarnessModel(m, batch_size=1)
    made = model.generate_until(asked("generate_until", *settings))
    assert made == model.generate_until(asked("generate_until", *settings)) and made[2] != made[3]
    for prompt, answer in (("the ", made[0]), (long[-(T - 6) :], made[1])):
        assert answer == generate(m, [prompt], Sampler(temperature=0), max_tokens=6, stop="\n")[0].text
    assert made[4] == made[0].partition(" ")[0] and model.cut == 2
    with pytest.raises(
        UserError, match=r"task x, document 0: up to 16 tokens .* context is 16; fewer with --gen-kwargs"
    ):
        model.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": 16}), 0, metadata=("x", 0, 1))])


def test_how_to_generate_is_read_as_tasks_say_it(capsys):
    assert generation({"until": "x", "do_sample": False, "temperature": 0.5}) == (Sampler(temperature=0), ["x"], 256)
    assert generation({"until": [""], "do_sample": True, "top_k": 0, "num_beams": 1, "max_new_tokens": 3}) == (
        Sampler(temperature=1), [], 3,
    )  # fmt: skip
    assert generation({"temperature": 0.7, "top_p": 0.9}) == (Sampler(temperature=0.7, top_p=0.9), [], 256)
    assert capsys.readouterr().err == ""
    generation({"num_beams": 4})
    assert capsys.readouterr().err == "lm: generation_kwargs num_beams=4 does nothing here\n"


def test_unknown_characters_are_refused_or_left_out_and_counted(m):
    requests = asked("loglikelihood", ("the k\u00efng", " s\u00e4t"), ("the kng", " st"))
    with pytest.raises(UserError, match=r"character '\u00ef' \(U\+00EF\)"):
        HarnessModel(m).loglikelihood(requests)
    model = HarnessModel(m, unknown="skip")
    first, second = model.loglikelihood(requests)
    assert first == second and model.skipped == 2
    with pytest.raises(UserError, match="nothing of the answer '\u00e9'"):
        model.loglikelihood(asked("loglikelihood", ("a", "\u00e9")))


def test_a_model_of_one_text_is_asked_what_stands_before_others(tiny_run):
    """It never saw the end of text; a prefix of one token takes its place."""
    m, requests = load(tiny_run), asked("loglikelihood", ("", "a mat"))
    with pytest.raises(UserError, match=r"never saw the end-of-text token .* --prefix"):
        HarnessModel(m).loglikelihood(requests)
    with pytest.raises(UserError, match="is 2 tokens"):
        HarnessModel(m, prefix="at")
    encode = m.tokenizer.encode_ordinary
    (made,) = HarnessModel(m, prefix="\n").loglikelihood(requests)
    assert made == pytest.approx(plain(m, encode("\n"), encode("a mat")), abs=1e-5)


def test_tasks_are_run_and_kept(runs, data, lm, monkeypatch):
    """Every kind of task, from files alone; figures as worked out by hand; `lm runs` shows and sorts by them."""
    arguments = ["--include-path", TASKS, "--prefix", r"\n", "--gen-kwargs", "max_gen_toks=4", "--json"]
    names = ["local_lambada", "local_hellaswag", "local_texts", "local_continue"]
    status, out, err = lm("harness", runs, "--tasks", *names, *arguments)
    assert status == 0, err
    found = json.loads(out)
    m = load(runs)
    encode = m.tokenizer.encode_ordinary
    split = [line["text"].rpartition(" ") for line in LINES["lambada"]]
    nats = [-plain(m, encode(before), encode(f" {last}"))[0] for before, _, last in split]
    assert found["tasks"]["local_lambada"]["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    scores = [plain(m, encode("the king"), encode(f" {ending}"))[0] for ending in ("sat on", "fish")]
    assert found["tasks"]["local_hellaswag"]["acc"] == (scores[0] > scores[1])
    assert found["tasks"]["local_hellaswag"]["stderr"]["acc"] == 0
    assert found["tasks"]["local_continue"]["exact_match"] in (0, 1) and found["documents"]["local_texts"] == 2
    assert found["step"] == 60 and found["limit"] is None and found["versions"]["local_texts"] == 1.0
    assert lm("harness", runs, "--tasks", "local_lambada", "--limit", 1, *arguments)[0] == 0
    kept = read_harness(Run(runs).path / "harness.jsonl")
    assert [record["limit"] for record in kept] == [None, 1]
    assert found.items() >= kept[0].items()

    (row,) = json.loads(lm("runs", "--folder", runs.parent, "--json")[1])["runs"]
    assert row["harness"]["local_lambada"]["limit"] == 1 and row["harness"]["local_texts"]["limit"] is None
    assert row["harness"]["local_hellaswag"]["metrics"] == {
        key: value for key, value in found["tasks"]["local_hellaswag"].items() if key != "stderr"
    }
    monkeypatch.setenv("COLUMNS", "400")
    assert "local_lambada.perplexity" in lm("runs", "--folder", runs.parent)[1]
    assert lm("runs", "--folder", runs.parent, "--where", "local_lambada.perplexity<1")[1].startswith("none of the 1")
    assert "tiny" in lm("runs", "--folder", runs.parent, "--where", "local_lambada.perplexity>1")[1]
    assert "local_texts.bits_per_byte" in lm("runs", runs, runs)[1]
    with (Run(runs).path / "harness.jsonl").open("a") as file:
        file.write('{"step": 1\n[]\n{"step": 1, "tasks": {"a": {"b": "c", "stderr": {}}}}\n')
    status, out, err = lm("runs", "--folder", runs.parent, "--json")
    assert json.loads(out)["runs"] == [row] and "3 of 5 lines are damaged and left out" in err


def test_mistakes_are_told_on_one_line(runs, data, lm, monkeypatch):
    """And nothing is kept."""
    monkeypatch.setattr("lm.exchange.tasks.TaskManager.__init__", _without_defaults)
    monkeypatch.setattr("lm_eval.api.task.tqdm", lambda x, **_: x)  # imported before the command could turn it off
    (data / "bad.yaml").write_text("task: [")
    (data / "worse.yaml").write_text(
        "task: worse\ndataset_path: json\ndataset_kwargs: {data_files: {test: no.jsonl}}\n"
    )
    for arguments, said in (
        ([], "which tasks? lm harness RUN --tasks blimp"),
        (["--tasks", "local_lambda"], "--tasks local_lambda: no such task, group or tag; did you mean local_lambada?"),
        (["--tasks", "local_arc"], "task local_arc, document 0: character 'Q' (U+0051) is not among"),
        (["--tasks", "local_hellaswag", "--include-path", "nowhere"], "--include-path nowhere: no such folder"),
        (["--tasks", "local_blimp_binding"], "set LM_DATA to the folder that holds corpora/blimp/BLiMP.zip"),
        (["--tasks", data / "bad.yaml"], "bad.yaml: the harness cannot run it"),
        (["--tasks", data / "worse.yaml"], "no.jsonl"),
        (["--tasks", "local_texts"], "never saw the end-of-text token"),
        (["--tasks", "local_continue"], "up to 16 tokens are to be generated, the model's context is 16"),
        (["--tasks", "local_continue", "--gen-kwargs", "7"], "--gen-kwargs 7: a name and a value"),
        (["--tasks", "local_continue", "--fewshot", -1], "--fewshot -1"),
    ):  # fmt: skip
        include = [] if "--include-path" in arguments else ["--include-path", TASKS]
        status, out, err = lm("harness", runs, *arguments, *include)
        assert status == 2 and out == "" and said in err, err
        assert err.count("\n") == 1 and err.startswith("lm: ")
    assert not (runs / "harness.jsonl").exists()


def _without_defaults(self, include_path=None, include_defaults=True, original=None):
    """The harness's own 14,000 tasks take seconds to list."""
    return TASK_MANAGER(self, include_path=include_path, include_defaults=False)


TASK_MANAGER = importlib.import_module("lm_eval.tasks").TaskManager.__init__


@pytest.mark.gate
def test_figures_are_those_of_the_harness_for_the_exported_folder(tmp_path):
    """Log-likelihoods within the context and beyond it, rolling ones, and greedy texts; by transformers in float32."""
    torch = (
        pytest.importorskip("torch") if os.environ.get("LM_REQUIRE_PARITY") != "1" else importlib.import_module("torch")
    )
    from lm_eval.models.huggingface import HFLM

    from lm.config import Experiment, ModelConfig
    from lm.exchange.outgoing import export_folder
    from lm.model.api import build
    from lm.model.trained import Trained
    from lm.tokenizer import ByteTokenizer

    torch.set_num_threads(1)
    c = ModelConfig(layers=2, width=32, heads=4, kv_heads=2, context=64, vocab=257, dtype="float32", zero_init=False)
    m = Trained(build(c).init(0), ByteTokenizer(), Experiment(model=c), step=0)
    export_folder(m, tmp_path / "hf", check=False)
    ours = HarnessModel(m)
    theirs = HFLM(pretrained=str(tmp_path / "hf"), dtype="float32", device="cpu", batch_size=4)
    assert theirs.max_length == 64 and theirs.prefix_token_id == ours.prefix_token_id == 256
    text = tiny.text(60)
    pairs = [("the king", " sat"), ("the ", "king"), ("", "a mat"), ("caf", "\u00e9 \u6771"), (text[:90], text[90:100])]
    requests = asked("loglikelihood", *pairs)
    for (ours_nats, ours_greedy), (nats, greedy) in zip(
        ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True
    ):
        assert ours_nats == pytest.approx(nats, abs=1e-5) and ours_greedy == greedy
    rolling = asked("loglikelihood_rolling", (text[:50],), (text[:64],), (text,))
    made, wanted = ours.loglikelihood_rolling(rolling), theirs.loglikelihood_rolling(rolling)
    assert made == pytest.approx(wanted, rel=2e-7, abs=1e-5)  # they add up hundreds of nats in float32
    settings = {"until": [" "], "max_gen_toks": 20, "do_sample": False}
    prompts = asked("generate_until", ("the king", settings), (text[:90], settings))
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)


def test_the_harness_knows_our_model_beside_its_own():
    """Later versions find it by the entry point, this one once it is registered."""
    harness.register()
    harness.register()
    assert get_model("lm") is HarnessModel and {"hf", "gguf", "local-completions"} <= set(model_registry.keys())
    (there,) = importlib.metadata.entry_points(group="lm_eval.models", name="lm") or [None]
    assert there is None or there.load() is HarnessModel  # None where lm was installed before it had one


def test_without_the_harness_one_line_says_what_to_install(lm, runs, monkeypatch):
    for name in ("lm.exchange.harness", "lm.exchange.tasks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    status, out, err = lm("harness", runs, "--tasks", "x")
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "needs the package lm-eval: pip install -e '.[harness]'" in err
