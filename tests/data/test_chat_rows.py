"""Chats and preferences as rows: only what is the assistant's counts, packed or not, and nothing is lost."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.config import DataConfig, ModelConfig
from lm.data import lay_out_examples, prepare_examples, read_examples, validation_rows
from lm.data.sequences import _packed
from lm.errors import UserError
from lm.tokenizer import ByteTokenizer, chat_format

EOT = 256


def decoder(context: int) -> ModelConfig:
    return ModelConfig(context=context, vocab=257)


def chat(*said: str) -> dict:
    roles = ("user", "assistant") * len(said)
    return {"messages": [dict(role=role, content=text) for role, text in zip(roles, said, strict=False)]}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def prepared(tmp_path, records, **changes):
    data = DataConfig(examples=write(tmp_path / "examples.jsonl", records), **changes)
    same = DataConfig(**(vars(data) | {"validation_corpus": data.examples}))
    return prepare_examples(same, cache=tmp_path / "cache")


CHATS = [chat("hi", "a"), chat("hello", "bc", "and?", "def"), chat("who", "g" * 9), chat("x", "y")]


def test_only_the_assistants_words_and_their_ends_count(tmp_path):
    columns, left = lay_out_examples(prepared(tmp_path, CHATS).train, decoder(80))
    assert left == 0 and columns.keys() == {"tokens_BU", "weights_BT"}
    for row, weights, record in zip(columns["tokens_BU"], columns["weights_BT"], CHATS, strict=True):
        tokens, own = chat_format(ByteTokenizer()).learnt(record["messages"])
        assert row.tolist() == tokens + [EOT] * (81 - len(tokens))
        assert weights.tolist() == own[1:] + [0] * (81 - len(own))
        answers = [message["content"] for message in record["messages"] if message["role"] == "assistant"]
        learnt = ByteTokenizer().decode(row[1:][weights.astype(bool)])
        assert learnt == "".join(answer + "<|endoftext|>" for answer in answers)


def test_the_prompts_may_be_learnt_too(tmp_path):
    made = prepared(tmp_path, CHATS)
    columns, _ = lay_out_examples(made.train, decoder(80), learn_prompts=True)
    lengths = [len(chat_format(ByteTokenizer()).learnt(record["messages"])[0]) for record in CHATS]
    assert columns["weights_BT"].sum(axis=1).tolist() == [length - 1 for length in lengths]


def test_packed_rows_hold_every_chat_once(tmp_path):
    made = prepared(tmp_path, CHATS * 3 + [chat("q", "z" * 70)])
    alone, _ = lay_out_examples(made.train, decoder(100))
    packed, _ = lay_out_examples(made.train, decoder(100), packing=True)
    assert len(packed["tokens_BU"]) < len(alone["tokens_BU"])

    def learnt(columns):
        """Each chat's tokens with their weights, by how often they are there."""
        found = Counter()
        segments_BT = columns.get("segments_BT", np.zeros_like(columns["weights_BT"], dtype=np.int32))
        for tokens, weights, segments in zip(columns["tokens_BU"], columns["weights_BT"], segments_BT, strict=True):
            for number in range(segments.max() + 1):
                here = np.flatnonzero(segments == number)
                last = here[weights[here] > 0].max(initial=-1)
                if last >= 0:
                    found[(*tokens[here[0] : last + 2].tolist(), *weights[here[0] : last + 1].tolist())] += 1
        return found

    assert learnt(packed) == learnt(alone)
    assert packed["weights_BT"].sum() == alone["weights_BT"].sum() == made.train.count


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 30))
def test_packing_overfills_no_row_and_leaves_little_room(lengths, room):
    rows = _packed(lengths, room)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert max(filled) <= room
    # Nothing had room where it was not put: a row was begun for what fitted into none of those before it.
    assert all(filled[i] + lengths[rows[j][0]] > room for j in range(len(rows)) for i in range(j))


