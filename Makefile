# Everything a checkout needs, on a machine with Python 3.10 or newer, a C++17 compiler and make.
# CMake, Ninja and the linters come into .venv as Python packages.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

NATIVE := CMakeLists.txt $(shell find native -type f)
CMAKE := cmake -G Ninja -S .
CTEST := ctest --output-on-failure --no-tests=error

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: setup
setup: build/.installed ## .venv with the package, its library and the tools of development

# torch comes first and pinned by itself, so that pip never weighs other versions, each with
# gigabytes of CUDA packages.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	python -m pip install -q --upgrade "pip>=23.1"
	python -m pip install -q -c constraints.txt torch torchvision
	python -m pip install -q -c constraints.txt scikit-build-core cmake ninja
	python -m pip install -q -c constraints.txt --no-build-isolation -e ".[dev]" \
		-C build-dir=build -C cmake.define.SEMISPARSE_BUILD_TESTS=ON
	touch $@

# The editable install serves Python from src/ and the library from .venv; this brings that library
# up to date with the sources, with no more work than the changed files need.
build/.installed: $(VENV)/.ready $(NATIVE)
	$(CMAKE) -B build -DCMAKE_BUILD_TYPE=Release -DSEMISPARSE_BUILD_TESTS=ON
	cmake --build build
	cmake --install build --prefix "$$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	touch $@

.PHONY: demo
demo: setup ## train, export and time on real data: a few minutes, ends with report.html
	semisparse demo

.PHONY: test
test: lint native ## every check: linters, types, Python tests, native tests
	python -m pytest -n 2 --dist loadfile

.PHONY: lint
lint: setup ## ruff, mypy --strict, clang-format
	ruff check
	ruff format --check
	mypy
	find native -name '*.h' -o -name '*.cc' | xargs clang-format --dry-run --Werror

.PHONY: native
native: setup ## the operator library and its native tests
	$(CTEST) --test-dir build

# -O1 takes half the time of -O2 to build: 69 against 136 s of processor time.
SANITIZE := $(CMAKE) -DCMAKE_BUILD_TYPE=Debug -DSEMISPARSE_BUILD_TESTS=ON \
	-DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1 -fno-omit-frame-pointer"

.PHONY: sanitize
sanitize: $(VENV)/.ready ## native tests under Address- and UndefinedBehavior-, threads under ThreadSanitizer
	$(SANITIZE) -B build/sanitize \
		-DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all"
	cmake --build build/sanitize
	$(CTEST) --test-dir build/sanitize
	$(SANITIZE) -B build/sanitize-threads -DCMAKE_CXX_FLAGS="-fsanitize=thread"
	cmake --build build/sanitize-threads --target concurrency_test --target parallel_test
	$(CTEST) --test-dir build/sanitize-threads -R "concurrency_test|parallel_test"

CROSS := aarch64-linux-gnu

.PHONY: aarch64
aarch64: $(VENV)/.ready ## native tests for aarch64, cross-compiled, under qemu
	@for tool in $(CROSS)-g++ qemu-aarch64; do command -v $$tool > /dev/null || { \
		echo "make aarch64 needs $$tool: apt-get install g++-$(CROSS) qemu-user" >&2; exit 1; }; done
	$(CMAKE) -B build/aarch64 -DCMAKE_BUILD_TYPE=Release -DSEMISPARSE_BUILD_TESTS=ON \
		-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/native/cmake/$(CROSS).cmake
	cmake --build build/aarch64
	$(CTEST) --test-dir build/aarch64

.PHONY: wheel
wheel: $(VENV)/.ready ## dist/semisparse-*.whl, tried in an environment without torch
	rm -rf dist build/wheel
	python -m pip wheel -q --no-deps --no-build-isolation -w dist .
	python -m venv build/wheel
	build/wheel/bin/pip install -q -c constraints.txt "$$(echo dist/*.whl)[cli]"
	cd build && wheel/bin/semisparse doctor

.PHONY: clean
clean: ## remove what was built; .venv stays
	rm -rf build dist
