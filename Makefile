# Two commands do all the set-up: `make chat` and `make test`. `make lint` holds the style.
PYTHON ?= python3
BIN := .venv/bin
DEMO := rwkv-7-village

# What the tests run code of other machines with, of Debian: a linker; aarch64; Vulkan on the CPU with its loader, headers,
# validation layer, validator and a compiler of shaders; a parser of OpenCL C, Metal and C++. Before them what Debian's own
# Python lacks to make a virtual environment, and git, which has the older version that a test compares with.
TOOLS := python3-venv git g++ qemu-user-static g++-aarch64-linux-gnu mesa-vulkan-drivers libvulkan1 libvulkan-dev \
	vulkan-validationlayers spirv-tools glslang-tools clang

chat: dist/$(DEMO)-q4f16_1
	$(BIN)/rwkv-mlc chat $<

dist/$(DEMO)-q4f16_1: $(BIN)/rwkv-mlc
	$(BIN)/python build.py --model configs/demo/$(DEMO) --target llvm --quantization q4f16_1 --template rwkv_world

# Where the tools are missing and cannot be installed, the tests end with a table of what they did not prove. Every core has a
# process that tests; threads of numpy's and torch's beside it would wait for one another most of the time.
test: .venv/test
	@[ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || dpkg -s $(TOOLS) >/dev/null 2>&1 || $(MAKE) tools || true
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST)

tools:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(TOOLS)

lint: .venv/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(BIN)/rwkv-mlc: pyproject.toml
	@echo "Installing into .venv: 39 packages, 140 MB to download, about 500 MB on disk. It takes one to three minutes,"
	@echo "and after pip's line \"Installing collected packages\" there is nothing to see for most of one."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --editable .
	touch $@

.venv/test .venv/lint: .venv/%: $(BIN)/rwkv-mlc
	@echo "Installing what make $* needs; it takes minutes, and the last of them pass in silence."
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv dist/$(DEMO)-q4f16_1

.PHONY: chat test tools lint clean
