# Short words: train, test, check, bench, ablations, vectors, mutants, sweep, faults, clean. Each makes the virtual
# environment that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/sample

CUDA_ON_CPU := build/cuda-on-cpu

.PHONY: train test check types bench ablations vectors vectors-check clean mutants sweep sweep-sample faults cuda-on-cpu gpu-check

# a second call goes on with the first one's run: no run is ever removed or overwritten; 75 says that the time limit came
train: $(VENV)/installed
	@if [ -e $(RUN)/config.toml ]; then echo "$(RUN) is there already: going on with it (remove the folder to begin anew)"; fi
	$(BIN)/refimpl train --preset laptop --out $(RUN) --time-limit 120 $$([ -e $(RUN)/config.toml ] && echo --resume) || [ $$? = 75 ]
	@echo
	$(BIN)/refimpl eval $(RUN) --yardsticks
	@echo
	$(BIN)/refimpl generate $(RUN) --length 500
	@echo
	@echo "The run is in $(RUN): config.toml (its settings), log.jsonl (its progress), checkpoints/."
	@echo "More text:      $(BIN)/refimpl generate $(RUN) --prompt 'The '"
	@echo "Your own file:  $(BIN)/refimpl train --data FILE --out runs/mine"

test: $(VENV)/installed-for-tests check cuda-on-cpu
	$(BIN)/python -m pytest -q -n 2 --dist worksteal
	$(MAKE) --no-print-directory vectors-check
	$(MAKE) --no-print-directory sweep-sample

bench: $(VENV)/installed
	$(BIN)/refimpl bench

# the paper's ablation, repeated: 18 runs, about an hour on two cores; a second call goes on, and repeats nothing
ablations: $(VENV)/installed
	$(BIN)/python benchmarks/ablations.py

# golden vectors: written anew, or made once more and compared with those that are here
vectors: $(VENV)/installed
	$(BIN)/python -m refimpl.golden.generate

vectors-check: $(VENV)/installed
	$(BIN)/python -m refimpl.golden.generate --check

check: $(VENV)/installed-for-tests types
	$(BIN)/ruff check .

# the checkout's folders become one package only when installed, so what is type-checked is an unpacked wheel
types: $(VENV)/installed-for-tests
	@rm -rf build/wheel build/types && mkdir -p build/types
	$(BIN)/python -m hatchling build -t wheel -d build/wheel
	$(BIN)/python -m zipfile -e build/wheel/*.whl build/types
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p refimpl

# a stand-in for a GPU, on which tests run the real CuPy: half a minute, then kept. Without g++ its tests are skipped, in CI not
cuda-on-cpu: $(VENV)/installed-for-tests
	$(BIN)/python tests/cuda_on_cpu/build.py $(CUDA_ON_CPU) || [ "$$CI" != true ]

# on a machine with a GPU: everything that only it can show, into gpu-check.md; elsewhere it says so, and exits with 3
gpu-check: $(VENV)/installed-for-tests
	@$(BIN)/python benchmarks/gpu_check.py gpu-check.md

# every bug of the registry, planted; both write their figures into docs/mutants.md
mutants: $(VENV)/installed-for-tests
	$(BIN)/python tests/mutants/run.py

# every small change of the numerical files: an hour or more on two cores
sweep: $(VENV)/installed-for-tests
	$(BIN)/python tests/mutants/sweep.py

# some of them, others whenever a numerical file changes, or those of a SEED
SAMPLE ?= 150
SEED ?=
sweep-sample: $(VENV)/installed-for-tests
	$(BIN)/python tests/mutants/sweep.py $(SAMPLE) $(SEED)

# kills, of one rank of two as well, failing system calls, damaged checkpoints, settings, golden vectors and texts, a million
# updates: three hours; writes its figures into docs/reliability.md. `make faults CAMPAIGNS="endurance mpi_kills"`: those alone
CAMPAIGNS ?=
faults: $(VENV)/installed-for-tests
	$(BIN)/python tests/faults/run.py $(CAMPAIGNS)

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
