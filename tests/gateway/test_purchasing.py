"""What is served: names without doubt, and only the record's own tokenizer and template."""

import asyncio
from dataclasses import replace

import pytest

from deaios.compute.records import encode_record, record_id
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.primitives.errors import ConfigError

PRICES = {"input_price": 1, "output_price": 2, "created_s": 3, "owned_by": "tests"}


@pytest.fixture(scope="session")
def language(model_files):
    return Tokenizer.from_gguf(model_files.source), ChatTemplate.from_gguf(model_files.source)


@pytest.fixture
def real_record(language, tiny_record):
    tokenizer, template = language
    return replace(tiny_record, tokenizer_hash=tokenizer.tokenizer_hash, template_hash=template.template_hash)


async def test_a_served_model_renders_as_its_template_does_on_any_thread(language, real_record):
    tokenizer, template = language
    model = ServedModel.build(real_record, tokenizer, template, **PRICES)
    messages = [{"role": "user", "content": "Hello <|im_end|> there"}]
    expected = template.render_ids(messages, tokenizer)
    assert model.record_id == record_id(encode_record(real_record))
    assert model.render(messages, ()) == expected
    assert await asyncio.gather(*(asyncio.to_thread(model.render, messages, ()) for _ in range(4))) == [expected] * 4


@pytest.mark.parametrize("field", ["tokenizer_hash", "template_hash"])
def test_another_tokenizer_or_template_than_the_records_is_refused(language, real_record, field):
    with pytest.raises(ConfigError, match="its record says"):
        ServedModel.build(replace(real_record, **{field: b"\x01" * 32}), *language, **PRICES)


def test_two_models_never_share_a_name(language, real_record):
    model = ServedModel.build(real_record, *language, **PRICES, aliases=("alias",))
    other = replace(model, record_id=b"\x01" * 32, record=replace(real_record, name="other"), aliases=())
    models = ServedModels((model, other))
    assert [models.find(name) for name in ("alias", "tiny-bytes", "other", "0x" + "01" * 32, "none")] == [
        model,
        model,
        other,
        other,
        None,
    ]
    with pytest.raises(ConfigError, match="two served models are called 'alias'"):
        ServedModels((model, replace(other, aliases=("alias",))))
    with pytest.raises(ConfigError, match="does not match"):
        ServedModels((replace(model, aliases=("a b",)),))
