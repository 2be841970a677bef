"""What an encoder is: its configuration, to and from Hugging Face's ``config.json``."""

import dataclasses
from collections.abc import Mapping
from typing import Any

ACTIVATIONS = ("gelu", "gelu_new", "relu")
DTYPES = ("float32", "bfloat16", "float64")
_CLASSES = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The size and kind of an encoder, in Hugging Face's names, and how to compute it.

    Args:
      model_type: ``bert``, ``roberta`` or ``xlm-roberta``; decides how positions are counted.
      vocab_size: number of word pieces.
      hidden_size: width D; a multiple of ``num_attention_heads``.
      num_hidden_layers: layers L.
      num_attention_heads: heads H.
      intermediate_size: width inside the MLP.
      max_position_embeddings: rows of the position table. (XLM-R's 514 serve 512 tokens.)
      type_vocab_size: token types; 1 for XLM-R.
      hidden_act: ``gelu`` (exact), ``gelu_new`` (tanh) or ``relu``.
      layer_norm_eps: added to the variance.
      hidden_dropout_prob: dropout of embeddings and of both outputs in a layer.
      attention_probs_dropout_prob: dropout of the attention probabilities.
      initializer_range: standard deviation of new weights.
      pad_token_id: padding; None takes 0 for ``bert`` and 1 otherwise.
      bos_token_id: kept for ``config.json``; not used here.
      eos_token_id: kept for ``config.json``; not used here.
      dtype: dtype of the computation. Parameters, layer norm and softmax stay in float32, except
        that everything is float64 for ``float64``, or where the parameters are float64.
      remat: keep only each layer's input for the backward pass and compute the rest again.

    Raises:
      ValueError: if a value is out of range or two do not fit together.
    """

    model_type: str = "bert"
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("model_type", tuple(_CLASSES)),
            ("hidden_act", ACTIVATIONS),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in choices:
                allowed = ", ".join(repr(c) for c in choices)
                raise ValueError(
                    f"encoder: {name} is {getattr(self, name)!r}; write one of {allowed}"
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"encoder: {field.name} is {value!r}; write a whole number of at least 1"
                )
            if field.name.endswith("dropout_prob") and not 0.0 <= value < 1.0:
                raise ValueError(
                    f"encoder: {field.name} is {value!r}; write a number from 0 up to, not "
                    "including, 1"
                )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"encoder: hidden_size {self.hidden_size} is not divisible by "
                f"num_attention_heads {self.num_attention_heads}; change one of them"
            )
        if self.pad_token_id is None:
            object.__setattr__(self, "pad_token_id", 0 if self.model_type == "bert" else 1)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that has a position for each of them."""
        return self.max_position_embeddings - self.position_offset - 1

    @property
    def position_offset(self) -> int:
        """Position of the first token, less 1: BERT's is 0, RoBERTa's ``pad_token_id + 1``."""
        return -1 if self.model_type == "bert" else int(self.pad_token_id or 0)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], **overrides: Any) -> "EncoderConfig":
        """Read the contents of a Hugging Face ``config.json``.

        Args:
          config: the parsed file. Keys that do not change the encoder's output are ignored.
          **overrides: fields of this class that replace the file's, ``dtype`` and ``remat`` for
            instance.

        Returns:
          The configuration; fields the file lacks have Hugging Face's defaults.

        Raises:
          ValueError: if a size is missing, or the file asks for something that this encoder does
            not compute.
        """
        _refuse_unknown_maths(config)
        names = {f.name: f for f in dataclasses.fields(cls)}
        known = {k: v for k, v in config.items() if k in names and k not in ("dtype", "remat")}
        known |= overrides
        missing = [n for n, f in names.items() if f.default is dataclasses.MISSING]
        missing = [n for n in missing if n not in known]
        if missing:
            raise ValueError(
                f"config.json: no {', '.join(missing)}; write the values the model was trained with"
            )
        return cls(**known)

    def to_hf(self) -> dict[str, Any]:
        """Write the contents of a ``config.json`` that ``transformers.AutoModel`` reads.

        Returns:
          A dictionary for ``json.dump``.
        """
        fields = dataclasses.asdict(self)
        del fields["dtype"], fields["remat"]  # how we compute, not what the model is
        known = {name: value for name, value in fields.items() if value is not None}
        return known | {
            "architectures": [_CLASSES[self.model_type]],
            "position_embedding_type": "absolute",
            "torch_dtype": "float32",
            "use_cache": True,
        }


def _refuse_unknown_maths(config: Mapping[str, Any]) -> None:
    if config.get("model_type") not in _CLASSES:
        allowed = ", ".join(repr(name) for name in _CLASSES)
        raise ValueError(
            f"config.json: model_type is {config.get('model_type')!r}; "
            f"this encoder computes {allowed}: choose such a model"
        )
    required: dict[str, Any] = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "embedding_size": config.get("hidden_size"),
        "pruned_heads": {},
        "quantization_config": None,
    }
    for name, value in required.items():
        if name in config and (config[name] or value) != value:
            raise ValueError(
                f"config.json: {name} is {config[name]!r}, which this encoder does not compute; "
                f"choose a model with {name} {value!r}"
            )
