# install is what the others need; it does nothing when it is up to date.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-jobs explore faults soak lint audit docs bench help

help:
	@echo "make demo      train on scikit-learn's digits with 2 workers"
	@echo "make test      run the tests"
	@echo "make test-jobs train and label as jobs of a cluster of two nodes on this machine"
	@echo "make explore   the tests of properties on examples that no run before has seen"
	@echo "make faults    kill and damage what runs, at random instants: 25 kills, within 20 minutes"
	@echo "make soak      the same with 200 kills and 10,000 damaged inputs, which takes hours"
	@echo "make lint      ruff and mypy"
	@echo "make audit     ask for known weaknesses of the packages that are tested with"
	@echo "make docs      build the pages of docs/, the commands and the Python names into site/"
	@echo "make bench     measure the figures of the documents, and write them there"
	@echo "make install   what all of them need, into .venv"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	@touch $(STAMP)

demo: install
	@$(BIN)/python -m pipelines.train scale=local

test: install
	@$(BIN)/python -m pytest -n 2

test-jobs: install
	@$(BIN)/python -m pytest -m long tests/cluster

explore: install
	@$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=explore

faults: install
	$(BIN)/python -m benchmarks.faults --save
	$(BIN)/python -m benchmarks.results
	$(BIN)/python -m benchmarks.leaks

soak: install
	FUZZ_CASES=10000 $(BIN)/python -m pytest tests/test_fuzz.py --hypothesis-profile=explore --timeout=0
	$(BIN)/python -m tests.fuzz_atheris 10000
	$(BIN)/python -m benchmarks.faults --rounds 8 --seed 1 --damages 10000
	$(BIN)/python -m benchmarks.leaks --minutes 120 --save
	$(BIN)/python -m benchmarks.results

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Takes pip-audit, and a network in which it reaches its data base.
audit: install
	@$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip

docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# IMAGES='cifar10/train-*.parquet': JPEG images for labelling and pools, in place of scikit-learn's digits.
# SEMILEARN=folder IMAGE_FILE=cifar10/train-00000.parquet: semilearn beside ours (benchmarks/peer.py).
bench: install
	$(BIN)/python -m benchmarks.views --save
	$(BIN)/python -m benchmarks.views --batch 112 --save views_112
	$(BIN)/python -m benchmarks.views --batch 112 --size 96 --save views_96
	$(BIN)/python -m benchmarks.views --batch 112 --size 224 --save views_224
	$(BIN)/python -m benchmarks.parts --save
	$(BIN)/python -m benchmarks.step --save
	$(BIN)/python -m benchmarks.step --speedup --steps 10 --save step_speedup
	$(BIN)/python -m benchmarks.step --workers 1 --classes 1000 --steps 7 --save step_1000_classes
	$(BIN)/python -m benchmarks.step --workers 1 --classes 10000 --steps 7 --save step_10000_classes
	$(BIN)/python -m benchmarks.step --open-set --save step_open_set
	$(BIN)/python -m benchmarks.step --features 384 --workers 1 --batch-size 448 --save step_features
	$(BIN)/python -m benchmarks.feature_rates --save
	$(BIN)/python -m benchmarks.step --compare --save step_compare
	$(BIN)/python -m benchmarks.step --compare --weak-precision bfloat16 --save step_compare_bfloat16
	$(if $(SEMILEARN),$(BIN)/python -m benchmarks.peer --semilearn $(SEMILEARN) --images $(IMAGE_FILE) --save)
	$(if $(SEMILEARN),$(BIN)/python -m benchmarks.peer --semilearn $(SEMILEARN) --images $(IMAGE_FILE) --weak-precision bfloat16 --save peer_bfloat16)
	$(BIN)/python -m benchmarks.start --save
	$(BIN)/python -m benchmarks.threads --save
	$(BIN)/python -m benchmarks.finetune --save
	$(BIN)/python -m benchmarks.label $(if $(IMAGES),--images '$(IMAGES)') --save
	$(BIN)/python -m benchmarks.mistakes --save
	$(BIN)/python -m benchmarks.pool_rates --save
	$(BIN)/python -m benchmarks.listing --save
	$(BIN)/python -m benchmarks.ledger --save
	$(BIN)/python -m benchmarks.tracking --windows 4 --save
	$(BIN)/python -m benchmarks.search --save
	$(BIN)/python -m benchmarks.pool $(if $(IMAGES),--images '$(IMAGES)') --only memory --save
	$(BIN)/python -m benchmarks.pool $(if $(IMAGES),--images '$(IMAGES)') --only wait --save
	$(BIN)/python -m benchmarks.pool $(if $(IMAGES),--images '$(IMAGES)') --only feed --ahead 4 null --sizes 200000 --save
	$(BIN)/python -m benchmarks.scaling --save
	$(BIN)/python -m benchmarks.results
