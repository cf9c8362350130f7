"""What has been read once is never read again, and going on from it equals reading in one go."""

import pytest
import torch

from frozenlm import Memory, Soft, Tokens
from frozenlm.errors import CheckpointError, ShapeError
from tests.toys import DECODERS, toy_lm

A, B, C = [20, 21, 22, 23, 24], [30, 31], [40, 41, 42]
EXACT = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module", params=DECODERS)
def lm(request):
    return toy_lm(request.param)


def text(*parts):
    return [Tokens.of([i for part in parts for i in part])]


def soft(lm, n=3, requires_grad=False):
    vectors = torch.randn(n, lm.hidden_size, generator=torch.Generator().manual_seed(1))
    return Soft(vectors.requires_grad_(requires_grad))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_going_on_equals_one_go(name, side):
    lm = toy_lm(name, padding_side=side)
    memory = lm.read([text(A), text(B)])
    prompt = soft(lm)
    parts = lm.forward([[prompt, *text(C)], text(C, B)], memory=memory).logits
    whole = lm.forward([[*text(A), prompt, *text(C)], text(B, C, B)]).logits
    torch.testing.assert_close(parts[0], whole[0][len(A) :], **EXACT)
    torch.testing.assert_close(parts[1], whole[1][len(B) :], **EXACT)


def test_a_memory_goes_on_to_a_longer_memory(lm):
    twice = lm.read([text(C), text(A)], memory=lm.read([text(A), text(B)]))
    assert twice.lengths.tolist() == [8, 7]
    parts = lm.forward([text(B), text(B)], memory=twice).logits
    whole = lm.forward([text(A, C, B), text(B, A, B)]).logits
    for mine, all_of_it in zip(parts, whole, strict=True):
        torch.testing.assert_close(mine, all_of_it[-len(B) :], **EXACT)


def test_one_memory_for_many_rows_of_different_lengths(lm):
    memory = lm.read([text(A)]).expand(3)
    assert len(memory) == 3 and memory.keys[0].stride(0) == 0  # no copy was made
    rows = [[soft(lm), *text(B)], text(C), [*text(B), soft(lm, 5), *text(C)]]
    answers = [[50, 51], [52], [53, 54, 55]]
    found = lm.token_logprobs(rows, answers, memory=memory)
    whole = lm.token_logprobs([[*text(A), *row] for row in rows], answers)
    for mine, wanted in zip(found, whole, strict=True):
        torch.testing.assert_close(mine, wanted, **EXACT)
    assert lm.score(rows, answers, memory=memory, batch_tokens=20) == pytest.approx(
        [float(one.sum()) for one in whole], abs=1e-4
    )


def test_several_answers_for_the_same_memory(lm):
    memory = lm.read([text(A), text(B)])
    rows, answers = [text(C)] * 4, [[50], [51, 52], [53], [54]]
    found = lm.score(rows, answers, memory=memory.select([0, 0, 1, 1]))
    wanted = lm.score([text(A, C), text(A, C), text(B, C), text(B, C)], answers)
    assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3, "num_return_sequences": 2}])
def test_generation_from_a_memory_equals_one_go(lm, options):
    memory = lm.read([text(A), text(B)])
    found = lm.generate([text(C), [soft(lm), *text(A)]], memory=memory, max_new_tokens=5, **options)
    wanted = lm.generate([text(A, C), [*text(B), soft(lm), *text(A)]], max_new_tokens=5, **options)
    flat = [(a, b) for a, b in zip(found, wanted, strict=True)]
    if "seed" in options:
        flat = [pair for one, two in flat for pair in zip(one, two, strict=True)]
    for mine, theirs in flat:
        assert mine.ids == theirs.ids
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_hidden_states_from_a_memory(lm):
    found = lm.hidden_states([text(C)], memory=lm.read([text(A)]))
    torch.testing.assert_close(found[0], lm.hidden_states([text(A, C)])[0][len(A) :], **EXACT)


def test_gradients_flow_to_soft_segments_after_the_memory(lm):
    grads = []
    for memory in (lm.read([text(A), text(B)]), None):
        prompt = soft(lm, requires_grad=True)
        rows = [[prompt, *text(C)], [*text(C), prompt]]
        if memory is None:
            rows = [[*text(A), *rows[0]], [*text(B), *rows[1]]]
        torch.cat(lm.token_logprobs(rows, [[50, 51], [52]], memory=memory)).sum().backward()
        grads.append(prompt.vectors.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)


