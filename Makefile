# Short words: train, test, check, clean. Each makes the virtual environment that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test check types clean

train: $(VENV)/installed
	@rm -rf runs/sample
	$(BIN)/refimpl train --preset laptop --out runs/sample --time-limit 120
	@echo
	$(BIN)/refimpl eval runs/sample --yardsticks
	@echo
	$(BIN)/refimpl generate runs/sample --length 500
	@echo
	@echo "The run is in runs/sample: config.toml, log.jsonl, checkpoints/. More text: refimpl generate runs/sample --prompt 'The '"
	@echo "(the command is $(BIN)/refimpl)"

test: $(VENV)/installed-for-tests check
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

check: $(VENV)/installed-for-tests types
	$(BIN)/ruff check .

# the checkout's folders become one package only when installed, so what is type-checked is an unpacked wheel
types: $(VENV)/installed-for-tests
	@rm -rf build/wheel build/types && mkdir -p build/types
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w build/wheel .
	$(BIN)/python -m zipfile -e build/wheel/*.whl build/types
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p refimpl

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
