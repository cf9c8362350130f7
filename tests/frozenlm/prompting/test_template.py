"""Templates: two spellings of one grammar, three hosts, and records that do not fit."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from frozenlm.errors import ConfigError, ShapeError
from frozenlm.lm import FrozenLM
from frozenlm.prompting.calibration import ContextualCalibration, DomainPMI
from frozenlm.prompting.classify import Prompt
from frozenlm.prompting.demonstrations import Demonstrations
from frozenlm.prompting.filled import word_ids
from frozenlm.prompting.soft_slots import SoftSlots
from frozenlm.prompting.template import Template
from frozenlm.prompting.verbalizer import Verbalizer
from frozenlm.rows import Soft, row_length, text_ids
from tests.toys import EMBEDDED, MASK, WINDOW, toy_lm, toy_masked_lm, toy_sentinel_lm

RECORD = {"text": "the cat sat on the mat", "n": 3}
SOFT = "{soft:lead:it was} {text} {soft:lead} {soft:tail*3} {n}: {answer}"


@pytest.mark.parametrize(
    "source",
    ["{text} {answer}", "{{a}} {text}{n} {answer}.", SOFT, "{answer}", "{soft:a*2:x y} {answer}", "a\n{answer}\n"],
)
def test_both_spellings_say_the_same(source: str) -> None:
    template = Template.parse(source)
    again = Template.from_parts(json.loads(json.dumps(template.to_parts())))
    assert str(template) == str(again) == source
    assert again.parts == template.parts


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{text}", "has 0 slots {answer}; expected exactly one"),
        ("{answer} {answer}", "has 2 slots {answer}"),
        ("{text!r} {answer}", r"the slot '\{text!r\}' at character 1"),
        ("{a.b} {answer}", r"the slot '\{a.b\}'"),
        ("{soft:} {answer}", r"the slot '\{soft:\}'"),
        ("{soft:a*0} {answer}", r"the slot '\{soft:a\*0\}'"),
        ("{soft:a: } {answer}", r"the slot '\{soft:a: \}'"),
        ("{soft:a:x} {soft:a:y} {answer}", r"is given as \{soft:a:x\} and as \{soft:a:y\}"),
        ("x} {answer}", r"a lone '\}' at character 2"),
        (None, "template is NoneType; expected text"),
    ],
)
def test_refused_templates(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Template.parse(source)


@pytest.mark.parametrize(
    "part",
    [{}, {"text": 1}, {"field": "a.b"}, {"answer": False}, {"soft": "a", "length": 0}, {"soft": "a", "more": 1}, "x"],
)
def test_refused_parts(part: object) -> None:
    with pytest.raises(ConfigError, match="template, part 1 is"):
        Template.from_parts([{"answer": True}, part])  # type: ignore[list-item]


@pytest.mark.parametrize("record", [5, None, "text"])
def test_what_is_no_record(record: object) -> None:
    with pytest.raises(ConfigError, match="expected a mapping of fields to text"):
        Template.parse("{text} {answer}").values(record)  # type: ignore[arg-type]


def test_unknown_fields() -> None:
    with pytest.raises(ConfigError, match=r"record: template reads \{txt\}, the record has only n, text"):
        Template.parse("{txt} {answer}").fill(RECORD, toy_lm())
    with pytest.raises(ConfigError, match="cut names"):
        Template.parse("{text} {answer}", cut=["b"])


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "t5", "bart"])
def test_a_text_is_read_as_if_it_were_written_out(name: str) -> None:
    lm = toy_lm(name)
    row = Template.parse("text: {text} ({n}) answer: {answer}").row(RECORD, lm)
    written = lm.encode("text: the cat sat on the mat (3) answer:")
    assert text_ids(row) == (*lm.bos_ids, *written, *lm.close_ids)


def test_the_mask_stands_in_the_answers_place() -> None:
    lm = toy_masked_lm()
    filled = Template.parse("it was {answer}. {text}").fill(RECORD, lm)
    ids = text_ids(filled.row)
    assert filled.mask == ids.index(MASK) == len(lm.bos_ids) + 2 and ids.count(MASK) == 1
    wide = text_ids(filled.widened(3).row)
    assert wide == ids[: filled.mask] + (MASK,) * 3 + ids[filled.mask + 1 :]


def test_the_sentinel_stands_where_the_input_goes_on() -> None:
    lm = toy_sentinel_lm()
    sentinel = lm.tokenizer.get_vocab()["<extra_id_0>"]
    inside = Template.parse("it was {answer}. {text}").fill(RECORD, lm)
    assert sentinel in text_ids(inside.row) and inside.starts == (sentinel,)
    last = Template.parse("{text} it was {answer}").fill(RECORD, lm)
    assert sentinel not in text_ids(last.row) and last.starts == ()
    asked = Template.parse("{text} it was {answer}", sentinel=True).fill(RECORD, lm)
    assert text_ids(asked.row)[-2:] == (sentinel, *lm.close_ids) and asked.starts == (sentinel,)


def test_hosts_that_cannot_answer_there() -> None:
    inside = Template.parse("{answer} {text}")
    with pytest.raises(ConfigError, match=r"goes on after \{answer\}, but a decoder-only LM"):
        inside.fill(RECORD, toy_lm())
    with pytest.raises(ConfigError, match="needs the sentinel <extra_id_0>"):
        inside.fill(RECORD, toy_lm("bart"))


def test_one_id_is_one_set_of_vectors_that_begin_at_the_words() -> None:
    lm = toy_lm()
    template = Template.parse(SOFT)
    slots = SoftSlots.create(lm, [template, Template.parse("{soft:tail} {text} {answer}")], seed=3)
    assert {id_: tuple(slots.vectors[id_].shape) for id_ in slots.ids} == {"lead": (2, 32), "tail": (3, 32)}
    assert sum(p.numel() for p in slots.parameters()) == SoftSlots.parameter_count(32, [2, 3]) == 160
    torch.testing.assert_close(slots.vectors["lead"].detach(), lm.embed(torch.tensor(lm.encode("it was"))).float())
    soft = [segment for segment in template.row(RECORD, lm, slots=slots) if isinstance(segment, Soft)]
    assert [len(one) for one in soft] == [2, 2, 3] and soft[0].vectors is soft[1].vectors
    with pytest.raises(ConfigError, match="soft slot 'lead', none were given"):
        template.row(RECORD, lm)
    with pytest.raises(ConfigError, match="soft slot 'b', there are lead, tail"):
        Template.parse("{soft:b} {answer}").row(RECORD, lm, slots=slots)


def test_soft_slots_are_kept(tmp_path) -> None:
    lm = toy_lm()
    slots = SoftSlots.create(lm, Template.parse(SOFT), seed=1)
    slots.save(tmp_path, lm)
    again = SoftSlots.load(tmp_path, lm)
    assert {k: v.tolist() for k, v in again.state_dict().items()} == {
        k: v.tolist() for k, v in slots.state_dict().items()
    }


@pytest.mark.parametrize("id_", ["type", "keys", "training", "_keys", "_parameters", "forward"])
def test_a_slot_may_be_called_anything(id_: str, tmp_path) -> None:
    lm, template = toy_lm(), Template.parse(f"{{soft:{id_}*2}} {{text}} {{answer}}")
    slots = SoftSlots.create(lm, template).train().eval()
    assert slots.ids == [id_] and len(slots.state_dict()) == 1 and not slots.training
    template.row(RECORD, lm, slots=slots)[0].vectors.sum().backward()  # type: ignore[union-attr]
    assert all(one.grad is not None for one in slots.to("cpu").parameters())
    slots.save(tmp_path, lm)
    again = SoftSlots.load(tmp_path, lm)
    assert again.ids == [id_] and torch.equal(again.of(id_), slots.of(id_))
    again.load_state_dict(slots.state_dict())


def test_the_longest_field_gives_way_first_and_nothing_else_does() -> None:
    lm = toy_lm()
    template = Template.parse("question: {a} text: {b} answer: {answer}")
    record = {"a": "the cat", "b": "one two three red blue green"}
    whole = template.fill(record, lm)
    literals = len(lm.encode("question: text: answer:"))
    assert whole.cut == 0 and whole.length == literals + 2 + 6
    less = template.fill(record, lm, max_tokens=literals + 2 + 4)
    assert (less.cut, lm.decode(text_ids(less.row))) == (
        2,
        lm.decode(lm.encode("question: the cat text: one two three red answer:")),
    )
    least = template.fill(record, lm, max_tokens=literals + 1)
    assert (least.cut, lm.decode(text_ids(least.row))) == (7, lm.decode(lm.encode("question: the text: answer:")))
    other = Template.parse(str(template), cut=["a", "b"]).fill(record, lm, max_tokens=literals + 7, reserve=1)
    assert lm.decode(text_ids(other.row)) == lm.decode(
        lm.encode("question: text: one two three red blue green answer:")
    )
    with pytest.raises(
        ShapeError, match=f"takes {literals} tokens with the fields it may cut left empty; the room is 3"
    ):
        template.fill(record, lm, max_tokens=3)


def test_the_mask_is_never_cut() -> None:
    lm = toy_masked_lm()
    filled = Template.parse("{text} it was {answer}").fill({"text": "cat " * 200}, lm)
    assert row_length(filled.row) == WINDOW and filled.mask == WINDOW - 2
    assert filled.cut == 200 - (WINDOW - 2 - 3)  # the frame takes two, `it was` and the mask three


def test_a_word_without_spaces_is_cut_by_characters() -> None:
    lm = toy_lm()
    filled = Template.parse("{text} {answer}").fill({"text": "!" * 20}, lm, max_tokens=5)
    assert (filled.length, filled.cut) == (5, 15)


def test_the_space_before_the_answer_belongs_to_its_word() -> None:
    assert Template.parse("it was {answer}").spaced and Template.parse("{text}{answer}").spaced
    assert not Template.parse("a:\n{answer}").spaced and not Template.parse("({answer}").spaced


class ByteLevel:
    """A host whose pieces begin with the space before them, as GPT-2's do."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer(models.BPE())
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
        self.tokenizer.train_from_iterator(["it was great", "great it was\n", "a great"] * 9, trainer)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids


