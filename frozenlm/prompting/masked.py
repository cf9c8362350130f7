"""FrozenMaskedLM: the host of one masked LM (BERT, arXiv 1810.04805, and its kin) that nothing ever changes.

PET (arXiv 2001.07676) asks a masked LM what stands at a mask. Rows are those of every host (`rows.py`): text and soft
segments in any order, the mask token among the text. The body is the encoder that `FrozenEncoder` hosts; the head runs
on the masks alone, since its V columns a position cost more than a layer. At load our logits are compared with the
model's own.
Shapes: B rows, k masks of a row, V vocabulary, H' width of what the vocabulary layer reads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenlm.encoder import FrozenEncoder
from frozenlm.errors import ConfigError, ShapeError
from frozenlm.frozen_model import FrozenModel
from frozenlm.loading import load_masked, moved
from frozenlm.prompts.initializers import frequent_ids
from frozenlm.rows import Row, Tokens, assemble, row_length


class FrozenMaskedLM(FrozenModel):
    """One masked LM that stays what it was. Make one with `load` or `from_model`.

    Attributes:
        model: the transformers model; frozen, in eval mode. Use it, but leave it as it is.
        tokenizer: the caller's tokenizer, unchanged.
        kind: "masked".
        encoder: the body alone, as a host of its own; it shares the model.
        hidden_size: H, width of the embeddings and so of every soft vector.
        vocab_size: V.
        window: the most columns of a row; None if the LM has no limit.
        bos_ids, close_ids: what opens and closes a text. mask_id: the mask token.
        fingerprint: SHA-256 that names this LM (`fingerprint.py`).
    """

    kind = "masked"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        if tokenizer.mask_token_id is None:
            raise ConfigError(f"the tokenizer of {type(model).__name__} has no mask token; use that of a masked LM")
        super().__init__(model, tokenizer, closes=True)
        self.mask_id: int = tokenizer.mask_token_id
        self._transform = _head(model)
        self._vocabulary = model.get_output_embeddings()
        self.encoder = FrozenEncoder(model.base_model, tokenizer)
        self.bos_ids, self.close_ids = self._codec.bos_ids, self._codec.close_ids
        self.window = self.encoder.positions
        self.hidden_size, self.vocab_size = self.encoder.embedding_size, self.encoder.vocab_size
        self._check_logits()

    @classmethod
    def load(
        cls, path_or_id: str | Path, *, revision: str | None = None, dtype: str = "auto", device: str = "auto"
    ) -> "FrozenMaskedLM":
        """Load a local folder or a hub model; settings as `FrozenLM.load`.

        Raises:
            CheckpointError: model, weights or tokenizer missing or damaged.
            ConfigError: a setting is unknown, or the model does not fill masks in a way that we can drive.
        """
        return cls(*load_masked(path_or_id, revision=revision, dtype=dtype, device=device))

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, *, dtype: str = "auto", device: str = "auto") -> "FrozenMaskedLM":
        """Take over a masked LM that is already loaded; it is frozen and put in eval mode.

        Raises:
            ConfigError: the model does not fill masks in a way that we can drive.
        """
        return cls(moved(model, dtype=dtype, device=device), tokenizer)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenMaskedLM":
        """Itself: a copy of what is trained around it shares it."""
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings that are fed."""
        return self.encoder.dtype

    @property
    def device(self) -> torch.device:
        """Where the embeddings lie."""
        return self.encoder.device

    @contextmanager
    def changed(self, name: str) -> Iterator[None]:
        """For the while, the LM runs with something attached (`deltas/attach.py`). It keeps no memory to be marked."""
        with self.encoder.changed(name):
            yield

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone: no control token added, and none parsed from the text."""
        return self._codec.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, faster."""
        return self._codec.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control tokens leave no trace."""
        return self._codec.decode(ids)

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> embeddings [..., H], positions not added."""
        return self.encoder.embed(ids)

    def mask_states(self, rows: Sequence[Row]) -> list[Tensor]:
        """What the vocabulary layer reads at each mask: B tensors [k, H'], differentiable in every `Soft`.

        Raises:
            ShapeError: a row without a mask, or one that does not fit.
        """
        for number, row in enumerate(rows):
            if self.window is not None and row_length(row) > self.window:
                raise ShapeError(f"row {number} has {row_length(row)} tokens, the window is {self.window}; shorten it")
        batch = assemble(
            rows,
            embed=self.embed,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            pad_id=self.tokenizer.pad_token_id or 0,
            dtype=self.dtype,
            device=self.device,
        )
        places = [_masks(row, self.mask_id) for row in rows]
        for number, found in enumerate(places):
            if not found:
                raise ShapeError(f"row {number} has no mask token {self.mask_id}; there is nothing to fill in")
        hidden = self.model.base_model(inputs_embeds=batch.embeds, attention_mask=batch.mask).last_hidden_state
        width = hidden.shape[1]
        wanted = [number * width + column for number, found in enumerate(places) for column in found]
        at_masks = hidden.flatten(0, 1).index_select(0, torch.tensor(wanted, device=hidden.device))
        return list(self._transform(at_masks).split([len(found) for found in places]))

    def head(self, states: Tensor) -> Tensor:
        """states [n, H'] -> logits [n, V]."""
        return self._vocabulary(states)

    def mask_logits(self, rows: Sequence[Row]) -> Tensor:
        """[B, V] float32 logits at the mask of each row, in one batch; differentiable in every `Soft`.

        Raises:
            ShapeError: a row without exactly one mask, or one that does not fit.
        """
        states = self.mask_states(rows)
        for number, one in enumerate(states):
            if len(one) != 1:
                raise ShapeError(f"row {number} has {len(one)} masks; expected one; mask_states takes several")
        return self.head(torch.cat(states)).float()

    @torch.no_grad()
    def _check_logits(self) -> None:
        """Raises: ConfigError when our logits are not the model's own."""
        ids = [*self.bos_ids, *frequent_ids(self, 4), self.mask_id, *self.close_ids]
        ours = self.mask_logits([[Tokens.of(ids)], [Tokens.of(ids[-3:])]])[0]
        theirs = (
            self.model(input_ids=torch.tensor([ids], device=self.device)).logits[0, ids.index(self.mask_id)].float()
        )
        half = self.dtype in (torch.bfloat16, torch.float16)
        allowed = (0.1 if half else 1e-3) * max(1.0, float(theirs.abs().max()))
        difference = float((ours - theirs).abs().max())
        if not difference <= allowed:
            raise ConfigError(
                f"{type(self.model).__name__} cannot be used as a frozen masked LM: our logits differ from its own by "
                f"{difference:.3g} (allowed {allowed:.3g}); use BERT, RoBERTa or their kin"
            )


