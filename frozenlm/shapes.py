"""How large a model is and how much it computes, known without its weights.

A transformers model on torch's meta device, where tensors have a shape and no storage, is run on a few tokens under
torch's `FlopCounterMode`. What it multiplies is a polynomial in the tokens, which three runs give exactly:

    F(q, k) = fixed + token q + pair q k            q tokens read, k keys seen: those before them and the q themselves

Conventions: a multiply-add is 2 FLOPs; only matrix products count (norms, activations, softmax and look-ups are
left out); attention counts every pair of query and key, those too that a causal mask or a sliding window hides, which
is what dense kernels compute (half of a causal square would do); of a mixture of experts, the experts that are used.
Shapes: q new tokens, k keys, E tokens of an encoder's output, H hidden size, V vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from frozenlm.errors import ConfigError
from frozenlm.limits import positions

Kind = Literal["decoder", "encoder-decoder", "encoder"]


@dataclass(frozen=True)
class Growth:
    """A number, of FLOPs or bytes, that grows with tokens: fixed + token q + pair q k."""

    fixed: int
    token: int
    pair: int

    def at(self, tokens: int, *, before: int = 0) -> int:
        """For q tokens that are read at once, `before` others having been read."""
        return self.fixed + self.token * tokens + self.pair * tokens * (before + tokens)

    def one_by_one(self, tokens: int, *, before: int = 0) -> int:
        """For q tokens of which each is read when those before it have been."""
        return sum(self.at(1, before=before + read) for read in range(tokens))


@dataclass(frozen=True)
class Crossing:
    """What a decoder does with an encoder's output, beside what it does with its own tokens.

    memory: for a token of the output, once: its keys and values in every layer
    pair: for a token of the output and a token of the decoder
    """

    memory: int
    pair: int


@dataclass(frozen=True)
class ModelShape:
    """Parameters of a model, each once even where it is used twice, and the FLOPs of its parts.

    parameters, embeddings: all of them; those in look-up tables (tokens, positions), a head tied to them included
    hidden_size: H, the width of its input embeddings, and so of soft vectors
    window: the most positions, None without a limit
    body: a decoder-only LM without its head; an encoder; the encoder half of an encoder-decoder
    decoder, crossing: the decoder half of an encoder-decoder, without its head
    head: FLOPs of one position's logits; 0 without a head
    """

    model_type: str
    kind: Kind
    parameters: int
    embeddings: int
    hidden_size: int
    vocab_size: int
    window: int | None
    body: Growth
    decoder: Growth | None = None
    crossing: Crossing | None = None
    head: int = 0

    @classmethod
    def of_lm(cls, model: Any) -> "ModelShape":
        """Of a causal or seq2seq LM from `architectures.meta_model`.

        Raises: ConfigError when it cannot be run without its weights.
        """
        head = 2 * model.get_output_embeddings().weight.numel()
        if not model.config.is_encoder_decoder:
            return _shape(model, "decoder", model_growth(model.base_model, count_flops), head=head)
        body = model_growth(model.get_encoder(), count_flops)
        decoder, crossing = crossing_growth(model, count_flops)
        return _shape(model, "encoder-decoder", body, decoder=decoder, crossing=crossing, head=head)

    @classmethod
    def of_encoder(cls, model: Any) -> "ModelShape":
        """Of a text encoder or a cross-encoder; what it does once a text (pooler, classifier) is in `body.fixed`.

        Raises: ConfigError as `of_lm`.
        """
        return _shape(model, "encoder", model_growth(model, count_flops))


Measure = Callable[[Callable[[], Any]], int]


def count_flops(run: Callable[[], Any]) -> int:
    """FLOPs of the matrix products in one call. On the meta device: a CPU's own attention kernel is not counted."""
    grouped = getattr(torch.ops.aten, "_grouped_mm", None)
    known = {} if grouped is None else {grouped: _grouped_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=known) as counter:
        run()
    return counter.get_total_flops()


