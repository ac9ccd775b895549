# Two commands do all the set-up: `make chat` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
DEMO := rwkv-5-village

chat: dist/$(DEMO)-q4f16_1
	$(BIN)/rwkv-mlc chat $<

dist/$(DEMO)-q4f16_1: $(BIN)/rwkv-mlc
	$(BIN)/python build.py --model configs/demo/$(DEMO) --target llvm --quantization q4f16_1

test: .venv/test
	$(BIN)/python -m pytest -n auto

$(BIN)/rwkv-mlc: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/test: $(BIN)/rwkv-mlc
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv dist/$(DEMO)-q4f16_1

.PHONY: chat test clean
