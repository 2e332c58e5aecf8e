"""A user's own file on its way to a record: what follows from the file, what is refused, names, prices, reasons."""

import shutil
from dataclasses import replace

import pytest
from soak.tiny_models import write_tiny_model

from deaios.compute.gguf_file import InvalidModelFile, Metadatum, ValueType, encode_header, read_model_file
from deaios.compute.records import NoiseClass, RecordFile, decode_record, encode_record
from deaios.compute.roots import compute_file_digest
from deaios.compute.template import ChatTemplate, InvalidMessages
from deaios.compute.tokenizer import InvalidTokenizer, Tokenizer
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.models import AS_IS, EXPANDED, ModelFiles, UnavailableModelFiles, sort_files
from deaios.node.names import Names, Published
from deaios.node.offering import Choices, RefusedModel, build_record, prepare_model
from deaios.node.providing import read_price
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError
from deaios.primitives.keys import Address

MANIFEST = b"\x07" * 32


def quiet(_what, _done, _total):
    pass


def record_of(prepared):
    files = tuple(
        RecordFile(name, compute_file_digest(path), path.stat().st_size, MANIFEST)
        for name, path in sorted(
            {
                "calibration.json": prepared.evidence,
                prepared.source.name: prepared.source,
                "tokenizer.gguf": prepared.language,
            }.items()
        )
    )
    return build_record(prepared, files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return StateFolder(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def quantised(folder, tmp_path_factory):
    """(file, prepared) of a quantised file, served as it is."""
    file = write_tiny_model(
        tmp_path_factory.mktemp("files") / "My Own_Model.gguf", encoding="q8_0", name="My Own: Model"
    )
    return file, prepare_model(folder, file, Choices(threads=1), quiet)


def test_everything_follows_from_the_file(folder, quantised):
    file, prepared = quantised
    assert (prepared.name, prepared.source.name) == ("my-own-model", "My-Own_Model.gguf")
    assert (prepared.outcome.noise_class, prepared.serving) == (NoiseClass.QUANTISED, AS_IS)
    assert (prepared.quantisation, prepared.licence, prepared.context_tokens) == ("Q8_0", "unknown", 4096)
    assert prepared.source.samefile(file)
    record = record_of(prepared)
    assert decode_record(encode_record(record)) == record
    shipped = sort_files(record)
    assert (shipped.model.name, shipped.evidence.name, shipped.language.name) == (
        "My-Own_Model.gguf",
        "calibration.json",
        "tokenizer.gguf",
    )
    files = ModelFiles(record, prepared.source, prepared.served, prepared.evidence)
    answers, deviation_max = files.read_known_answers()
    assert answers.tensors_root == record.tensors_root
    assert 0 < deviation_max <= 0.5


def test_the_language_file_is_the_language_and_no_weights(quantised):
    file, prepared = quantised
    language = read_model_file(prepared.language)
    assert not language.tensors
    assert Tokenizer(language).tokenizer_hash == Tokenizer.from_gguf(file).tokenizer_hash == prepared.tokenizer_hash
    assert ChatTemplate.of_model(language).template_hash == prepared.template_hash


def test_a_second_time_nothing_is_measured(folder, quantised):
    file, prepared = quantised
    told = []
    again = prepare_model(folder, file, Choices(threads=1), lambda what, _done, _total: told.append(what))
    assert record_of(again) == record_of(prepared)
    assert not [what for what in told if what.startswith("measuring")]


def test_class_f_of_a_quantised_file_is_its_expansion(folder, quantised):
    file, prepared = quantised
    expanded = prepare_model(folder, file, Choices(noise_class=NoiseClass.FLOAT, threads=1), quiet)
    assert (expanded.outcome.noise_class, expanded.serving) == (NoiseClass.FLOAT, EXPANDED)
    assert expanded.served != expanded.source == prepared.source
    assert expanded.tensors_root != prepared.tensors_root


def test_a_model_without_a_template_completes_only(folder, tmp_path):
    file = write_tiny_model(tmp_path / "plain.gguf", template=None, seed=4)
    prepared = prepare_model(folder, file, Choices(name="plain", threads=1), quiet)
    assert not prepared.has_template
    with pytest.raises(InvalidMessages, match="completes text"):
        ChatTemplate.from_gguf(prepared.language).render_ids(
            [{"role": "user", "content": "hi"}], Tokenizer.from_gguf(prepared.language)
        )


def rewrite(file, target, **changes):
    """The file's metadata changed, without its tensors."""
    metadata = dict(read_model_file(file).metadata)
    for key, value in changes.items():
        kind = ValueType.UINT16 if isinstance(value, int) else ValueType.STRING
        metadata[key.replace("__", ".")] = Metadatum(kind, value)
    target.write_bytes(encode_header(metadata, []))
    return target


def test_what_cannot_be_offered_is_refused_with_the_reason(folder, quantised, tmp_path):
    file, _ = quantised
    for changes, error, word in (
        ({"split__count": 3}, RefusedModel, "one of 3 pieces"),
        ({"general__name": "x"}, RefusedModel, "no weights"),
        ({"tokenizer__ggml__model": "bert"}, InvalidTokenizer, "WordPiece"),
        ({"tokenizer__ggml__pre": "superbpe"}, InvalidTokenizer, "'superbpe' is not supported"),
    ):
        with pytest.raises(error, match=word):
            prepare_model(folder, rewrite(file, tmp_path / "x.gguf", **changes), Choices(), quiet)
    (tmp_path / "text.gguf").write_text("this is no model file, whatever it is called")
    with pytest.raises(InvalidModelFile):
        prepare_model(folder, tmp_path / "text.gguf", Choices(), quiet)
    for choices, word in ((Choices(name="No Spaces"), "does not match"), (Choices(context_tokens=3), "outside 64")):
        with pytest.raises(ConfigError, match=word):
            prepare_model(folder, file, choices, quiet)


def test_another_file_of_the_same_name_takes_nothing_over(folder, quantised, tmp_path):
    file, prepared = quantised
    other = write_tiny_model(tmp_path / file.name, encoding="q8_0", seed=9)
    assert prepare_model(folder, other, Choices(threads=1), quiet).source.parent != prepared.source.parent


def test_a_record_whose_evidence_is_another_is_not_believed(quantised):
    record = record_of(quantised[1])
    assert sort_files(record).evidence is not None
    forged = replace(record, calibration=replace(record.calibration, evidence=b"\x01" * 32))
    with pytest.raises(UnavailableModelFiles, match=r"another calibration\.json"):
        sort_files(forged)
    with pytest.raises(UnavailableModelFiles, match="served as 'gptq/1'"):
        sort_files(replace(record, serving="gptq/1"))


@pytest.mark.parametrize(
    ("text", "prices"), [("0.5:2", (500_000, 2_000_000)), ("0:0", (0, 0)), ("1:0.000001", (1_000_000, 1))]
)
def test_prices_are_read_in_credit_per_million(text, prices):
    assert read_price(text) == prices


@pytest.mark.parametrize("text", ["", "1", "1:2:3", "a:b", "-1:2", "1:0.0000001", "1:9999999999", "1.2.3:1", "NaN:1"])
def test_other_prices_are_refused(text):
    with pytest.raises(ConfigError, match="price"):
        read_price(text)


def test_roles_name_their_record():
    assert RoleSpec("provider-1", "provider").record_id(MANIFEST) == MANIFEST
    assert RoleSpec("provider-1", "provider", record=encode_hex(b"\x02" * 32)).record_id(MANIFEST) == b"\x02" * 32
    with pytest.raises(ConfigError, match="record"):
        RoleSpec("provider-1", "provider", record="0x12").record_id(MANIFEST)


class Catalogue:
    """A catalogue that holds records in the order in which they were published."""

    def __init__(self):
        self.entries = []

    async def record_count(self):
        return len(self.entries)

    async def record_at(self, index):
        return self.entries[index][0]

    async def record_of(self, record_id):
        return next(data for found, data, _ in self.entries if found == record_id)

    async def publisher_of(self, record_id):
        return next(publisher for found, _, publisher in self.entries if found == record_id)


class Contracts:
    def __init__(self):
        self.catalogue = Catalogue()


async def test_names_belong_to_who_was_first_and_follow_their_owner(quantised):
    base, contracts = record_of(quantised[1]), Contracts()
    ann, bob = Address(b"\xaa" * 20), Address(b"\xbb" * 20)

    def publish(number, name, publisher):
        record = replace(base, name=name, model_root=bytes([number]) * 32)
        contracts.catalogue.entries.append((bytes([number]) * 32, encode_record(record), publisher))

    publish(1, "house", Address(b"\xcc" * 20))
    publish(2, "fox", ann)
    publish(3, "fox", bob)
    publish(4, "house", bob)
    contracts.catalogue.entries.append((b"\x09" * 32, b"not a record", bob))
    names = Names(contracts, b"\x01" * 32)
    await names.refresh()

    def means(name):
        found = names.resolve(name)
        return None if found is None else found.record_id[0]

    assert [means(name) for name in ("fox", f"{encode_hex(ann)}/fox", f"{encode_hex(bob)}/fox")] == [2, 2, 3]
    assert means("house") == 1, "the operator's default keeps its name"
    assert means(f"{encode_hex(bob)}/house") == 4
    assert means(encode_hex(b"\x03" * 32)) == 3
    assert [means(name) for name in ("cat", "0x12", "0xzz/fox", "/", encode_hex(b"\x09" * 32))] == [None] * 5
    publish(5, "fox", bob)
    publish(6, "fox", ann)
    await names.refresh()
    assert [means("fox"), means(f"{encode_hex(bob)}/fox")] == [6, 5], "a newer one of the owner's takes its place"
    stale = names.find(b"\x02" * 32)
    assert isinstance(stale, Published)
    assert names.names_of(stale) == (encode_hex(b"\x02" * 32),)
    newest = names.find(b"\x06" * 32)
    assert newest is not None
    assert names.names_of(newest) == ("fox", f"{encode_hex(ann)}/fox", encode_hex(b"\x06" * 32))


def test_a_link_that_changed_is_noticed(folder, tmp_path):
    file = write_tiny_model(tmp_path / "moving.gguf", seed=12, layers=1)
    first = prepare_model(folder, file, Choices(threads=1), quiet)
    moved = write_tiny_model(tmp_path / "other.gguf", seed=13, layers=1)
    shutil.copyfile(moved, file)  # in place: the folder's link shows it, too
    second = prepare_model(folder, file, Choices(threads=1), quiet)
    assert second.digest != first.digest
    assert second.source.parent != first.source.parent
