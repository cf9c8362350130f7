"""FrozenEncoder: the host of one pretrained text encoder that nothing ever changes.

ID-PT (arXiv 2204.10019, section 2) reads its input with a frozen T5 encoder which is itself prompt-tuned: learned
vectors stand in front of the text's embeddings. So any encoder will do whose forward takes `inputs_embeds`: T5 of all
versions, BERT and its kin. Like FrozenLM it is not an `nn.Module`, so what is trained around it never gets its weights.

Our choices: the learned vectors stand before the opening token ([CLS] x [SEP] stays as it is); a text too long keeps
its beginning and its closing token, and is counted; an encoder without a limit of its own (T5 counts distances, not
positions) reads `LENGTH_WITHOUT_LIMIT` tokens. Rows are padded on the right, where no encoder counts positions from.
Shapes: B texts, T columns, Pe soft tokens in front of a text, E width of the encoder's output.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenlm.errors import ConfigError
from frozenlm.fingerprint import fingerprint
from frozenlm.frozen_model import FrozenModel
from frozenlm.limits import positions
from frozenlm.loading import load_encoder, moved
from frozenlm.prompts.initializers import frequent_ids
from frozenlm.rows import Row, Soft, Tokens, assemble
from frozenlm.text import TextCodec

LENGTH_WITHOUT_LIMIT = 1024  # tokens; what T0 was trained with (arXiv 2110.08207)


class FrozenEncoder(FrozenModel):
    """One pretrained text encoder that stays what it was.

    Make one with `FrozenEncoder.load` or `FrozenEncoder.from_model`.

    Attributes:
        model: the transformers model; frozen, in eval mode. Use it, but leave it as it is.
        tokenizer: the caller's tokenizer, unchanged.
        hidden_size: E.
        embedding_size: width of a vector that stands in front of a text; E but for ELECTRA, ALBERT and the like.
        vocab_size: number of embeddings.
        positions: the most columns it can read, soft tokens included; None if it has no limit.
        max_length: the most tokens of a text, the opening and closing ones included.
        truncated: how many inputs have been cut since it was made, repeats counted.
        fingerprint: SHA-256 that names this encoder, its pooler left out (`fingerprint.py`).
    """

    WHAT = "encoder"

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int | None = None) -> None:
        _check_kind(model)
        super().__init__(model, tokenizer, closes=True)
        self._embedding = model.get_input_embeddings()
        self.vocab_size: int = self._embedding.num_embeddings
        self.embedding_size: int = self._embedding.embedding_dim
        self.hidden_size: int = model.config.hidden_size
        self.positions = _positions(model)
        self._frame_length = len(self._codec.bos_ids) + len(self._codec.close_ids)
        self.max_length = self._checked_length(max_length)
        self.truncated = 0
        self._changed = False
        # A tokenizer that frames nothing gives no token for the empty text, and nothing cannot be attended to.
        known = (tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
        self._blank: int = next(i for i in known if i is not None)
        own = {name: digest for name, digest in self._digests.items() if not name.startswith("pooler.")}
        self.fingerprint = fingerprint(own)
        self._check_features()

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        attn_implementation: str = "auto",
        max_length: int | None = None,
    ) -> "FrozenEncoder":
        """Load a local folder or a hub model; of an encoder-decoder such as T5, the encoder half.

        Args:
            path_or_id: a folder saved by transformers, or a hub id.
            revision: branch, tag or commit on the hub.
            dtype: "auto" is the checkpoint's dtype on CUDA and float32 on the CPU; or "float32", "bfloat16", "float16".
            device: "auto" is CUDA where there is one, else "cpu".
            attn_implementation: "auto" is transformers' choice, mostly "sdpa". On a CPU that multiplies bfloat16,
                training in bf16 is faster with "eager" (docs/results.md).
            max_length: the most tokens of a text; None for what fits.

        Raises:
            CheckpointError: model, weights or tokenizer missing or damaged.
            ConfigError: a setting is unknown or out of range, or the model cannot be used as an encoder.
        """
        model, tokenizer = load_encoder(
            path_or_id, revision=revision, dtype=dtype, device=device, attn_implementation=attn_implementation
        )
        return cls(model, tokenizer, max_length=max_length)

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_length: int | None = None,
    ) -> "FrozenEncoder":
        """Take over a transformers encoder that is already loaded; it is frozen and put in eval mode.

        Args:
            dtype, device: "auto" leaves the model as and where it is; otherwise the model itself is moved.

        Raises:
            ConfigError: the model cannot be used as an encoder, or max_length is out of range.
        """
        return cls(moved(model, dtype=dtype, device=device), tokenizer, max_length=max_length)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenEncoder":
        """Itself: a copy of what is trained around it shares it."""
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings that are fed."""
        return self._embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the embeddings lie."""
        return self._embedding.weight.device

    @property
    def codec(self) -> TextCodec:
        """Text to ids, and the control ids around a text."""
        return self._codec

    @contextmanager
    def changed(self, name: str) -> Iterator[None]:
        """For the while, the encoder runs with something attached (`deltas/attach.py`), and `features` records
        gradients for it."""
        before, self._changed = self._changed, True
        try:
            yield
        finally:
            self._changed = before

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text with the tokens that open and close it, cut at max_length and counted.

        Raises:
            FrozenLMError: not a string of valid Unicode.
        """
        return self._cut(texts, self.max_length)

    def too_long(self, texts: Sequence[str], prompt_length: int = 0) -> list[bool]:
        """Which texts are cut where that many soft tokens stand in front; nothing is counted.

        Raises:
            ConfigError: the prompt leaves no room for a text.
            FrozenLMError: not a string of valid Unicode.
        """
        room = self.room(prompt_length) - self._frame_length
        return [len(ids) > room for ids in self._codec.encode_batch(texts)]

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> embeddings [..., embedding_size], positions not added."""
        return self._embedding(torch.as_tensor(ids, dtype=torch.long).to(self.device))

    def room(self, prompt_length: int) -> int:
        """The most tokens of a text beside that many soft tokens.

        Raises:
            ConfigError: the prompt leaves no room for a text.
        """
        if self.positions is None:
            return self.max_length
        room = min(self.max_length, self.positions - prompt_length)
        if room <= self._frame_length:
            raise ConfigError(
                f"an encoder prompt of {prompt_length} leaves {room} of the encoder's {self.positions} positions, and "
                f"{self._frame_length} go to the tokens around a text; shorten the prompt"
            )
        return room

    def features(self, texts: Sequence[str], prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the encoder makes of each text.

        A text's features do not depend on the other texts. Without a prompt or a delta no gradient is recorded.

        Args:
            texts: B strings, at least one; the empty string is a text like any other.
            prompt: [Pe, embedding_size] learned vectors in front of every text; differentiable.

        Returns:
            (hidden [B, T, E] float32, mask [B, T] bool, true on soft tokens and on the text, nowhere false in a whole
            row).

        Raises:
            ShapeError: no texts, or a prompt of another width or with values that are not finite.
            ConfigError: the prompt leaves no room for a text.
            FrozenLMError: not a string of valid Unicode.
        """
        if prompt is None:
            with torch.set_grad_enabled(self._changed and torch.is_grad_enabled()):
                return self._run([[Tokens.of(ids)] for ids in self.tokens(texts)])
        soft = Soft(prompt)
        return self._run([[soft, Tokens.of(ids)] for ids in self._cut(texts, self.room(len(soft)))])

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """[B, E] float32: the mean over the features of a text's tokens, the framing ones included; no gradient but a
        delta's.

        This is sentence-transformers' mean pooling, without a normalisation.

        Raises:
            ShapeError, FrozenLMError: as `features`.
        """
        hidden, mask = self.features(texts)
        weights = mask.unsqueeze(2).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def _run(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        batch = assemble(
            rows,
            embed=self.embed,
            hidden_size=self.embedding_size,
            vocab_size=self.vocab_size,
            pad_id=self._blank,
            dtype=self.dtype,
            device=self.device,
        )
        hidden = self.model(inputs_embeds=batch.embeds, attention_mask=batch.mask).last_hidden_state
        return hidden.float(), batch.mask.bool()

    def _cut(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        room = limit - self._frame_length
        rows = []
        for ids in self._codec.encode_batch(texts):
            self.truncated += len(ids) > room
            rows.append([*self._codec.bos_ids, *ids[:room], *self._codec.close_ids] or [self._blank])
        return rows

    def _checked_length(self, max_length: int | None) -> int:
        limit = self.positions
        if max_length is None:
            return LENGTH_WITHOUT_LIMIT if limit is None else limit
        if max_length <= self._frame_length or (limit is not None and max_length > limit):
            raise ConfigError(
                f"max_length is {max_length}; expected more than the {self._frame_length} tokens around a text and "
                f"at most {limit or 'any number'}, the encoder's positions"
            )
        return max_length

    @torch.no_grad()
    def _check_features(self) -> None:
        """Two short texts in one batch, fed as embeddings, against each alone, fed as ids.

        Raises: ConfigError when the features differ: the encoder does something to ids that we would leave out.
        """
        ids = frequent_ids(self, 5)
        texts = [ids, ids[:2]]
        ours, _ = self._run([[Tokens.of(text)] for text in texts])
        for mine, text in zip(ours, texts, strict=True):
            theirs = self.model(input_ids=torch.tensor([text], device=self.device)).last_hidden_state[0].float()
            half = self.dtype in (torch.bfloat16, torch.float16)
            allowed = (0.1 if half else 1e-3) * max(1.0, float(theirs.abs().max()))
            difference = float((mine[: len(text)] - theirs).abs().max())
            if not difference <= allowed:
                raise ConfigError(
                    f"{type(self.model).__name__} cannot be used as a frozen encoder: fed with embeddings, its output "
                    f"differs from its own by {difference:.3g} (allowed {allowed:.3g}); use T5, BERT or their kin"
                )


def _check_kind(model: Any) -> None:
    name = type(model).__name__
    taken = inspect.signature(model.forward).parameters
    if "inputs_embeds" not in taken:
        raise ConfigError(
            f"{name} takes no inputs_embeds, so no learned vectors can stand before a text; "
            "use an encoder that takes them (T5, BERT, RoBERTa, MPNet, ...)"
        )
    if "decoder_input_ids" in taken:
        raise ConfigError(
            f"{name} is an encoder-decoder; give its encoder alone (T5EncoderModel, or model.get_encoder()), "
            "or let FrozenEncoder.load read the folder"
        )


def _positions(model: Any) -> int | None:
    """How many columns the model can read; None if it has no such limit."""
    limit = positions(model.config)
    for name, part in model.named_modules():
        # RoBERTa and its kin count from past the padding's own position.
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return None if limit is None else limit - part.padding_idx - 1
    return limit