def _masks(row: Row, mask_id: int) -> list[int]:
    """Columns of the row's masks."""
    found, column = [], 0
    for segment in row:
        if isinstance(segment, Tokens):
            found += [column + n for n, token in enumerate(segment.ids) if token == mask_id]
        column += len(segment)
    return found


def _head(model: Any) -> Callable[[Tensor], Tensor]:
    """What the model does between its body and the vocabulary layer, by the names that families give it.

    Raises:
        ConfigError: a model without a vocabulary layer, or of a family that is not known here.
    """
    if model.get_output_embeddings() is None or model.base_model is model:
        raise ConfigError(f"{type(model).__name__} has no head that fills masks; load it with its masked-LM class")
    if hasattr(model, "cls"):  # BERT
        return model.cls.predictions.transform
    if hasattr(model, "lm_head"):  # RoBERTa, XLM-R, MPNet
        head = model.lm_head
        return lambda hidden: head.layer_norm(torch.nn.functional.gelu(head.dense(hidden)))
    if hasattr(model, "vocab_transform"):  # DistilBERT
        return lambda hidden: model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    if hasattr(model, "generator_predictions"):  # ELECTRA
        return model.generator_predictions
    if hasattr(model, "head"):  # ModernBERT
        return model.head
    if hasattr(model, "predictions"):  # ALBERT
        head = model.predictions
        return lambda hidden: head.LayerNorm(head.activation(head.dense(hidden)))
    raise ConfigError(
        f"{type(model).__name__} has a head of a kind that is not known here; use BERT, RoBERTa, MPNet, DistilBERT, "
        "ELECTRA, ModernBERT or ALBERT"
    )
