"""A frozen encoder, a head and any delta: classification, tagging and spans, trained, measured and kept."""

import pytest
import torch
from tokenizers import processors
from transformers import MambaConfig, MambaModel

from frozenlm.deltas.bitfit import BitFit
from frozenlm.deltas.p_tuning_v2 import PTuningV2
from frozenlm.deltas.prefix_tuning import PrefixTuning
from frozenlm.encoder import FrozenEncoder
from frozenlm.encoder_inputs import encoder_inputs, pair_frame, read_inputs
from frozenlm.encoder_spans import SpanQuestion, predict_spans, span_logits, span_loss
from frozenlm.encoder_tags import TaggedWords, predict_tags, tagging_logits, tagging_loss
from frozenlm.encoder_tasks import LabelledText, TunedEncoder, classification_logits, classification_loss, predict
from frozenlm.errors import CheckpointError, ConfigError, ShapeError
from frozenlm.task_heads import (
    ClassificationHead,
    SpanHead,
    TaggingHead,
    head_parameter_count,
    load_head,
    sees_only_before,
)
from frozenlm.train_settings import TrainSettings
from frozenlm.training import fit
from tests.test_frozen import state_of
from tests.toys import (
    BOS,
    ENCODERS,
    EOS,
    SEP,
    VOCAB_SIZE,
    toy_encoder,
    toy_encoder_model,
    toy_encoder_tokenizer,
    toy_model,
    toy_tokenizer,
)

PAIRS = [
    LabelledText("who was the king", "a king of france", "yes"),
    LabelledText("what is blue", "the cat sat on the mat", "no"),
    LabelledText("where is paris", None, "yes"),
    LabelledText("the dog", "", "no"),
]
TAGGED = [
    TaggedWords(("the", "king", "of", "france"), ("O", "PER", "O", "LOC")),
    TaggedWords(("paris,", "blue"), ("LOC", "O")),
]
PASSAGE = "the king sat in paris , france"
SPANS = [SpanQuestion("where", PASSAGE, 16, 21), SpanQuestion("who was it", PASSAGE, 0, 8)]


def bert_with_pairs() -> FrozenEncoder:
    """Whose tokenizer frames pairs as BERT's does."""
    tokenizer = toy_encoder_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [SEP]",
        pair="[BOS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[BOS]", BOS), ("[SEP]", SEP)],
    )
    return FrozenEncoder.from_model(toy_encoder_model("bert"), tokenizer)


def ids_of(encoder: FrozenEncoder, *texts: str) -> list[tuple[int, ...]]:
    return [tuple(encoder.codec.encode(text)) for text in texts]


def test_a_pair_is_framed_as_the_tokenizer_does() -> None:
    encoder = bert_with_pairs()
    one = encoder_inputs(encoder, [("who was", "a king of")])[0]
    a, b = ids_of(encoder, "who was", "a king of")
    assert one.ids == (BOS, *a, SEP, *b, SEP)
    assert list(one.ids) == encoder.tokenizer("who was", "a king of")["input_ids"]
    assert one.segments == (0, 0, 0, 0, 1, 1, 1, 1)
    theirs = encoder.tokenizer("who was", "a king of", return_token_type_ids=True)
    assert one.segments == tuple(theirs["token_type_ids"])
    assert (one.first, one.second, one.cut) == (range(1, 3), range(4, 7), False)
    assert [one.ids[k] for k in one.second] == list(b)


def test_a_tokenizer_without_pairs_gets_a_separator() -> None:
    encoder = toy_encoder("t5")
    frame = pair_frame(encoder)
    assert (frame.before, frame.between, frame.after) == ((), (SEP,), (EOS,))
    assert pair_frame(toy_encoder("bert")).between == (SEP,)


def test_a_single_text_is_what_the_encoder_makes_of_it() -> None:
    for name in ENCODERS:
        encoder = toy_encoder(name)
        texts = ["who was the king", "blue"]
        hidden, mask = read_inputs(encoder, encoder_inputs(encoder, [(text, None) for text in texts]))
        expected, their_mask = encoder.features(texts)
        assert torch.equal(mask, their_mask) and torch.equal(hidden[mask], expected[mask])
        head = ClassificationHead.create(encoder, ["a", "b"])
        logits = classification_logits(encoder, head, None, [LabelledText(text) for text in texts])
        torch.testing.assert_close(logits, head.linear(encoder.vectors(texts)))


def test_segments_reach_the_encoder() -> None:
    encoder = bert_with_pairs()
    theirs = encoder.tokenizer("who was", "a king", return_token_type_ids=True, return_tensors="pt")
    assert theirs["token_type_ids"].any()
    with torch.no_grad():
        ours, _ = read_inputs(encoder, encoder_inputs(encoder, [("who was", "a king")]))
        torch.testing.assert_close(ours, encoder.model(**theirs).last_hidden_state)


