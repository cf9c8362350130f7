"""Prompt pre-training on plain text: Gu et al. 2022, "PPT: Pre-trained Prompt Tuning for Few-shot Learning", arXiv
2109.04332, section 3.

A prompt is trained on text that nobody has labelled before it is trained on a task (`from_vectors`). Two objectives:

    continuation    what comes next: the text is cut into windows of `context` + `answer` tokens, none is lost
    next_sentence   PPT's for pairs of sentences: does the second follow the first, come from the same text, or from
                    another? A third of the examples each; the LM is asked in words

Plain texts become `Example`s, so `fit` with `prompt_loss` does the rest. Our choices: sentences end at ". ", "! " or
"? "; the wording of question and labels, which is a setting; pairs that are too long are left out, and counted.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from frozenlm.errors import ConfigError
from frozenlm.lm_tasks import Example
from frozenlm.prompts.interface import PromptInput

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM

Objective = Literal["continuation", "next_sentence"]
TASK = "text"
ANSWER = 32  # tokens to predict
WORDING = "{first} Next : {second} Answer :"
LABELS = (" yes", " maybe", " no")  # follows, of the same text, of another
_SLOT = re.compile(r"\{(first|second)\}")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class TextExamples:
    """What texts gave to learn from.

    left_out: windows of one token or none; texts of fewer than three sentences, and pairs longer than `context`
    """

    examples: list[Example]
    left_out: int


def text_examples(
    texts: Iterable[str],
    lm: "FrozenLM",
    *,
    objective: Objective = "continuation",
    context: int = 64,
    answer: int = ANSWER,
    wording: str = WORDING,
    labels: Sequence[str] = LABELS,
    soft_tokens: int = 0,
    seed: int = 0,
) -> TextExamples:
    """Examples of plain texts; the same seed gives the same ones.

    context: the most tokens to read, control tokens not counted
    answer: the most tokens to predict (continuation)
    wording: with the slots {first} and {second} (next_sentence)
    labels: what the LM is to say of a sentence that follows, one of the same text, one of another
    soft_tokens: of the prompt that will stand beside, for which the LM's window needs room

    Raises: ConfigError for an unknown objective, sizes below 1 or past the window (with the answer, or the longest
        label and its end), a wording without its slots, or labels that are not three different ones; for texts that
        give no example.
    """
    _check(lm, objective, context, answer, wording, labels, soft_tokens)
    if objective == "continuation":
        found = _continuations(texts, lm, context, answer)
    else:
        found = _next_sentences(texts, lm, context, wording, labels, random.Random(seed))
    if not found.examples:
        raise ConfigError(f"the texts give nothing to learn from: {found.left_out} were too short or too long")
    return found


def _continuations(texts: Iterable[str], lm: "FrozenLM", context: int, answer: int) -> TextExamples:
    examples, left_out = [], 0
    for ids in lm.encode_batch(list(texts)):
        for start in range(0, max(1, len(ids)), context + answer):
            window = ids[start : start + context + answer]
            # A window too short for both is shared in the same proportion.
            middle = min(context, max(1, len(window) * context // (context + answer)))
            if len(window) < 2:
                left_out += 1
                continue
            examples.append(_example(lm, window[:middle], window[middle:], lm.decode(window[:middle])))
    return TextExamples(examples, left_out)


def _next_sentences(
    texts: Iterable[str], lm: "FrozenLM", context: int, wording: str, labels: Sequence[str], draw: random.Random
) -> TextExamples:
    parted = [[one for one in _SENTENCE_END.split(text.strip()) if one] for text in texts]
    usable = [sentences for sentences in parted if len(sentences) > 2]
    if len(usable) < 2:
        raise ConfigError(
            f"next_sentence needs two texts of at least three sentences, got {len(usable)} of {len(parted)}"
        )
    close = list(lm.eos_ids[:1])
    answers = [[*lm.encode(label), *close] for label in labels]
    examples, left_out = [], len(parted) - len(usable)
    for number, sentences in enumerate(usable):
        for place in range(len(sentences) - 1):
            label = (number + place) % 3
            pair = {"first": sentences[place], "second": _second(usable, number, place, label, draw)}
            text = _SLOT.sub(lambda slot, pair=pair: pair[slot[1]], wording)  # type: ignore[misc]
            ids = lm.encode(text)
            if len(ids) > context:
                left_out += 1
                continue
            examples.append(_example(lm, ids, answers[label], text))
    return TextExamples(examples, left_out)


def _second(texts: Sequence[Sequence[str]], number: int, place: int, label: int, draw: random.Random) -> str:
    own = texts[number]
    if label == 0:
        return own[place + 1]
    if label == 1:
        return draw.choice([one for n, one in enumerate(own) if n not in (place, place + 1)])
    other = draw.randrange(len(texts) - 1)
    return draw.choice(texts[other + (other >= number)])


def _example(lm: "FrozenLM", context: Sequence[int], answer: Sequence[int], text: str) -> Example:
    return Example.of([*lm.bos_ids, *context, *lm.close_ids], answer, PromptInput(text, TASK))


def _check(
    lm: "FrozenLM",
    objective: str,
    context: int,
    answer: int,
    wording: str,
    labels: Sequence[str],
    soft_tokens: int,
) -> None:
    if objective not in get_args(Objective):
        raise ConfigError(f"objective is {objective!r}; expected one of {get_args(Objective)}")
    said, longest = f"answer {answer}", answer
    if objective == "next_sentence":
        longest = _longest_label(lm, wording, labels)
        said = f"a longest label of {longest}"
    room = None if lm.window is None else lm.window - len(lm.bos_ids) - len(lm.close_ids) - soft_tokens
    if min(context, longest) < 1 or (room is not None and context + longest > room):
        raise ConfigError(
            f"context {context} and {said} tokens; expected at least 1 each, {room} together at most"
            + (f", beside {soft_tokens} soft tokens" if soft_tokens else "")
        )


def _longest_label(lm: "FrozenLM", wording: str, labels: Sequence[str]) -> int:
    """Tokens of the longest label, the one that ends it included."""
    if any(slot not in wording for slot in ("{first}", "{second}")):
        raise ConfigError(f"wording is {wording!r}; expected the slots {{first}} and {{second}}")
    ids = {tuple(lm.encode(label)) for label in labels}
    if isinstance(labels, str) or len(labels) != 3 or len(ids) != 3 or () in ids:
        raise ConfigError(f"labels are {labels!r}; expected three that this LM's tokenizer tells apart")
    return max(map(len, ids)) + len(lm.eos_ids[:1])
