"""A template filled in for one record and one host: what the host reads, and where it answers.

Three hosts, three places for the answer:

    decoder-only LM       right behind the row
    encoder-decoder LM    in the decoder, after `starts`: nothing, or the sentinel that stands in the encoder's input
    masked LM             at the mask token within the row
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

from frozenlm.errors import ConfigError
from frozenlm.rows import Segment, Tokens, row_length

if TYPE_CHECKING:
    from frozenlm.lm import FrozenLM
    from frozenlm.prompting.masked import FrozenMaskedLM

PromptHost = Union["FrozenLM", "FrozenMaskedLM"]
SENTINEL = "<extra_id_0>"


@dataclass(frozen=True, eq=False)
class Filled:
    """One question to the host.

    body: the template's segments, without the tokens that open and close a text
    opens, closes: those tokens
    starts: what the decoder of an encoder-decoder reads before the answer, after its own start
    mask_id: the mask token of a masked LM, which stands once in the body; None for other hosts
    spaced: whether the answer's words follow a space
    cut: tokens of the record that did not fit
    prefix: what stands before the body, behind `opens`: demonstrations
    dropped: demonstrations that did not fit
    what: what messages call it
    """

    body: tuple[Segment, ...]
    opens: tuple[int, ...] = ()
    closes: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    mask_id: int | None = None
    spaced: bool = True
    cut: int = 0
    prefix: tuple[Segment, ...] = ()
    dropped: int = 0
    what: str = "the question"

    @property
    def row(self) -> list[Segment]:
        """All that the host reads, but for the decoder of an encoder-decoder.

        Raises: ConfigError where that is nothing.
        """
        if not self.length:
            raise ConfigError(
                f"{self.what} reads nothing to this LM, which needs at least a token to answer after; put text before "
                "{answer}, or, where it is what calibration asks about nothing, give other calibration texts or a "
                "premise"
            )
        return [segment for segment in self._segments if len(segment)]

    @property
    def _segments(self) -> list[Segment]:
        return [Tokens(self.opens), *self.prefix, *self.body, Tokens(self.closes)]

    @property
    def mask(self) -> int | None:
        """The column of the mask in `row`; None where the answer stands outside the row."""
        if self.mask_id is None:
            return None
        column = 0
        for segment in self.row:
            if isinstance(segment, Tokens) and self.mask_id in segment.ids:
                return column + segment.ids.index(self.mask_id)
            column += len(segment)
        return None

    @property
    def length(self) -> int:
        """Columns of `row`."""
        return row_length(self._segments)

    def widened(self, masks: int) -> "Filled":
        """The same with so many masks in the place of one; other hosts than masked LMs have none to widen."""
        if self.mask_id is None or masks == 1:
            return self
        return replace(self, body=tuple(_widened(segment, self.mask_id, masks) for segment in self.body))


def _widened(segment: Segment, mask_id: int, masks: int) -> Segment:
    if not isinstance(segment, Tokens) or mask_id not in segment.ids:
        return segment
    at = segment.ids.index(mask_id)
    return Tokens((*segment.ids[:at], *[mask_id] * masks, *segment.ids[at + 1 :]))


def control_id(tokenizer: Any, piece: str) -> int | None:
    """The id of a control token; None where the tokenizer has none of that name."""
    found = tokenizer.get_vocab().get(piece)
    return None if found is None else int(found)


def word_ids(host: PromptHost, word: str, *, spaced: bool) -> list[int]:
    """Ids of a word as it stands within a text, after a space or right after what is before it.

    Tokenizers differ in who owns a space: GPT-2's pieces begin with it, Llama's and T5's mark the beginning of any
    text as if it followed one, BERT's know none. So the word is read after an anchor whose ids are then taken off.
    """
    anchor = "a" if spaced else "\n"
    before = host.encode(anchor)
    whole = host.encode(f"{anchor}{' ' if spaced else ''}{word}")
    if whole[: len(before)] == before and len(whole) > len(before):
        return whole[len(before) :]
    return host.encode(f" {word}" if spaced else word)
