# Everything works from a machine with python3 >= 3.11 and make: the first target that needs the
# environment builds it. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Torch (tests only) is pinned to one minor version: newer ones bring gigabytes of CUDA on Linux.
EXTRAS ?= test
WORKERS ?= 2

.PHONY: quickstart test test-slow test-interop smoke lint clean

quickstart: $(VENV)/.base
	$(BIN)/python -m clir_jax.train --config configs/quickstart.py --run-dir runs/quickstart

test: $(VENV)/.$(EXTRAS)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: $(VENV)/.notebook
	$(BIN)/python -m pytest -m slow

# Other libraries load our exports, each in an environment of its own: their pins exclude each other.
INTEROP := $(VENV)/interop
CHECK := tests/interop/check.py $(INTEROP)/models
test-interop: $(VENV)/.libraries $(addprefix $(INTEROP)/,$(addsuffix /.ready,\
    sentence-transformers-5 pylate colbert))
	$(BIN)/python -m tests.interop.write $(INTEROP)/models
	$(INTEROP)/sentence-transformers-5/bin/python $(CHECK) sentence-transformers transformers
	$(INTEROP)/pylate/bin/python $(CHECK) pylate sentence-transformers
	$(INTEROP)/colbert/bin/python $(CHECK) colbert-ai
	$(BIN)/python $(CHECK) "sentence-transformers 6" transformers onnxruntime
	REQUIRE_ONNX=1 $(BIN)/python -m pytest tests/models/test_export_onnx.py
	$(BIN)/python -m tests.interop.t5_parity
	$(BIN)/python -m tests.interop.mteb_task

# A short run and the step on simulated devices, without torch: for new versions of Python and JAX.
smoke: $(VENV)/.smoke
	$(BIN)/python -m clir_jax.train --config configs/quickstart.py --run-dir $(VENV)/smoke \
	  --set stages.teacher.steps=4 --set stages.distil.steps=4
	rm -rf $(VENV)/smoke
	$(BIN)/python -m pytest tests/test_mesh.py tests/training/test_step.py tests/data/test_demo.py

lint: $(VENV)/.$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch/*.sh

clean:
	rm -rf $(VENV) build *.egg-info

# Stamps, so that an environment is built once for each set of packages and each pyproject.toml.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.smoke: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable . "pytest>=8.4" "beartype>=0.20"
	touch $@

$(VENV)/.$(EXTRAS): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

$(VENV)/.notebook: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS),notebook]"
	touch $@

$(VENV)/.libraries: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS),onnx,mteb]"
	touch $@

$(INTEROP)/%/.ready: tests/interop/environments/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	$(foreach file,$(wildcard $(<:.txt=.alone.txt)),\
	  $(@D)/bin/python -m pip install --quiet --no-deps --requirement $(file))
	touch $@
