"""How close T5 and mT5 are to torch transformers: `python -m tests.interop.t5_parity`.

Prints what the tests of `tests/models` hold to bounds: the largest difference of a logit and of a
token's log-likelihood under teacher forcing, for random models of two layers of every kind, and how
many texts are written token by token the same. The exit status is 1 if a difference is above
``MOST``, or a text is another.
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from clir_jax.models.generator import Beam, Decoding, Greedy
from clir_jax.models.t5_files import save_t5
from tests.models import test_generator as generators
from tests.models import test_t5 as t5s

MOST = 1e-4
DECODINGS: dict[str, Decoding] = {
    "greedy": Greedy(),
    "beam 3, length penalty 2": Beam(beams=3, length_penalty=2.0),
    "beam 4, length penalty -0.5, early stopping": Beam(
        beams=4, length_penalty=-0.5, early_stopping=True
    ),
}


def main() -> int:
    """Print both tables; return the exit status."""
    wrong = 0
    print(f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, JAX "
          f"{jax.__version__}, {jax.default_backend()}, float32\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        print("| model | largest logit | logits differ by | log-likelihoods differ by |")
        print("|---|---|---|---|")
        for kind in t5s.KINDS:
            largest, *gaps = _differences(kind, Path(folder, kind))
            wrong += not all(gap <= MOST for gap in gaps)  # NaN is not
            print(f"| {kind} | {largest:.1f} | {gaps[0]:.1e} | {gaps[1]:.1e} |")
        print("\n| decoding | texts the same, token by token |\n|---|---|")
        model = _their_generator(Path(folder, "generator"))
        for name, decoding in DECODINGS.items():
            same = _same_texts(model, decoding)
            wrong += not (len(same) and same.all())
            print(f"| {name} | {same.sum()} of {len(same)} |")
    return 1 if wrong else 0


def _differences(kind: str, directory: Path) -> list[float]:
    """The largest logit, and by how much logits and log-likelihoods differ at most."""
    _, graphdef, params = t5s._ours(kind, directory)
    source, mask, target, scored = t5s._batch()
    theirs = t5s._their_logits(t5s._theirs(kind), source, mask, target)[scored]
    ours = np.asarray(t5s._logits(graphdef, params, source, mask, target))[scored]
    chosen = target[scored][:, None]
    told = torch.log_softmax(torch.tensor(theirs), -1).numpy()
    found = np.asarray(jax.nn.log_softmax(ours))
    arrays = theirs, ours - theirs, np.take_along_axis(found - told, chosen, axis=1)
    return [float(np.abs(array).max()) for array in arrays]


def _their_generator(directory: Path) -> transformers.PreTrainedModel:
    save_t5(directory, generators.CONFIG, generators._model()[1]["t5"])
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(directory).eval()


def _same_texts(model: transformers.PreTrainedModel, decoding: Decoding) -> np.ndarray:
    options = {"num_beams": 1}
    if isinstance(decoding, Beam):
        options = {
            "num_beams": decoding.beams,
            "length_penalty": decoding.length_penalty,
            "early_stopping": decoding.early_stopping,
        }
    expected, _ = generators._torch_texts(model, **options)
    return (generators._generated(decoding=decoding).ids == expected).all(axis=1)


if __name__ == "__main__":
    sys.exit(main())
