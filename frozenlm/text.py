"""Text to token ids and back, with one guarantee: text is only ever text.

A passage, a question or a user may contain "[SEP]", "</s>" or "<|endoftext|>". Parsed as control tokens they would end
answers and forge structure, so `encode` never yields a special token: it works on a copy of the tokenizer from which
they were taken out. Control tokens enter a row as ids only (`FrozenLM.bos_ids`, `eos_ids`). Added tokens that the
tokenizer itself declares as ordinary text (runs of spaces, for instance) stay ordinary. The caller's tokenizer is not
changed.
"""

import json
from collections.abc import Sequence
from typing import Any

from frozenlm.errors import ConfigError, FrozenLMError


class TextCodec:
    """The two directions of a tokenizer, and the control ids around a text.

    Args:
        tokenizer: a transformers tokenizer, fast or slow.
        closes: whether the LM's input ends with the tokenizer's closing tokens (encoders do; a causal prompt must not).

    Raises:
        ConfigError: the object is not a tokenizer.
    """

    def __init__(self, tokenizer: Any, *, closes: bool) -> None:
        if not callable(getattr(tokenizer, "convert_ids_to_tokens", None)):
            raise ConfigError(f"expected a transformers tokenizer, got {type(tokenizer).__name__}")
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._plain = _without_special_tokens(backend, tokenizer) if backend is not None else None
        self.bos_ids, suffix = self._frame()
        self.close_ids = suffix if closes else ()

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: nothing added, nothing parsed. The empty text is [].

        Raises:
            FrozenLMError: not a string, or a string that is not valid Unicode.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts; fast tokenizers use all cores."""
        for text in texts:
            if not isinstance(text, str):
                raise FrozenLMError(f"expected a string to encode, got {type(text).__name__}")
        try:
            if self._plain is not None:
                found = self._plain.encode_batch(list(texts), add_special_tokens=False)
                return [list(one.ids) if text else [] for one, text in zip(found, texts, strict=True)]
            return [
                self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) if text else []
                for text in texts
            ]
        except (UnicodeEncodeError, TypeError) as error:
            raise FrozenLMError(f"the text is not valid Unicode (a lone surrogate?): {error}") from error

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and the characters (from, to) of the text that each token stands for.

        Raises:
            ConfigError: the tokenizer is a slow one, which does not know.
            FrozenLMError: as `encode`.
        """
        if self._plain is None:
            raise ConfigError(
                f"{type(self.tokenizer).__name__} cannot say which characters a token stands for; use a fast tokenizer"
            )
        ids = self.encode(text)
        return ids, list(self._plain.encode(text, add_special_tokens=False).offsets) if ids else []

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control tokens leave no trace."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The control ids that the tokenizer puts before and after a text."""
        framed = list(self.tokenizer("a", add_special_tokens=True)["input_ids"])
        bare = list(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return tuple(framed[:start]), tuple(framed[start + len(bare) :])
        return (), ()


def _without_special_tokens(backend: Any, tokenizer: Any) -> Any:
    """A copy of a `tokenizers.Tokenizer` that cannot produce a special token.

    Dropping them from the added tokens is not enough: where the model's own vocabulary holds the piece "</s>" (Unigram,
    word level), plain text would still reach it. Such pieces keep their id under a name no text can have.
    """
    from tokenizers import Tokenizer

    spec = json.loads(backend.to_str())
    special = {token["content"] for token in spec.get("added_tokens") or [] if token["special"]}
    special |= set(tokenizer.all_special_tokens)
    model = spec["model"]
    vocabulary = model.get("vocab")
    merged = {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in model.get("merges") or []}
    kept = merged | {model.get("unk_token")}  # what the model itself looks up by name
    hidden = {piece: f"\0{number}\0" for number, piece in enumerate(sorted(special - kept))}
    if isinstance(vocabulary, dict):
        model["vocab"] = {hidden.get(piece, piece): index for piece, index in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: pairs of piece and score
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocabulary]
    spec["added_tokens"] = [token for token in spec.get("added_tokens") or [] if token["content"] not in special]
    spec["post_processor"] = None  # it only adds control tokens, and would look for the ones taken out
    spec["truncation"] = spec["padding"] = None
    return Tokenizer.from_str(json.dumps(spec))
