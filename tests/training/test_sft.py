"""Fine-tuning on chats as a user does it: only answers are learnt, packed or not, and asked with the same tokens."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm.cli import main
from lm.config import Experiment
from lm.data.supply import prepare
from lm.errors import UserError
from lm.evaluation import evaluate_validation
from lm.model.api import LanguageModel, build
from lm.model.loss import OBJECTIVES, Batch
from lm.run import load
from lm.sample.chats import Conversation, reply
from lm.sample.generate import Generator
from lm.sample.samplers import Sampler
from lm.training.loop import train

LETTERS = "abcdefgh"
SHAPE = dict(layers=1, width=32, heads=2, feedforward=64, dtype="float32", unroll=1, context=64)


def messages(*said: str) -> list[dict]:
    return [dict(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(said)]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """One or two questions, a letter after some noughts and ones, and the letter twice in answer to each."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("chats") / "chats.jsonl"
    with path.open("w") as file:
        for number in range(400):
            said = []
            for letter in rng.choice(list(LETTERS), 1 + number % 2):
                said += ["".join(rng.choice(["0", "1"], rng.integers(1, 3))) + letter, letter * 2]
            file.write(json.dumps({"messages": messages(*said)}) + "\n")
    return path


def experiment(path, name: str = "sft", **changes) -> Experiment:
    base = tiny.experiment("unused.txt", name=name, data__examples=str(path), train__steps=150, train__batch=16)
    base = tiny.replaced(base, **{"optimizer__learning_rate": 1e-2} | changes)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **SHAPE))


