"""What a T5 is: its configuration, to and from Hugging Face's ``config.json``."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clir_jax.models.encoder_config import DTYPES

FEED_FORWARDS = ("relu", "gated-gelu")
_CLASSES = {"t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration"}
MODEL_TYPES = tuple(_CLASSES)
"""The values of ``model_type`` that are read."""
_OWN = ("dtype", "remat")  # how we compute, not what the model is


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """The size and kind of a T5 or mT5, in Hugging Face's names, and how to compute it.

    Args:
      model_type: ``t5`` or ``mt5``; they compute alike.
      vocab_size: number of word pieces.
      d_model: width D.
      d_kv: size K of a head; H K need not be D.
      d_ff: width inside the feed-forward part.
      num_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder; None takes ``num_layers``.
      num_heads: heads H.
      relative_attention_num_buckets: rows of the table of relative positions; a multiple of 4.
      relative_attention_max_distance: tokens apart from which all distances are one bucket.
      feed_forward_proj: ``relu`` (version 1.0) or ``gated-gelu`` (version 1.1 and mT5).
      tie_word_embeddings: whether the output head is the table of word embeddings.
      scale_decoder_outputs: multiply what the head reads by D ** -0.5 (version 1.0).
      layer_norm_epsilon: added to the mean square.
      dropout_rate: of embeddings, attention probabilities, and the outputs of every part.
      initializer_factor: scale of new weights.
      pad_token_id: padding.
      eos_token_id: what ends a text.
      decoder_start_token_id: what the decoder reads before the first token.
      dtype: dtype of the computation. Parameters, residual sums, norms and softmax stay in float32,
        except that everything is float64 for ``float64``, or where the parameters are float64.
      remat: keep only each layer's input for the backward pass and compute the rest again.

    Raises:
      ValueError: if a value is out of range.
    """

    model_type: str = "t5"
    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int | None = None
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    layer_norm_epsilon: float = 1e-6
    dropout_rate: float = 0.1
    initializer_factor: float = 1.0
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        if self.num_decoder_layers is None:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
        for name, choices in (
            ("model_type", tuple(_CLASSES)),
            ("feed_forward_proj", FEED_FORWARDS),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in choices:
                allowed = ", ".join(repr(c) for c in choices)
                raise ValueError(f"t5: {name} is {getattr(self, name)!r}; write one of {allowed}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            token = field.name.endswith("_token_id")
            if field.type in (int, int | None) and (type(value) is not int or value < 1 - token):
                raise ValueError(
                    f"t5: {field.name} is {value!r}; write a whole number of at least {1 - token}"
                )
            if token and value >= self.vocab_size:
                raise ValueError(
                    f"t5: {field.name} is {value} and vocab_size {self.vocab_size}; write a token "
                    "of the vocabulary"
                )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(
                f"t5: dropout_rate is {self.dropout_rate!r}; write a number from 0 up to, not "
                "including, 1"
            )
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        if buckets % 4 or distance <= buckets // 2:
            raise ValueError(
                f"t5: relative_attention_num_buckets is {buckets} and "
                f"relative_attention_max_distance {distance}; write a multiple of 4, and a "
                "distance above half of it"
            )

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part multiplies by a gate."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.num_decoder_layers or self.num_layers

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], **overrides: Any) -> "T5Config":
        """Read the contents of a Hugging Face ``config.json``.

        Whether the head is the table of word embeddings is not known from this file alone:
        transformers 5 writes ``tie_word_embeddings`` true for every T5. ``load_t5`` looks at the
        weights.

        Args:
          config: the parsed file. Keys that do not change the model's output are ignored.
          **overrides: fields of this class that replace the file's, ``dtype`` for instance.

        Returns:
          The configuration; fields the file lacks have Hugging Face's defaults.

        Raises:
          ValueError: if a size is missing, or the file asks for something that is not computed
            here.
        """
        kind = config.get("model_type")
        if kind not in _CLASSES:
            allowed = ", ".join(repr(name) for name in _CLASSES)
            raise ValueError(
                f"config.json: model_type is {kind!r}; a generator is one of {allowed}: choose "
                "such a model"
            )
        names = {f.name: f for f in dataclasses.fields(cls)}
        given = {k: v for k, v in config.items() if k in names and k not in _OWN and v is not None}
        tied = given.get("tie_word_embeddings", kind == "t5")
        known = {
            "feed_forward_proj": "relu" if kind == "t5" else "gated-gelu",
            "tie_word_embeddings": tied,
            "scale_decoder_outputs": kind == "t5" and tied,
        }
        known |= given | overrides
        end = known.get("eos_token_id")
        if isinstance(end, list):
            if len(end) != 1:
                raise ValueError(
                    f"config.json: eos_token_id is {end}; write the one token that ends a text"
                )
            known["eos_token_id"] = end[0]
        missing = [n for n, f in names.items() if f.default is dataclasses.MISSING]
        missing = [n for n in missing if n not in known]
        if missing:
            raise ValueError(
                f"config.json: no {', '.join(missing)}; write the values the model was trained with"
            )
        return cls(**known)

    def to_hf(self) -> dict[str, Any]:
        """Write the contents of a ``config.json`` that ``transformers`` reads.

        Returns:
          A dictionary for ``json.dump``. Its ``tie_word_embeddings`` says whether outputs are
          scaled, which is all that any version of transformers reads from it; the files' tensors
          say what is tied.
        """
        fields = dataclasses.asdict(self)
        for name in _OWN:
            del fields[name]
        return fields | {
            "architectures": [_CLASSES[self.model_type]],
            "is_encoder_decoder": True,
            "tie_word_embeddings": self.scale_decoder_outputs,
            "torch_dtype": "float32",
            "use_cache": True,
        }