def test_the_stored_tensors_never_change(lm):
    prompt = soft(lm, requires_grad=True)
    memory = lm.read([[prompt, *text(A)], text(B)])
    assert not any(t.requires_grad for t in (*memory.keys, *memory.values))
    before = [t.clone() for t in (*memory.keys, *memory.values, memory.mask, memory.lengths)]
    torch.cat(lm.token_logprobs([[prompt], text(C)], [[5], [6]], memory=memory)).sum().backward()
    lm.generate([text(C), text(B)], memory=memory, max_new_tokens=4, num_beams=2)
    lm.read([text(C), text(B)], memory=memory)
    after = (*memory.keys, *memory.values, memory.mask, memory.lengths)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_activations_of_the_context_are_not_kept():
    """Memory kept for backward: with the context read before, far less than with it read again."""
    lm = toy_lm("opt", max_position_embeddings=600)
    context = [Tokens((9,) * 500)]
    kept = []
    for memory in (lm.read([context]), None):
        prompt = soft(lm, requires_grad=True)
        row = [prompt] if memory is not None else [prompt, *context]  # a prefix prompt makes the text depend on it
        saved = {}

        def pack(tensor, saved=saved):
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            lm.token_logprobs([row], [[5]], memory=memory)
        kept.append(sum(saved.values()))
    assert kept[0] < kept[1] / 3


def test_reading_in_batches_equals_reading_at_once(lm):
    rows = [text(range(10, 10 + n)) for n in (2, 9, 5, 1)]
    once, parts = lm.read(rows), lm.read(rows, batch_tokens=10)
    assert parts.lengths.tolist() == once.lengths.tolist() == [2, 9, 5, 1]
    for mine, wanted in zip(
        lm.forward([text(C)] * 4, memory=parts).logits, lm.forward([text(C)] * 4, memory=once).logits, strict=True
    ):
        torch.testing.assert_close(mine, wanted, **EXACT)


def test_select_drops_unused_columns(lm):
    memory = lm.read([text(A), text(B)])
    assert memory.keys[0].shape[2] == 5
    assert memory.select([1]).keys[0].shape[2] == 2
    assert memory.select([1, 0, 1]).lengths.tolist() == [2, 5, 2]
    assert memory.select([1]).nbytes < memory.nbytes


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_round_trip_on_disk(name, tmp_path):
    lm = toy_lm(name)
    memory = lm.read([text(A), text(B)])
    memory.save(tmp_path / "memory")
    loaded = Memory.load(tmp_path / "memory", lm.fingerprint)
    assert loaded.nbytes == memory.nbytes and torch.equal(loaded.mask, memory.mask)
    rows = [text(C)] * 2 if lm.kind == "decoder" else [[], []]
    assert lm.score(rows, [[5], [6]], memory=loaded) == lm.score(rows, [[5], [6]], memory=memory)
    with pytest.raises(CheckpointError, match="another LM"):
        Memory.load(tmp_path / "memory", "0" * 64)


def test_the_memory_of_another_lm_is_refused():
    memory = toy_lm("gpt2", seed=1).read([text(A)])
    with pytest.raises(CheckpointError, match="read by another LM"):
        toy_lm("gpt2").forward([text(B)], memory=memory)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoders_memory_is_decoded_from_but_not_continued(name):
    lm = toy_lm(name)
    memory = lm.read([text(A), text(B)])
    answers = [[50, 51], [52]]
    assert lm.score([[], []], answers, memory=memory) == pytest.approx(lm.score([text(A), text(B)], answers), abs=1e-4)
    assert lm.score([[]] * 3, [[50], [51], [52]], memory=memory.select([1, 0, 1])) == pytest.approx(
        lm.score([text(B), text(A), text(B)], [[50], [51], [52]]), abs=1e-4
    )
    assert [g.ids for g in lm.generate([[], []], memory=memory, max_new_tokens=4)] == [
        g.ids for g in lm.generate([text(A), text(B)], max_new_tokens=4)
    ]
    for use in (
        lambda: lm.score([text(C), text(C)], answers, memory=memory),
        lambda: lm.read([text(C), text(C)], memory=memory),
        lambda: lm.hidden_states([text(C), text(C)], memory=memory),
    ):
        with pytest.raises(ShapeError, match="cannot go on from a memory"):
            use()
    with pytest.raises(ShapeError, match="not keys and values"):
        memory.to_cache()


def test_what_does_not_fit_is_refused(lm):
    memory = lm.read([text(A), text(B)])
    with pytest.raises(ShapeError, match="1 rows go on from a memory of 2"):
        lm.forward([text(C)], memory=memory)
    with pytest.raises(ShapeError, match="memory of one row, this one has 2"):
        memory.expand(3)
    with pytest.raises(ShapeError, match="n of at least 1"):
        memory.select([0]).expand(0)
    for indices in ([], [2], [-1]):
        with pytest.raises(ShapeError, match="select needs indices"):
            memory.select(indices)
    with pytest.raises(ShapeError, match="row 0 is too long: 92 tokens after a memory of 5"):
        lm.forward([text([9] * 92), text(C)], memory=memory)
    with pytest.raises(ShapeError, match="row 0 is empty"):
        lm.forward([[], text(C)], memory=memory)
    half = Memory(
        *((tuple(t.half() for t in group)) for group in (memory.keys, memory.values)),
        memory.mask,
        memory.lengths,
        memory.lm_fingerprint,
    )
    with pytest.raises(ShapeError, match=r"memory is torch.float16"):
        lm.forward([text(C), text(C)], memory=half)
    with pytest.raises(ShapeError, match="at least one memory"):
        Memory.concatenate([])