@pytest.mark.parametrize(
    ("a", "b", "kept"),
    [(20, 3, (9, 3)), (3, 20, (3, 9)), (20, 20, (6, 6)), (2, 10, (2, 10)), (12, 0, (12, 0)), (13, 0, (12, 0))],
)
def test_the_longer_text_of_a_pair_is_cut(a: int, b: int, kept: tuple[int, int]) -> None:
    encoder = bert_with_pairs()
    encoder.max_length = 15  # 12 and three control tokens
    one = encoder_inputs(encoder, [(" ".join(["king"] * a), " ".join(["blue"] * b))])[0]
    assert (len(one.first), len(one.second)) == kept
    assert encoder.truncated == (a + b > 12)


def test_a_prefix_takes_room_from_the_text() -> None:
    encoder = toy_encoder("bert")  # 96 positions, two go to the frame
    delta = PTuningV2.create(encoder, 10)
    head = ClassificationHead.create(encoder, ["a", "b"])
    classification_logits(encoder, head, delta, [LabelledText("king " * 84)])
    assert encoder.truncated == 0
    classification_logits(encoder, head, delta, [LabelledText("king " * 85)])
    assert encoder.truncated == 1


DELTAS = {
    "none": lambda encoder: None,
    "p_tuning_v2": lambda encoder: PTuningV2.create(encoder, 3),
    "prefix_tuning": lambda encoder: PrefixTuning.create(encoder, 3, middle_size=8),
    "bitfit": BitFit.create,
}


def losses_of(encoder: FrozenEncoder, tuned: TunedEncoder):
    if isinstance(tuned.head, ClassificationHead):
        return PAIRS, lambda part: classification_loss(encoder, tuned.head, tuned.delta, part)
    if isinstance(tuned.head, TaggingHead):
        return TAGGED, lambda part: tagging_loss(encoder, tuned.head, tuned.delta, part)
    return SPANS, lambda part: span_loss(encoder, tuned.head, tuned.delta, part)


@pytest.mark.parametrize(
    ("name", "method", "task"),
    [
        *(("bert", method, "classes") for method in ("none", "prefix_tuning", "bitfit")),
        *((name, "p_tuning_v2", task) for name in ENCODERS for task in ("classes", "tags", "spans")),
    ],
)
def test_train_save_load(name: str, method: str, task: str, tmp_path) -> None:
    encoder = toy_encoder(name)
    heads = {
        "classes": lambda: ClassificationHead.create(encoder, ["no", "yes"]),
        "tags": lambda: TaggingHead.create(encoder, ["O", "PER", "LOC"]),
        "spans": lambda: SpanHead.create(encoder),
    }
    delta = DELTAS[method](encoder)
    tuned = TunedEncoder(heads[task](), delta)
    before = state_of(encoder.model)
    start = {key: p.detach().clone() for key, p in tuned.named_parameters()}
    examples, loss = losses_of(encoder, tuned)
    settings = TrainSettings(steps=15, batch_size=len(examples), learning_rate=0.05)
    result = fit(
        tuned, examples=examples, loss=loss, out=tmp_path / "run", settings=settings, lm=encoder, progress=False
    )
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    assert state_of(encoder.model) == before and "changed: 0 of" in str(result.verification)
    assert [key for key, p in tuned.named_parameters() if torch.equal(p, start[key])] == []

    tuned.save(tmp_path / "saved", encoder)
    loaded = TunedEncoder.load(tmp_path / "saved", encoder, delta=None if delta is None else type(delta))
    assert torch.equal(losses_of(encoder, loaded)[1](examples)[0], loss(examples)[0])


def causal_encoder(name: str) -> FrozenEncoder:
    """An LM's body, without its head."""
    if name == "mamba":  # which has no attention to ask
        sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 24, "state_size": 4, "num_hidden_layers": 2}
        return FrozenEncoder.from_model(MambaModel(MambaConfig(**sizes)).eval(), toy_tokenizer())
    return FrozenEncoder.from_model(toy_model(name).base_model, toy_tokenizer())