def growth(measured: Callable[[int], int]) -> Growth:
    """The polynomial through measured(q) for q of 2, 3 and 4, nothing having been read before. A single token is no
    guide: models treat it as the next one of an answer."""
    two, three, four = (measured(tokens) for tokens in (2, 3, 4))
    pair = (four - 2 * three + two) // 2
    token = three - two - 5 * pair
    return Growth(two - 2 * token - 4 * pair, token, pair)


def model_growth(model: Any, measure: Measure) -> Growth:
    """Of a model, or a part of one, that reads token ids.

    Raises: ConfigError when it cannot be run without its weights.
    """
    return growth(lambda tokens: measured(measure, partial(read, model, tokens)))


def crossing_growth(model: Any, measure: Measure) -> tuple[Growth, Crossing]:
    """Of an encoder-decoder's decoder: F(q, E) = fixed + token q + pair q q + (memory + cross q) E.

    Raises: ConfigError as `model_growth`.
    """

    def crossed(tokens: int, encoded: int) -> int:
        return measured(measure, partial(_decode, model, tokens, encoded))

    at_two = growth(partial(crossed, encoded=2))
    grown = [crossed(tokens, encoded=3) - at_two.at(tokens) for tokens in (2, 3)]
    cross = grown[1] - grown[0]
    memory = grown[0] - 2 * cross
    return Growth(at_two.fixed - 2 * memory, at_two.token - 2 * cross, at_two.pair), Crossing(memory, cross)


def measured(measure: Measure, run: Callable[[], Any]) -> int:
    """measure(run), or in its place an error that says what cannot be done.

    Raises: ConfigError.
    """
    try:
        return measure(run)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(
            f"this model cannot be run without its weights, so what it costs is unknown ({type(error).__name__}: "
            f"{reason}); decoder-only LMs, encoder-decoders and encoders with plain attention can (GPT-2, OPT, Llama, "
            "Qwen, T5, BART, BERT, ...)"
        ) from error


def read(model: Any, tokens: int, *, cache: Any = None, before: int = 0) -> Any:
    """Run a model without its head, or an encoder, on so many tokens, after the `before` others that a cache keeps."""
    taken = inspect.signature(model.forward).parameters
    ids = _ids(model, tokens)
    extra: dict[str, Any] = {"position_ids": ids} if "position_ids" in taken else {}
    extra |= {"use_cache": cache is not None} if "use_cache" in taken else {}
    extra |= {} if cache is None else {"past_key_values": cache}
    return model(input_ids=ids, attention_mask=_visible(model, tokens, before + tokens), **extra)


def parameter_count(module: nn.Module) -> int:
    """Numbers in a module's parameters, a tied one counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def embedding_count(module: nn.Module) -> int:
    """Of these, the ones in look-up tables."""
    tables = {id(part.weight): part.weight.numel() for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(tables.values())


def _shape(model: Any, kind: Kind, body: Growth, **parts: Any) -> ModelShape:
    table = model.get_input_embeddings()
    return ModelShape(
        model.config.model_type,
        kind,
        parameter_count(model),
        embedding_count(model),
        table.embedding_dim,
        table.num_embeddings,
        positions(model.config),
        body,
        **parts,
    )


def _grouped_flops(rows: Sequence[int], experts: Sequence[int], *_: Any, **__: Any) -> int:
    """rows [n, a] spread over experts [g, a, b]: each row meets one expert."""
    return 2 * rows[0] * rows[1] * experts[-1]


def _decode(model: Any, tokens: int, encoded: int) -> Any:
    decoder, width = model.get_decoder(), model.config.hidden_size
    states = torch.zeros(1, encoded, width, dtype=model.dtype, device=model.device)
    return decoder(
        input_ids=_ids(model, tokens),
        attention_mask=_visible(model, tokens, tokens),
        encoder_hidden_states=states,
        use_cache=False,
    )


def _ids(model: Any, tokens: int) -> Tensor:
    return torch.zeros(1, tokens, dtype=torch.long, device=model.device)


def _visible(model: Any, tokens: int, keys: int) -> Tensor:
    """A mask [1, 1, q, k], which models take as it is. Into any other they look, and a meta tensor has no values."""
    return torch.zeros(1, 1, tokens, keys, dtype=model.dtype, device=model.device)
