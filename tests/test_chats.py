"""Chats as tokens: what is learnt is what will be written, by any template that has its tags; others are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.errors import UserError
from lm.exchange.tokenizers import from_texts
from lm.tokenizer import PLAIN, ByteTokenizer, ChatFormat, chat_format, read_template
from lm.tokenizer.huggingface import byte_letters

BYTES = ByteTokenizer()
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (  # no special token at all
    "{% for m in messages %}{{ '### ' + m.role }}\n{{ m.content }}\n---\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)


def marked_tokenizer():
    """Bytes as byte-level BPE without merges, and ChatML's two marks."""
    letters = {letter: token for token, letter in enumerate(sorted(byte_letters(), key=byte_letters().get))}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    texts = ("<|im_start|>", "<|im_end|>", "<|end|>")
    marks = [dict(id=256 + i, content=text, special=True, **plain) for i, text in enumerate(texts)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    made = dict(version="1.0", truncation=None, padding=None, added_tokens=marks, normalizer=None, pre_tokenizer=level,
                post_processor=None, decoder=level, model=dict(type="BPE", vocab=letters, merges=[]))  # fmt: skip
    config = {"eos_token": "<|end|>", "chat_template": CHATML}
    return from_texts({"tokenizer.json": json.dumps(made), "tokenizer_config.json": json.dumps(config)})


FORMATS = {
    "plain": chat_format(BYTES),
    "words": ChatFormat(BYTES, WORDS),
    "chatml": chat_format(marked_tokenizer()),
}
SAID = st.text("ab<|>\n é", min_size=1, max_size=6).filter(str.strip)


@st.composite
def chats(draw):
    """Messages in turn, perhaps after a system's, the assistant's last."""
    begun = draw(st.sampled_from([[], [{"role": "system", "content": "Be brief."}]]))
    turns = draw(st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
    said = [
        dict(role=role, content=text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return begun + said


@pytest.mark.parametrize("name", FORMATS)
@given(chat=chats())
def test_what_is_learnt_is_what_an_answer_would_be(name, chat):
    """Before each answer the tokens are those that the model is asked with; the rest is the answer and what ends it."""
    written = FORMATS[name]
    tokens, own = written.learnt(chat)
    assert len(tokens) == len(own) and own[-1]
    decode, closing = written.tokenizer.decode, written.closing
    for number, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        asked = written.asked(chat[:number])
        end = len(written.learnt(chat[: number + 1])[0])
        assert tokens[: len(asked)] == asked and not own[len(asked) - 1]
        assert all(own[len(asked) : end]) and not any(own[end : end + 1])
        assert decode(tokens[len(asked) : end]) == message["content"] + closing
        assert written.said(tokens[len(asked) : end]) == message["content"]
    learnt = decode([token for token, is_own in zip(tokens, own, strict=True) if is_own])
    assert learnt == "".join(message["content"] + closing for message in chat if message["role"] == "assistant")


def test_what_ends_an_answer():
    """A special token where the template writes one, which its tokenizer may not have counted among the ends of a text;
    words otherwise."""
    assert (FORMATS["plain"].ends, FORMATS["plain"].stop) == ((256,), ())
    assert (FORMATS["chatml"].ends, FORMATS["chatml"].stop) == ((257,), ())
    assert (FORMATS["words"].ends, FORMATS["words"].stop) == ((), ("\n---\n",))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "has no tags: nothing stands between"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "has no tags: nothing stands between"),
        (CHATML.replace("<|im_end|>\n", " "), "has no tags: nothing ends an answer"),
        ("<|im_start|>assistant\n{{ eos_token }}", "has no tags: it does not write what is said"),
        ("{% for m in messages %}", "does not take these messages"),
        ("{{ messages.__class__.__mro__ }}", "does not take these messages"),
        ("{{ raise_exception('no') }}", "does not take these messages"),
        ("{% for m in messages %}{{ messages|length }}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
         "{% if add_generation_prompt %}assistant: {% endif %}", "otherwise once more is said"),
    ],
)  # fmt: skip
def test_templates_by_which_nothing_could_be_learnt_are_refused(template, message):
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    with pytest.raises(UserError, match=message):
        ChatFormat(BYTES, template).learnt(chat)


def test_a_chat_that_ends_in_a_question_is_no_example():
    with pytest.raises(UserError, match="the last word is the user's"):
        chat_format(BYTES).learnt([{"role": "user", "content": "hello"}])


def test_templates_are_named_or_files_or_themselves(tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    assert (read_template("plain"), read_template(CHATML)) == (PLAIN, CHATML)
    assert read_template(str(tmp_path / "chat.jinja")) == CHATML
    with pytest.raises(UserError, match=r"data.template none.jinja: cannot read it \(No such file"):
        read_template("none.jinja")