def test_a_template_makes_chats_of_other_examples(tmp_path):
    pairs = [dict(prompt="hi", completion="a"), dict(prompt="who", completion="g")]
    as_pairs = prepared(tmp_path, pairs, template="plain")
    columns, _ = lay_out_examples(as_pairs.train, decoder(50))
    (tmp_path / "chats").mkdir()
    as_chats = prepared(tmp_path / "chats", [chat("hi", "a"), chat("who", "g")])
    same, _ = lay_out_examples(as_chats.train, decoder(50))
    assert all((columns[name] == same[name]).all() for name in columns)
    assert as_pairs.template == as_chats.template and "{{ message.content }}" in as_chats.template


@pytest.mark.parametrize("template", [None, "plain"])
def test_preferences_are_two_rows(tmp_path, template):
    rows = [dict(prompt="hi", chosen="good", rejected="b"), dict(prompt="who", chosen="me", rejected="you all")]
    made = prepared(tmp_path, rows, template=template)
    columns, _ = lay_out_examples(made.train, decoder(60))
    for i, row in enumerate(rows):
        columns_of = dict(chosen=("tokens_BU", "weights_BT"), rejected=("rejected_BU", "rejected_weights_BT"))
        for answer, (tokens, weights) in columns_of.items():
            said = columns[tokens][i][1:][columns[weights][i].astype(bool)].tolist()
            assert said == [*row[answer].encode(), EOT]
            at = int(np.flatnonzero(columns[weights][i])[0])
            shown = ByteTokenizer().decode(columns[tokens][i][1 : at + 1])
            assert shown == (row["prompt"] if template is None else f"user:\n{row['prompt']}\nassistant:\n")


def test_the_longer_answer_must_fit(tmp_path):
    long = dict(prompt="p", chosen="good", rejected="b" * 30)
    made = prepared(tmp_path, [long, dict(prompt="q", chosen="c", rejected="d")])
    columns, left = lay_out_examples(made.train, decoder(20))
    assert left == 1 and len(columns["tokens_BU"]) == 1
    assert len(validation_rows(made.train, decoder(20), 10**6)["tokens_BU"]) == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": []}, "messages is no list of objects"),
        ({"messages": "hello"}, "messages is no list of objects"),
        ({"messages": ["hello"]}, "message 1: no object with a role"),
        ({"messages": [{"role": "user"}]}, "message 1: content is empty"),
        ({"messages": [{"role": "user", "content": [1]}]}, "message 1: content is list, not text"),
        ({"messages": [{"role": "user", "content": " "}]}, "message 1: content is blank"),
        (chat("hi", "a", "and?"), "the last message is the user's"),
        (chat("hi", "a") | {"prompt": "x", "completion": "y"}, "leave one out"),
    ],
)
def test_what_is_no_chat_is_refused_by_its_row(tmp_path, record, message):
    path = write(tmp_path / "bad.jsonl", [chat("hi", "a"), record])
    with pytest.raises(UserError, match=f"row 2.*{message}"):
        read_examples(path)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.template: .* holds chosen/rejected without a prompt"):
        prepared(tmp_path, [dict(chosen="a", rejected="b"), dict(chosen="c", rejected="d")], template="plain")
    made = prepared(tmp_path, [dict(prompt="hi", completion="a"), dict(prompt="who", completion="g")])
    with pytest.raises(UserError, match=r"data.packing: prompt/completion are a row each"):
        lay_out_examples(made.train, decoder(50), packing=True)
    made = prepared(tmp_path, CHATS)
    with pytest.raises(UserError, match=r"none of 4 examples fits model.context 9: the shortest needs"):
        lay_out_examples(made.train, decoder(9))
    with pytest.raises(UserError, match=r"example 1: its chat template has no tags"):
        prepared(tmp_path, CHATS, template="{% for m in messages %}{{ m.content }}{% endfor %}")
