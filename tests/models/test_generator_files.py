"""Generators on disk: transformers reads them, and what does not fit is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from clir_jax.mesh import make_mesh, shardings
from clir_jax.models.generator import Generator, Greedy
from clir_jax.models.generator_files import (
    LoadedGenerator,
    abstract_generator,
    is_generator,
    load_generator,
    save_generator,
    start_generator,
)
from clir_jax.models.generator_tokenizer import GeneratorTokenizer
from clir_jax.models.requests import Tokens
from clir_jax.models.t5 import T5Config
from clir_jax.models.t5_files import save_t5
from clir_jax.training.kinds import on_mesh

SPEC = Generator(source_length=9, target_length=6, languages=("sw",))
CONFIG = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)


def _generator(config=CONFIG):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁b", -1.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
    backend.add_special_tokens([AddedToken(t, special=True) for t in special.values()])
    graphdef, target = abstract_generator(SPEC, config)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), target)
    return LoadedGenerator(SPEC, config, graphdef, params, GeneratorTokenizer(backend, special))


@pytest.fixture
def saved(tmp_path):
    save_generator(tmp_path / "model", _generator())
    return tmp_path / "model"


def test_a_saved_generator_is_what_it_was(saved):
    config = dataclasses.replace(CONFIG, dtype="bfloat16", remat=True)
    save_generator(saved, dataclasses.replace(_generator(), t5_config=config))  # replaces it
    loaded = load_generator(saved)
    assert (loaded.spec, loaded.t5_config) == (SPEC, config)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, _generator().params)
    assert loaded.model.spec == SPEC
    places = shardings(loaded.params, make_mesh(2, 2, 2))
    spread = load_generator(saved, shardings=places, dtype="float32")
    assert spread.t5_config == dataclasses.replace(config, dtype="float32")
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, spread.params, places))
    moved = on_mesh(loaded, make_mesh(2, 2, 2)).params
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, moved, places))


def test_transformers_writes_what_we_write(saved):
    pytest.importorskip("torch")
    import transformers

    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(saved).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    batch = tokenizer(["a b b", "b"], padding=True, return_tensors="pt")
    theirs = model.generate(
        batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=6, num_beams=1
    )
    loaded = load_generator(saved)
    ids, mask = (np.asarray(batch[k]) for k in ("input_ids", "attention_mask"))
    source = Tokens(ids.astype(np.int32), mask.astype(bool), mask.astype(bool))
    ours = jax.jit(lambda m: m.generate(source, Greedy()))(loaded.model)
    expected = np.zeros((2, 6), int)
    expected[:, : theirs.shape[1] - 1] = theirs[:, 1:]
    np.testing.assert_array_equal(ours.ids, expected)


def test_a_plain_t5_starts_a_generator(saved, tmp_path):
    plain = tmp_path / "plain"
    save_t5(plain, CONFIG, _generator().params["t5"])
    _generator().tokenizer.save(plain)
    started = start_generator(plain, SPEC, dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, started.params, _generator().params)
    assert started.t5_config == dataclasses.replace(CONFIG, dtype="bfloat16")
    assert is_generator(saved)
    assert not is_generator(plain)
    with pytest.raises(ValueError, match=r"no clir_jax.json of a generator here"):
        load_generator(plain)
    with pytest.raises(FileExistsError, match="holds something else than a generator"):
        save_generator(plain, started)


def test_files_that_do_not_fit_are_refused(saved):
    about = json.loads((saved / "clir_jax.json").read_text())

    def edit(name, change):
        path = saved / name
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | change))

    edit("clir_jax.json", {"generator": about["generator"] | {"lenght": 3}})
    with pytest.raises(
        ValueError, match=r"clir_jax.json: a generator has no field 'lenght'; write"
    ):
        load_generator(saved)
    edit("clir_jax.json", {"generator": about["generator"] | {"target_length": 1}})
    with pytest.raises(ValueError, match=r"clir_jax.json: generator: target_length is 1; write"):
        load_generator(saved)
    edit("clir_jax.json", {"generator": about["generator"]})
    edit("config.json", {"eos_token_id": 3})
    with pytest.raises(ValueError, match=r"eos_token_id is 3 in config.json and '</s>' is token 1"):
        load_generator(saved)
    (saved / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer .*; restore the file"):
        load_generator(saved)
    shutil.rmtree(saved)
    narrow = _generator(dataclasses.replace(CONFIG, vocab_size=4))
    with pytest.raises(ValueError, match="tokenizer has 5 tokens and the model 4 embeddings"):
        save_generator(saved, narrow)
