"""Texts and requests as token sequences.

Tokenisation follows lm-evaluation-harness 0.4.13 (`TemplateLM._encode_pair`, `HFLM.tok_encode`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adaptive_routing.data.tasks import Request


@dataclass(frozen=True)
class EncodedSequence:
    """One request as tokens.

    Attributes:
        token_ids: context and continuation.
        num_context_tokens: tokens before the first scored one, at least 1.
        num_inputs: tokens that the model reads: all, except that the last token is only predicted where the
            sequence was cut to the model's length, or is one of several single tokens after one context.
        truncated: whether tokens were cut off.
        shared_tokens: how many of its first tokens belong to another sequence (`data.shared`), which begins
            with the same ones.
    """

    token_ids: list[int]
    num_context_tokens: int
    num_inputs: int
    truncated: bool
    shared_tokens: int = 0

    @property
    def num_own_tokens(self) -> int:
        """The number of tokens that the model reads and that belong to no other sequence."""
        return self.num_inputs - self.shared_tokens

    @property
    def num_predicted_tokens(self) -> int:
        """The number of scored tokens."""
        return len(self.token_ids) - self.num_context_tokens


def encode_request(
    tokenizer: PreTrainedTokenizerBase, request: Request, max_length: int | None, model_max_length: int
) -> list[EncodedSequence]:
    """Encode a request as a list of `EncodedSequence`: one, or one per window of a rolling request.

    The list is empty if there are fewer than two tokens, so that there is nothing to predict.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
        request: `tasks.Request`.
        max_length: a text without context is cut to its first `max_length` tokens, unless it has `keep_end`;
            None if the data set has no such texts.
        model_max_length: the most tokens that the model reads. Contexts, and texts with `keep_end`, that are
            too long lose their first tokens.
    """
    if request.rolling:
        token_ids = encode_text(tokenizer, request.continuation)
        return _windows(_prefix_token(tokenizer), token_ids, model_max_length)
    if request.context is None:
        token_ids = encode_text(tokenizer, request.continuation)
        if request.keep_end:
            kept = token_ids[-model_max_length:]
        else:
            kept = token_ids[: min(max_length, model_max_length)]  # ty: ignore[invalid-argument-type]
        return [EncodedSequence(kept, 1, len(kept), len(kept) < len(token_ids))] if len(kept) >= 2 else []
    # Trailing spaces belong to the continuation: tokens of most vocabularies start with one.
    context, text = request.context.rstrip(), request.context + request.continuation
    if not context:
        context_ids = [_prefix_token(tokenizer)]
        continuation_ids = tokenizer.encode(text, add_special_tokens=False)
        if continuation_ids[:1] == context_ids:  # the text starts with that token itself
            continuation_ids = continuation_ids[1:]
    else:
        context_ids = encode_text(tokenizer, context)
        continuation_ids = encode_text(tokenizer, text)[len(context_ids) :]
    if not continuation_ids:
        raise InputError(f"continuation {request.continuation!r} has no tokens to score")
    if len(continuation_ids) > model_max_length:
        raise InputError(
            f"a continuation has {len(continuation_ids)} tokens; the model reads at most {model_max_length}"
        )
    whole = context_ids + continuation_ids
    token_ids = whole[-(model_max_length + 1) :]
    return [_cut(token_ids, len(token_ids) - len(continuation_ids), model_max_length, len(whole))]


def _windows(prefix_token, token_ids, model_max_length):
    """Windows that score every token of a text once.

    They are those of `lm_eval.utils.get_rolling_token_windows` with context_len = 1. The first window starts
    with the prefix token. The last one starts early enough to be full too.
    """
    whole = [prefix_token, *token_ids]
    sequences = []
    for first in range(1, len(whole), model_max_length):
        end = min(first + model_max_length, len(whole))
        start = max(0, end - model_max_length - 1)
        # The first token of a window, and those scored by the window before, are read but not scored.
        sequences.append(_cut(whole[start:end], first - start, model_max_length, end - start))
    return sequences


def _cut(token_ids, num_context_tokens, model_max_length, num_tokens):
    """A sequence from a text of `num_tokens`, with at most one token more than the model reads."""
    num_inputs = min(len(token_ids), model_max_length)
    return EncodedSequence(token_ids, num_context_tokens, num_inputs, len(token_ids) < num_tokens)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text with the special tokens that the tokenizer adds, as the harness does.

    None are added to a text that already starts with the start token.
    """
    prefix = _prefix_token(tokenizer, required=False)
    if prefix is not None and text.startswith(tokenizer.decode(prefix)):  # ty: ignore[invalid-argument-type]
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode(text)


def _prefix_token(tokenizer, required=True):
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None and required:
        raise InputError("the tokenizer has no start token to score a text without context")
    return token
