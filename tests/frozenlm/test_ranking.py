"""Ranking choices: equal to scoring whole rows, one by one, with transformers alone; and each context read once."""

import pytest
import torch

from frozenlm.context_cache import ContextCache
from frozenlm.errors import ConfigError, FrozenLMError, ShapeError
from frozenlm.lm import FrozenLM
from frozenlm.prompts.interface import PromptInput
from frozenlm.prompts.soft_prompt import SoftPrompt
from frozenlm.ranking import rank_choices, split_last
from frozenlm.rows import Soft, Tokens
from tests.toys import WINDOW, toy_lm

CONTEXTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [20, 21, 22, 23], [30]]
SINGLE = [[[40], [41], [42]], [[40], [41], [42]], [[50], [51]], [[60]]]
LONG = [[[40, 41], [42]], [[43, 44, 45], [46, 47]], [[48], [49, 50, 51, 52]], [[53, 54], [55]]]
MIXED = [SINGLE[0], LONG[1], SINGLE[2], LONG[3]]
SOURCES = [PromptInput(f"text {n}") for n in range(4)]


class Written(torch.nn.Module):
    """A prompt that differs from input to input: input "text n" is answered with n added to every number."""

    def __init__(self, position: str, length: int = 3) -> None:
        super().__init__()
        self.position, self.length, self.asked = position, length, []
        self.vectors = torch.nn.Parameter(torch.randn(length, 32, generator=torch.Generator().manual_seed(2)) * 0.5)

    def segments(self, inputs):
        self.asked.extend(inputs)
        return [Soft(self.vectors + 0.3 * int(one.text.split()[1])) for one in inputs]


def whole_row(
    lm: FrozenLM, context: list[int], choice: list[int], prompt: Written | None, source: PromptInput
) -> float:
    """log p(choice), from transformers alone: one unpadded row, all of it in one forward pass."""
    parts = [lm.embed(torch.tensor(context))]
    if prompt is not None:
        vectors = prompt.segments([source])[0].vectors
        parts = [vectors, *parts] if prompt.position == "prefix" else [*parts, vectors]
    if lm.kind == "decoder":
        row = torch.cat([*parts, lm.embed(torch.tensor(choice))])[None]
        logits = lm.model(inputs_embeds=row).logits[0, -len(choice) - 1 : -1]
    else:
        decoder_ids = torch.tensor([[*lm.start_ids, *choice[:-1]]])
        logits = lm.model(inputs_embeds=torch.cat(parts)[None], decoder_input_ids=decoder_ids).logits[0]
        logits = logits[-len(choice) :]
    return float(logits.log_softmax(dim=1).gather(1, torch.tensor(choice)[:, None]).sum())


def expected(lm: FrozenLM, choices: list, prompt: Written | None) -> list[list[float]]:
    with torch.no_grad():
        return [
            [whole_row(lm, context, choice, prompt, source) for choice in own]
            for context, own, source in zip(CONTEXTS, choices, SOURCES, strict=True)
        ]


def assert_same(got: list[list[float]], wanted: list[list[float]]) -> None:
    assert [len(row) for row in got] == [len(row) for row in wanted]
    for mine, plain in zip(got, wanted, strict=True):
        assert mine == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("choices", [SINGLE, LONG, MIXED], ids=["single", "long", "mixed"])
@pytest.mark.parametrize("position", ["prefix", "suffix", None])
@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "t5", "bart"])
def test_scores_equal_those_of_whole_rows(name: str, position: str | None, choices: list) -> None:
    lm = toy_lm(name)
    prompt = None if position is None else Written(position)
    wanted = expected(lm, choices, prompt)
    assert_same(rank_choices(lm, CONTEXTS, choices, prompt, SOURCES), wanted)
    assert_same(rank_choices(lm, CONTEXTS, choices, prompt, SOURCES, batch_tokens=9), wanted)
    lm.assert_unchanged()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_left_padding_and_a_cache_of_contexts_change_nothing(name: str) -> None:
    lm, prompt = toy_lm(name, padding_side="left"), Written("suffix")
    cache = ContextCache(lm)
    for choices in (SINGLE, LONG, MIXED):
        wanted = expected(lm, choices, prompt)
        assert_same(rank_choices(lm, CONTEXTS, choices, prompt, SOURCES), wanted)
        assert_same(rank_choices(lm, CONTEXTS, choices, prompt, SOURCES, memory_cache=cache), wanted)
    assert (cache.counts.read, cache.counts.found) == (4, 8)


@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_a_prompt_of_one_vector_and_contexts_of_nothing(position: str) -> None:
    lm, prompt = toy_lm("gpt2"), Written(position, length=1)
    for choices in (SINGLE, LONG):
        got = rank_choices(lm, CONTEXTS, choices, prompt, SOURCES, memory_cache=ContextCache(lm))
        assert_same(got, expected(lm, choices, prompt))
    alone = rank_choices(lm, [[]], [[[40, 41]]], prompt, SOURCES[:1])
    row = torch.cat([prompt.vectors, lm.embed(torch.tensor([40, 41]))])[None]
    logits = lm.model(inputs_embeds=row).logits[0].log_softmax(dim=1).detach()
    assert alone == [[pytest.approx(float(logits[0, 40] + logits[1, 41]), abs=1e-4)]]


def test_mean_over_tokens() -> None:
    lm = toy_lm()
    sums = rank_choices(lm, CONTEXTS, LONG, None, SOURCES)
    means = rank_choices(lm, CONTEXTS, LONG, None, SOURCES, normalize="tokens")
    assert means[1] == pytest.approx([sums[1][0] / 3, sums[1][1] / 2])


