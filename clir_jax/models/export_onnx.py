"""A retriever as an ONNX graph, by way of torch: the one export that torch is needed for."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clir_jax.models.formats import PROJECTION
from clir_jax.models.retriever import Dense, RetrieverSpec

GRAPH = "model.onnx"
_OPSET = 18
_EPSILON = 1e-12


def write_graph(directory: Path, spec: RetrieverSpec) -> None:
    """Write ``model.onnx`` beside a retriever that ``save_retriever`` wrote.

    Inputs are ``input_ids`` and ``attention_mask`` ``[R, T]`` int64. The output of a dense
    retriever is ``sentence_embedding [R, E]``, that of late interaction ``token_embeddings
    [R, T, E]``, unit vectors of all tokens: which of them count is for the caller to say.

    Args:
      directory: of the retriever.
      spec: its specification.

    Raises:
      ImportError: if torch, onnx or onnxscript is missing.
    """
    for package in ("torch", "onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"--to onnx needs {package}, which is not installed; "
                "run `pip install torch onnx onnxscript`"
            ) from error
    import torch

    module = _module(directory, spec)
    # Two tensors, and neither of ones only: what is equal in the example is taken for one thing.
    ids, mask = torch.arange(16).reshape(2, 8) + 2, torch.ones((2, 8), dtype=torch.int64)
    mask[1, 5:] = 0
    rows, tokens = torch.export.Dim("rows"), torch.export.Dim("tokens")
    name = "sentence_embedding" if isinstance(spec, Dense) else "token_embeddings"
    with _quiet():
        torch.onnx.export(
            module,
            (ids, mask),
            str(directory / GRAPH),
            input_names=["input_ids", "attention_mask"],
            output_names=[name],
            dynamic_shapes={"ids": {0: rows, 1: tokens}, "mask": {0: rows, 1: tokens}},
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of packages that are not needed and of torch's own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _module(directory: Path, spec: RetrieverSpec) -> Any:
    """The retriever in torch."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(
        directory, add_pooling_layer=False, attn_implementation="eager"
    )
    files = directory / PROJECTION / "model.safetensors"
    head = load_file(files) if files.is_file() else None

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            if head is not None:
                weight = head["linear.weight"]
                outputs, inputs = weight.shape
                self.linear = torch.nn.Linear(inputs, outputs, bias="linear.bias" in head)
                self.linear.load_state_dict(
                    {name.removeprefix("linear."): value for name, value in head.items()}
                )

        def forward(self, ids: Any, mask: Any) -> Any:
            x = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            normalize = True
            if isinstance(spec, Dense):
                x, normalize = _pooled(x, mask, spec.pooling), spec.normalize
            x = x if head is None else self.linear(x)
            if isinstance(spec, Dense) and spec.projection_activation == "tanh":
                x = torch.tanh(x)
            return torch.nn.functional.normalize(x, dim=-1, eps=_EPSILON) if normalize else x

    return Module().eval()


def _pooled(x: Any, mask: Any, pooling: str) -> Any:
    """The poolings of ``ops.pooling`` in torch."""
    if pooling == "cls":
        return x[:, 0]
    keep = mask[:, :, None].to(x.dtype)
    if pooling == "mean":
        return (x * keep).sum(1) / keep.sum(1).clamp(min=1.0)
    return x.masked_fill(keep == 0, float("-inf")).amax(1)