class Metaspace(ByteLevel):
    """A host whose texts begin as if a space came first, as Llama's do."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(models.BPE(byte_fallback=False))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
        trainer = trainers.BpeTrainer(initial_alphabet=[*"abcdefghijklmnopqrstuvwxyz\n"], show_progress=False)
        self.tokenizer.train_from_iterator(["it was great", "great it was", "a great", "a", "a\n\na"] * 9, trainer)


@pytest.mark.parametrize("host", [ByteLevel(), Metaspace()], ids=["gpt2", "llama"])
def test_a_word_reads_as_it_does_within_the_text(host: ByteLevel) -> None:
    spaced, bare = word_ids(host, "great", spaced=True), word_ids(host, "great", spaced=False)  # type: ignore[arg-type]
    assert spaced != bare and spaced[: len(bare)] != bare
    assert host.encode("it was") + spaced == host.encode("it was great")


def test_the_words_of_a_real_tokenizer() -> None:
    lm = FrozenLM.load(EMBEDDED)
    assert lm.encode("It was") + word_ids(lm, "great", spaced=True) == lm.encode("It was great")
    assert lm.encode("\n") + word_ids(lm, "great", spaced=False) == lm.encode("\ngreat")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{soft:a}{n} ({n}) it was {answer}.", "3 (3) it was good."),
        ("{n}{answer}", "3 good"),
        ("{n}\n{soft:x}{answer}", "3\n good"),
        ("{n}\n{soft:x} {answer}", "3\n good"),
        ("{soft:a} {n} {soft:b} {answer}", "3 good"),
        ("{soft:a} {soft:b} {n} {soft:c} {answer} {soft:d}", "3 good"),
        ("{n}{soft:a} was{soft:b} {answer}", "3 was good"),
        ("{n}:\n{answer}", "3:\ngood"),
        ("{soft:a}({answer})", "(good)"),
    ],
)
def test_plain_text_of_a_demonstration(source: str, text: str) -> None:
    assert Template.parse(source).text(RECORD, "good") == text


@pytest.mark.parametrize("host", [ByteLevel(), Metaspace()], ids=["gpt2", "llama"])
@pytest.mark.parametrize(
    "source", ["it was{n}{answer}", "it was\n{soft:x}{answer}", "{soft:a} it {soft:b} {answer}", "it:\n{answer}"]
)
def test_a_demonstration_shows_the_pieces_that_are_scored(host: ByteLevel, source: str) -> None:
    template = Template.parse(source)
    shown = host.encode(template.text({"n": ""}, "great"))
    scored = word_ids(host, "great", spaced=template.spaced)  # type: ignore[arg-type]
    assert shown[-len(scored) :] == scored


def test_empty_texts_say_nothing_and_texts_side_by_side_are_one() -> None:
    parts = [{"field": "n"}, {"text": " is"}, {"text": " "}, {"text": ""}, {"answer": True}, {"text": ""}]
    template = Template.from_parts(parts)
    assert template.parts == Template.parse("{n} is {answer}").parts and template.spaced
    assert Template.from_parts([{"field": "n"}, {"text": ""}, {"answer": True}]).spaced


def test_a_question_about_nothing_says_what_to_change() -> None:
    lm = toy_lm()
    assert lm.bos_ids == () and lm.encode("") == []
    empty = Template.parse("{text} {answer}").fill({"text": ""}, lm, where="record 7")
    with pytest.raises(ConfigError, match=r"record 7: template reads nothing to this LM.*text before \{answer\}"):
        _ = empty.row
    shown = Demonstrations([{"text": "the cat", "label": "pos"}, {"text": "a king", "label": "neg"}], k=1)
    words = Verbalizer({"pos": "blue", "neg": "red"})
    for calibration in (ContextualCalibration(), DomainPMI()):
        with pytest.raises(ConfigError, match=r"content-free input: .*other calibration texts or a premise"):
            Prompt(Template.parse("{text} {answer}"), words, calibration=calibration).classify(lm, [RECORD])
        Prompt(Template.parse("{text} is {answer}"), words, calibration=calibration).classify(lm, [RECORD])
        # Behind a demonstration of its own, a question about nothing is one.
        asked = Prompt(Template.parse("{text} {answer}"), words, demonstrations=shown)
        assert all(one.row for one in asked.fill(lm, [{"text": ""}]))