def test_the_likeliest_next_token_is_ranked_first() -> None:
    """All V tokens as choices: probabilities sum to one, and the best is what greedy decoding takes."""
    lm = toy_lm("llama")
    [scores] = rank_choices(lm, [CONTEXTS[0]], [[[token] for token in range(lm.vocab_size)]], None, SOURCES[:1])
    assert float(torch.tensor(scores).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    greedy = lm.generate([[Tokens.of(CONTEXTS[0])]], max_new_tokens=1)[0]
    assert max(range(len(scores)), key=scores.__getitem__) == greedy.ids[0]


def columns_read(lm: FrozenLM, choices: list, **settings) -> list[tuple[int, int]]:
    """[rows, columns] of each batch that goes through the LM."""
    seen: list[tuple[int, int]] = []
    hook = lm.model.transformer.h[0].register_forward_hook(
        lambda block, args, out: seen.append(tuple(args[0].shape[:2]))
    )
    rank_choices(lm, [[7] * 20], [choices], **settings)
    hook.remove()
    return seen


def test_a_context_is_read_once_for_all_its_choices() -> None:
    lm, prompt = toy_lm(), Written("prefix")
    settings = {"prompt": prompt, "sources": SOURCES[:1]}
    assert columns_read(lm, [[40], [41], [42], [43]], **settings) == [(1, 3 + 20)]
    # All but the last column once; then for each of four choices that column and the choice but its last token.
    assert columns_read(lm, [[40, 1], [41, 2], [42, 3], [43, 4]], **settings) == [(1, 3 + 20 - 1), (4, 1 + 1)]
    assert len(prompt.asked) == 2  # once a row and call, not once a choice


def test_the_cache_leaves_only_the_prompt_to_run() -> None:
    lm, prompt = toy_lm(), Written("suffix")
    settings = {"prompt": prompt, "sources": SOURCES[:1], "memory_cache": ContextCache(lm)}
    assert columns_read(lm, [[40], [41]], **settings) == [(1, 20), (1, 3)]
    assert columns_read(lm, [[40], [41]], **settings) == [(1, 3)]
    assert columns_read(lm, [[40, 1], [41, 2]], **settings) == [(1, 3 - 1), (2, 1 + 1)]


def test_works_with_a_soft_prompt_in_bfloat16() -> None:
    from tests.toys import toy_model, toy_tokenizer

    lm = FrozenLM.from_model(toy_model("gpt2"), toy_tokenizer(), dtype="bfloat16")
    prompt = SoftPrompt.create(lm, 3)
    got = rank_choices(lm, CONTEXTS, MIXED, prompt, SOURCES)
    exact = rank_choices(toy_lm("gpt2"), CONTEXTS, MIXED, prompt, SOURCES)
    for row, plain in zip(got, exact, strict=True):
        assert row == pytest.approx(plain, abs=0.3)


def test_next_logits_are_those_of_forward() -> None:
    lm = toy_lm("t5")
    rows = [[Tokens.of(context)] for context in CONTEXTS]
    starts = [[Tokens(lm.start_ids)]] * len(rows)
    plain = torch.stack([logits[-1] for logits in lm.forward(rows, decoder_rows=starts).logits])
    torch.testing.assert_close(lm.next_logits(rows), plain)
    torch.testing.assert_close(lm.next_logits([[]] * 4, memory=lm.read(rows)), plain)


def test_split_last() -> None:
    soft = Soft(torch.arange(6.0).reshape(3, 2))
    assert split_last([Tokens((1, 2)), Tokens((3,)), Tokens(())]) == ([Tokens((1, 2))], [Tokens((3,))])
    head, [last] = split_last([Tokens((1,)), soft])
    assert head[0] == Tokens((1,)) and isinstance(last, Soft)
    assert head[1].vectors.tolist() == [[0, 1], [2, 3]] and last.vectors.tolist() == [[4, 5]]


def test_no_row_is_no_work() -> None:
    assert rank_choices(toy_lm(), [], [], None, []) == []


@pytest.mark.parametrize(
    ("context", "choices", "message"),
    [
        ([5], [], "row 1 has no choices"),
        ([5], [[40], []], "row 1, choice 1 is empty"),
        ([5], [[40], [999]], "row 1, choice 1 has token ids"),
        ([], [[40]], "row 1 takes 0 tokens"),
        ([5] * WINDOW, [[40], [40, 41]], f"row 1 takes {WINDOW + 1} tokens"),
    ],
)
def test_what_cannot_be_ranked(context: list[int], choices: list, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        rank_choices(toy_lm(), [[5], context], [[[40]], choices], None, SOURCES[:2])


def test_lists_of_other_lengths_and_unknown_settings() -> None:
    with pytest.raises(ShapeError, match="2 contexts, 1 lists of choices"):
        rank_choices(toy_lm(), [[5], [6]], [[[40]]], None, SOURCES[:2])
    with pytest.raises(ConfigError, match="normalize is 'words'"):
        rank_choices(toy_lm(), [[5]], [[[40]]], None, SOURCES[:1], normalize="words")  # type: ignore[arg-type]
    with pytest.raises(FrozenLMError):
        rank_choices(toy_lm(), [[5]], [[[40]]], None, SOURCES[:1], batch_tokens=0)


def test_exactly_the_window_fits() -> None:
    assert len(rank_choices(toy_lm(), [[5] * WINDOW], [[[40], [41]]], None, SOURCES[:1])[0]) == 2