@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba"])
def test_the_first_token_of_a_causal_model_is_refused(name: str, tmp_path) -> None:
    encoder = causal_encoder(name)
    assert sees_only_before(encoder)
    with pytest.raises(ConfigError, match="'first', which is not defined for causal models such as"):
        ClassificationHead.create(encoder, ["no", "yes"], pool="first")
    ClassificationHead(["no", "yes"], encoder.hidden_size, pool="first").save(tmp_path, encoder)
    with pytest.raises(ConfigError, match="not defined for causal models"):
        load_head(tmp_path, encoder)
    head = ClassificationHead.create(encoder, ["no", "yes"], pool="last")
    texts = [LabelledText("who was the king"), LabelledText("blue"), LabelledText("what was the king")]
    found = [one.probabilities["yes"] for one in predict(encoder, head, None, texts)]
    assert len(set(found)) == 3
    alone = [predict(encoder, head, None, [one])[0].probabilities["yes"] for one in texts]
    assert found == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_are_not_causal(name: str) -> None:
    encoder = toy_encoder(name)
    assert not sees_only_before(encoder)
    with torch.inference_mode():
        assert not sees_only_before(encoder)


def test_the_last_token_on_whichever_side_is_padded() -> None:
    head = ClassificationHead(["no", "yes"], 1, pool="last")
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0], [2.0]]))
        head.linear.bias.zero_()
    hidden = torch.arange(12.0).view(3, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    assert head(hidden, mask).tolist() == [[1, 2], [7, 14], [11, 22]]
    assert head(hidden[:, :1], mask[2:, :1].expand(3, 1)).tolist() == [[0, 0], [4, 8], [8, 16]]


def test_predictions() -> None:
    """Heads whose answers are known: the encoder's features do not count, the biases decide."""
    encoder = toy_encoder("bert")
    head = ClassificationHead.create(encoder, ["no", "yes"])
    tags, spans = TaggingHead.create(encoder, ["O", "PER"]), SpanHead.create(encoder)
    with torch.no_grad():
        for part in (head, tags, spans):
            for parameter in part.parameters():
                parameter.zero_()
        head.linear.bias[1] = 1.0  # p = 1 / (1 + e^-1)
        tags.linear.bias[1] = 1.0
    found = predict(encoder, head, None, PAIRS, batch_size=3)
    assert [one.label for one in found] == ["yes"] * 4
    assert found[0].probabilities["yes"] == pytest.approx(1 / (1 + torch.e**-1), abs=1e-6)
    assert predict_tags(encoder, tags, None, TAGGED, batch_size=1) == [["PER"] * 4, ["PER"] * 2]
    span = predict_spans(encoder, spans, None, SPANS)[0]
    tokens = len(encoder.codec.encode(PASSAGE))
    assert span.text == PASSAGE[span.start : span.end]
    assert span.score == pytest.approx(2 * torch.tensor(1 / tokens).log().item(), abs=1e-5)


def test_a_trained_span_is_found_again(tmp_path) -> None:
    encoder = bert_with_pairs()
    tuned = TunedEncoder(SpanHead.create(encoder), PTuningV2.create(encoder, 2))
    examples, loss = losses_of(encoder, tuned)
    settings = TrainSettings(steps=40, batch_size=2, learning_rate=0.05)
    fit(tuned, examples=examples, loss=loss, out=tmp_path, settings=settings, lm=encoder, progress=False)
    assert [one.text for one in predict_spans(encoder, tuned.head, tuned.delta, SPANS)] == ["paris", "the king"]
    assert len(predict_spans(encoder, tuned.head, tuned.delta, SPANS, longest=1)[1].text.split()) == 1


def test_tags_stand_at_first_pieces() -> None:
    encoder, head = toy_encoder("bert"), TaggingHead(["O", "B"], 24)
    example = TaggedWords(("who", "king,", "!?", "paris"))  # 1, 2, 2 and 1 tokens
    hidden, _ = encoder.features([example.text])
    ((words, logits),) = tagging_logits(encoder, head, None, [example])
    assert words == [0, 1, 2, 3]
    torch.testing.assert_close(logits, head(hidden[0, [1, 2, 4, 6]]))


def test_words_without_a_token_and_words_cut_off() -> None:
    encoder = toy_encoder("bert", max_length=5)
    head = TaggingHead.create(encoder, ["O", "B"])
    tags = predict_tags(encoder, head, None, [TaggedWords(("who", "\t", "king", "blue", "paris"))])[0]
    assert [tag is None for tag in tags] == [False, True, False, False, True] and encoder.truncated == 1
    _, units = tagging_loss(encoder, head, None, [TaggedWords(("who", "king", "blue", "paris"), ("O", "O", "B", "B"))])
    assert units == 3


@pytest.mark.parametrize("name", ENCODERS)
def test_examples_alone_and_in_a_batch(name: str) -> None:
    encoder = toy_encoder(name)
    delta = PTuningV2.create(encoder, 3)
    head, spans = ClassificationHead.create(encoder, ["no", "yes"]), SpanHead.create(encoder)
    together = classification_logits(encoder, head, delta, PAIRS)
    alone = torch.cat([classification_logits(encoder, head, delta, [one]) for one in PAIRS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    for (_, batched), one in zip(span_logits(encoder, spans, delta, SPANS), SPANS, strict=True):
        torch.testing.assert_close(batched, span_logits(encoder, spans, delta, [one])[0][1], rtol=0, atol=1e-5)


def test_heads_are_kept_exactly(tmp_path) -> None:
    encoder = toy_encoder("bert")
    made = (
        ClassificationHead.create(encoder, ["a", "b", "c"], pool="first"),
        ClassificationHead.create(encoder, ["a", "b", "c"], pool="last"),
        TaggingHead.create(encoder, ["O", "B"]),
        SpanHead.create(encoder),
    )
    for head, outputs in zip(made, (3, 3, 2, 2), strict=True):
        assert sum(p.numel() for p in head.parameters()) == head_parameter_count(24, outputs) == 25 * outputs
        head.save(tmp_path / head.KIND, encoder)
        loaded = load_head(tmp_path / head.KIND, encoder)
        assert type(loaded) is type(head) and getattr(loaded, "labels", ()) == getattr(head, "labels", ())
        assert getattr(loaded, "pool", None) == getattr(head, "pool", None)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), head.parameters(), strict=True))
        with pytest.raises(CheckpointError, match="another LM"):
            load_head(tmp_path / head.KIND, toy_encoder("bert", seed=1))
    PTuningV2.create(encoder, 2).save(tmp_path / "delta", encoder)
    with pytest.raises(CheckpointError, match="holds a p_tuning_v2"):
        load_head(tmp_path / "delta", encoder)