@pytest.fixture(scope="module")
def run(chats, tmp_path_factory):
    return train(experiment(chats), folder=tmp_path_factory.mktemp("runs"), display=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Nudged:
    """A model whose logits have something added, [M, V], by which they can be differentiated."""

    model: LanguageModel
    added_MV: jax.Array

    @property
    def config(self):
        return self.model.config

    def hidden(self, *arguments, **options):
        return self.model.hidden(*arguments, **options)

    def logits(self, params, h_MD):
        return self.model.logits(params, h_MD) + self.added_MV


@pytest.mark.parametrize("packing", [False, True])
def test_the_answers_and_their_ends_alone_have_a_gradient(chats, packing):
    """Token by token: by the logits that predict it, each token of an answer and its end, and nothing else."""
    e = experiment(chats, data__packing=packing)
    data = prepare(e.data)
    from lm.data.supply import open_batches

    columns = open_batches(data.train, e.data, e.model, batch=4, seed=0).at(0)
    c = dataclasses.replace(e.model, vocab=data.tokenizer.n_vocab)
    model, batch = build(c), Batch(**columns)
    params = model.init(0)
    B, T = columns["weights_BT"].shape

    def loss(added_MV):
        learnt = OBJECTIVES["next_token"](Nudged(model, added_MV), params, batch, eot=data.tokenizer.eot_token)
        return jnp.sum(learnt.weights_BT * learnt.nats.target)

    gradient_BT = np.abs(jax.grad(loss)(jnp.zeros((B * T, c.V)))).sum(axis=1).reshape(B, T)
    end, has_gradient = data.tokenizer.eot_token, gradient_BT > 1e-6
    for tokens, learnt in zip(columns["tokens_BU"], has_gradient, strict=True):
        text, wanted, answering = [data.tokenizer.decode([t]) for t in tokens], [], False
        for place in range(1, len(tokens)):  # an answer begins behind "assistant:\n" and ends in an end of text
            wanted.append(answering)
            if tokens[place] == end:
                answering = False
            elif "".join(text[: place + 1]).endswith("assistant:\n"):
                answering = True
        assert learnt.tolist() == wanted and sum(wanted) >= 3


def test_packed_chats_do_not_see_each_other(chats):
    """A packed row costs what its chats cost alone."""
    e = experiment(chats)
    data = prepare(e.data)
    from lm.data.layout import lay_out_examples

    model = build(dataclasses.replace(e.model, vocab=data.tokenizer.n_vocab))
    params = model.init(1)

    @jax.jit
    def nats(columns):
        learnt = OBJECTIVES["next_token"](model, params, Batch(**columns))
        return jnp.sum(learnt.weights_BT * learnt.nats.target), jnp.sum(learnt.weights_BT)

    alone, packed = (lay_out_examples(data.validation, model.config, packing=packing)[0] for packing in (False, True))
    assert len(packed["tokens_BU"]) < 0.8 * len(alone["tokens_BU"])
    (a, count), (b, same) = nats(alone), nats(packed)
    assert count == same and float(a) == pytest.approx(float(b), rel=1e-5)


def test_answers_are_learnt_and_given(run):
    """By greedy replies with and without history; the loss as it was logged."""
    m = load(run)
    for before in ((), ("0a", "aa")):
        made = reply(m, [messages(*before, f"01{letter}") for letter in LETTERS], Sampler(temperature=0))
        said = [(one.text, one.ended) for one in made]
        right = [one == (2 * letter, "end of text") for one, letter in zip(said, LETTERS, strict=True)]
        assert np.mean(right) > 0.8
    logged = [record["val_loss"] for record in run.metrics() if "val_loss" in record]
    assert evaluate_validation(m).loss == pytest.approx(logged[-1], rel=1e-5)


def test_cached_probabilities_are_those_of_the_full_pass(run):
    m = load(run)
    from lm.sample.chats import format_of

    chat = messages("0a", "aa", "1b")
    [made] = reply(m, [chat], seed=3)
    asked = format_of(m).asked(chat)
    logits_TV = np.asarray(m.apply(np.array([[*asked, *made.tokens]]))[0][0])
    logprobs_TV = np.asarray(jax.nn.log_softmax(logits_TV[len(asked) - 1 : -1]))
    assert made.logprobs == pytest.approx(logprobs_TV[np.arange(len(made.tokens)), made.tokens].tolist(), abs=1e-5)


def test_the_template_is_recorded_and_used_again(chats, tmp_path):
    """As its text: the file may change, or be gone; with the text that it had, training goes on."""
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    e = experiment(chats, data__template=str(template), train__steps=4, train__checkpoint_every=2, schedule__warmup=0)
    made = train(e, folder=tmp_path, display=False)
    text = template.read_text()
    assert made.experiment.data.template == text
    assert train(e, folder=tmp_path, display=False).finished
    template.write_text(text.replace("[", "("))
    with pytest.raises(UserError, match=r"was trained with data\.template"):
        train(e, folder=tmp_path, display=False)
    template.unlink()
    [said] = reply(load(made), [messages("0a")], max_tokens=1)
    assert said.prompt == "[user] 0a[assistant] "
    assert main(["eval", str(made.path), "--examples", str(chats)]) == 0


def test_talking(run, tmp_path, monkeypatch, capsys):
    """`lm chat` with its commands, from a pipe; what it saves can be learnt from."""
    saved = tmp_path / "talk.jsonl"
    typed = f"/temperature 0\n0a\n\n/save {saved}\n1b\n/quit\n0c\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main(["chat", str(run.path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["messages"]
    assert [message["content"] for message in made[::2]] == ["0a", "1b"]
    assert json.loads(saved.read_text())["messages"] == made[:2]
    again = Conversation(Generator(load(run)), Sampler(temperature=0))
    assert [again.say("0a"), again.say("1b")] == [message["content"] for message in made[1::2]]
    again.say("0c " * 15)  # which leaves no room for what was said before
    assert again.forgotten == 4 and len(again.messages) == 6


def test_an_answer_can_be_stopped(run):
    """Ctrl-C keeps what was said so far, and the conversation goes on."""
    talk = Conversation(Generator(load(run)), Sampler(temperature=0))

    def interrupt(piece):
        raise KeyboardInterrupt

    said = talk.say("0a", interrupt)
    assert "aa".startswith(said) and talk.messages[-1] == {"role": "assistant", "content": said}
    assert talk.say("1b") == "bb"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("/temperature warm\n", "/temperature warm: expected a number"),
        ("/temprature 1\n", "/temprature: no such command; did you mean /temperature"),
        ("/temperature -1\n", "temperature -1.0: must be 0 (greedy)"),
        ("/save\n", "/save: to which file?"),
        ("0a" * 40 + "\n", "say less"),
    ],
)
def test_what_a_conversation_cannot_take_is_one_line(run, typed, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main(["chat", str(run.path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_model_that_learnt_from_no_chats_does_not_chat(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(500))
    plain = train(tiny.experiment(path, train__steps=1, schedule__warmup=0), folder=tmp_path, display=False)
    for command in (["chat", str(plain.path)], ["sample", str(plain.path), "--chat", "--prompt", "hi"]):
        assert main(command) == 2
        assert "does not chat: its examples were no chats" in capsys.readouterr().err
