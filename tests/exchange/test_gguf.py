"""GGUF files: written and read back to the bit, equal to other libraries, refused by name where not understood."""

import dataclasses
import struct

import numpy as np
import pytest

from lm.errors import UserError
from lm.exchange.published import Published

gguf = pytest.importorskip("gguf")

from gguf_cases import CONFIGS, FULL, L, T, V, published, settings, tensors, theirs  # noqa: E402

from lm.exchange.gguf import read, write  # noqa: E402

every_case = pytest.mark.parametrize("name", CONFIGS)
TOKENS = [(7 * i * i + 3 * i) % V for i in range(48)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def written(p: Published, path, **options) -> Published:
    """What is read of what was written."""
    write(p, path, **options)
    return read(path)


def resaved(path, change):
    """The file with its keys and tensors passed through change(fields, tensors), by the library alone."""
    reader = gguf.GGUFReader(path)
    fields = {name: f.contents() for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    values = {t.name: np.array(t.data) for t in reader.tensors}
    change(fields, values)
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture"))
    for name, value in fields.items():
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_key_value(name, value, kind)
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- there and back ---------------------------------------------------------------------------------------------------
@every_case
def test_a_round_trip_keeps_every_bit(name, path):
    """Tensors to the bit and the settings that were given, for every family that llama.cpp computes."""
    p = published(name)
    back = written(p, path)
    assert set(back.tensors) == set(p.tensors)
    for tensor, value in p.tensors.items():
        assert back.tensors[tensor].dtype == np.float32
        np.testing.assert_array_equal(back.tensors[tensor], value, err_msg=tensor)
    renamed = {"mistral": "llama"}.get(p.config["model_type"], p.config["model_type"])
    expected = p.config | {"model_type": renamed}
    expected = {key: value for key, value in expected.items() if value is not None and not key.endswith("token_id")}
    assert {key: back.config.get(key) for key in expected} == expected
    assert list(back.hashes) == ["model.gguf"]


@every_case
@pytest.mark.parity
def test_what_is_read_computes_as_what_was_written(name, path):
    """transformers' model of the configuration and tensors that are read gives the logits of the one written."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = theirs(name)
    back = written(Published(settings(model), tensors(model)), path)
    config = transformers.AutoConfig.for_model(**back.config)
    again = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    names = {"embed_out.weight": "lm_head.weight"}
    values = {names.get(name, name): torch.tensor(value) for name, value in back.tensors.items()}
    missing, unexpected = again.load_state_dict(values, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    with torch.no_grad():
        tokens = torch.tensor([TOKENS])
        assert torch.equal(again(tokens).logits, model(tokens).logits)