def test_a_folder_of_two_trainings_is_refused(tmp_path) -> None:
    encoder = toy_encoder("bert")
    for seed in (0, 1):
        head = ClassificationHead.create(encoder, ["a", "b"], seed=seed)
        TunedEncoder(head, PTuningV2.create(encoder, 2, seed=seed)).save(tmp_path / str(seed), encoder)
    with pytest.raises(CheckpointError, match="holds delta and head, and head was asked for"):
        TunedEncoder.load(tmp_path / "0", encoder)
    ClassificationHead.create(encoder, ["a", "b"], seed=1).save(tmp_path / "0" / "head", encoder)
    with pytest.raises(CheckpointError, match="not of one training"):
        TunedEncoder.load(tmp_path / "0", encoder, delta=PTuningV2)
    with pytest.raises(CheckpointError, match=r"tuned\.json"):
        TunedEncoder.load(tmp_path / "nothing", encoder)


def test_bad_input() -> None:
    encoder = toy_encoder("bert")
    head = ClassificationHead.create(encoder, ["no", "yes"])
    tags, spans = TaggingHead.create(encoder, ["O", "B"]), SpanHead.create(encoder)
    for labels in (["a"], ["a", "a"], "ab", [1, 2]):
        with pytest.raises(ConfigError, match="at least two labels"):
            ClassificationHead.create(encoder, labels)
    with pytest.raises(ConfigError, match="pool is 'max'"):
        ClassificationHead.create(encoder, ["a", "b"], pool="max")
    with pytest.raises(ConfigError, match="'maybe' is not one of the head's: no, yes"):
        classification_loss(encoder, head, None, [LabelledText("blue", label="maybe")])
    with pytest.raises(ConfigError, match="no label to learn from for 'blue'"):
        classification_loss(encoder, head, None, [LabelledText("blue")])
    with pytest.raises(ShapeError, match="no text"):
        classification_logits(encoder, head, None, [])
    with pytest.raises(ShapeError, match="2 words with 1 labels"):
        TaggedWords(("a", "b"), ("O",))
    with pytest.raises(ShapeError, match="no labels to learn from"):
        tagging_loss(encoder, tags, None, [TaggedWords(("a",))])
    with pytest.raises(ShapeError, match=r"passage\[None:None\]"):
        span_loss(encoder, spans, None, [SpanQuestion("who", PASSAGE)])
    with pytest.raises(ShapeError, match="has no token"):
        span_loss(encoder, spans, None, [SpanQuestion("who", "", 0, 1)])
    with pytest.raises(ShapeError, match="may not be cut"):
        span_loss(encoder, spans, None, [SpanQuestion("who " * 100, PASSAGE, 0, 3)])
    with pytest.raises(ShapeError, match=r"passage\[3:4\], ' ', which has no token"):
        span_loss(encoder, spans, None, [SpanQuestion("who", PASSAGE, 3, 4)])
    with pytest.raises(ConfigError, match="longest is 0; expected at least 1"):
        predict_spans(encoder, spans, None, SPANS, longest=0)
    with pytest.raises(ShapeError, match="that are read"):
        span_loss(encoder, spans, None, [SpanQuestion("who", "blue " * 100 + "king", 500, 504)])
