# Every target sets up what it needs: a virtual environment in .venv with PyTorch, the package
# installed from this tree, and its C++ kernels. The second time that costs nothing.

SHELL := /bin/bash
.SHELLFLAGS := -e -u -o pipefail -c
.DEFAULT_GOAL := help

# The interpreter .venv is made from; empty: python3.11 if there is one, else python3.
PYTHON ?=
# Passed on to the command a target runs, e.g. make test ARGS="-k options -x".
ARGS ?=

VENV := .venv/bin
PIP := $(VENV)/python -m pip --disable-pip-version-check
# Prints the requirements that an expression over pyproject.toml gives, one a line.
REQUIREMENTS = @$(VENV)/python -c 'import tomllib; config = tomllib.load(open("pyproject.toml", "rb")); project = config["project"]; extras = project["optional-dependencies"]; print(*$(1), sep="\n")'
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' 2>/dev/null)
CXX_TESTS := $(wildcard tests/amx/*.cpp tests/amx/*.h tests/task_queue/*.cpp)
# The folders of scripts, beside the package, that hold any.
SCRIPTS := $(patsubst %/,%,$(sort $(dir $(wildcard examples/*.py benchmarks/*.py))))
# The compiler that both setuptools and Inductor take. It is part of the stamp's name, so that a
# compiler installed later leads to the kernels being built.
COMPILER := $(shell command -v $${CXX:-g++} 2>/dev/null)
INSTALLED := .venv/.installed$(if $(COMPILER),,-without-compiler)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(INSTALLED) ## compare eager, Inductor and coxmoe on a model (ARGS="--layers 2")
	$(VENV)/python examples/quickstart.py $(ARGS)

# Several processes, each with whole files: fixtures are shared within a file. Threads that wait for
# work sleep, so that they do not take the cores from the other processes.
PYTEST = OMP_WAIT_POLICY=passive $(VENV)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: test
test: $(INSTALLED) ## run the tests, without the slow ones (ARGS="-k options")
	$(PYTEST) $(ARGS)

.PHONY: test-all
test-all: $(INSTALLED) ## run all tests
	$(PYTEST) -m "" $(ARGS)

# Intel Extension for PyTorch takes PyTorch 2.8, so it gets an environment of its own. Both come from
# PyPI without dependencies; PyTorch's is a CUDA build, for whose libraries stubs are made. The package
# is installed without C++ kernels (CXX=none names no compiler); tests run where its sources are not.
.PHONY: test-ipex
test-ipex: build/ipex/.installed ## test the experts of Intel Extension for PyTorch, beside PyTorch 2.8
	ln -sfn ../../tests ../../pyproject.toml build/ipex
	cd build/ipex && venv/bin/python -m pytest tests/ipex $(ARGS)

IPEX_PIP := build/ipex/venv/bin/python -m pip --disable-pip-version-check

build/ipex/.packages: pyproject.toml tests/ipex/requirements.txt tests/ipex/stub_libraries.py | .venv/bin/pip
	rm -rf build/ipex
	.venv/bin/python -m venv build/ipex/venv
	$(call REQUIREMENTS,[r for r in project["dependencies"] + extras["examples"] + extras["dev"] if not r.startswith(("torch", "ruff", "mypy", "clang"))]) \
	    | $(IPEX_PIP) install -r /dev/stdin -r tests/ipex/requirements.txt
	$(IPEX_PIP) install --no-deps torch==2.8.0 intel-extension-for-pytorch==2.8.0
	build/ipex/venv/bin/python tests/ipex/stub_libraries.py build/ipex/venv/lib/python3*/site-packages/torch/lib
	@touch $@

build/ipex/.installed: build/ipex/.packages pyproject.toml setup.py $(shell find coxcompile passes runtime -name '*.py' -o -name '*.json')
	rm -rf build/ipex/source && mkdir build/ipex/source
	cp -r pyproject.toml setup.py README.md LICENSE coxcompile passes runtime build/ipex/source
	CXX=none $(IPEX_PIP) install --no-build-isolation --no-deps --force-reinstall build/ipex/source
	@touch $@

.PHONY: test-numa
test-numa: $(INSTALLED) ## test expert weights on two NUMA nodes, in an emulated machine (qemu-system-x86)
	tests/numa/run_in_two_nodes env OMP_NUM_THREADS=4 $(abspath $(VENV))/python \
	    -m pytest -p no:cacheprovider --show-capture=no tests/numa $(ARGS)

.PHONY: coexecution
coexecution: $(INSTALLED) ## policies side by side on the emulated accelerator (ARGS="--policies coxmoe")
	$(VENV)/python examples/coexecution.py $(ARGS)

# PyTorch then asks for large pages. With small ones the luck of which pages the weights and their
# packed copies get decides by up to 1.7x.
LARGE_PAGES := THP_MEM_ALLOC_ENABLE=1

.PHONY: bench
bench: $(INSTALLED) ## time the experts alone against others and the roofline (ARGS="--tokens 1,8")
	$(LARGE_PAGES) $(VENV)/python benchmarks/experts.py $(ARGS)

.PHONY: bench-peers
bench-peers: $(INSTALLED) build/peers/.installed ## the same beside zentorch, SGLang's kernel and vLLM's
	$(LARGE_PAGES) PYTHONPATH=build/peers $(VENV)/python benchmarks/experts.py --peers $(ARGS)

build/peers/.installed: benchmarks/peers.txt | .venv/.packages
	rm -rf build/peers
	$(PIP) install --no-deps --target build/peers -r benchmarks/peers.txt
	@touch $@

# For machines that cannot download: GPU_PYTHON=python3 has all packages but ours.
GPU_PYTHON ?=
ifeq ($(GPU_PYTHON),)
GPU_INSTALLED := $(INSTALLED)
GPU_RUN = $(VENV)/python
else
GPU_INSTALLED := build/gpu/.installed
GPU_RUN = PYTHONPATH=$(CURDIR)/build/gpu$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON)
endif

.PHONY: gpu-check
gpu-check: $(GPU_INSTALLED) ## check everything that runs on a GPU (ARGS="--json FILE --markdown FILE")
	$(GPU_RUN) benchmarks/gpu_check.py $(ARGS)

.PHONY: gpu-bench
gpu-bench: $(GPU_INSTALLED) ## time kernels, models, policies and copies on a GPU
	$(GPU_RUN) benchmarks/gpu_bench.py $(ARGS)

# -P: beside this file the folder coxcompile/ would hide the installed package.
.PHONY: gpu-tune
gpu-tune: $(GPU_INSTALLED) ## choose tiles for this GPU (ARGS="--model qwen3-30b-a3b")
	$(GPU_RUN) -P -m coxcompile tune $(ARGS)

build/gpu/.installed: pyproject.toml setup.py $(CXX_SOURCES) $(shell find coxcompile passes runtime -name '*.py' -o -name '*.json')
	rm -rf build/gpu
	$(GPU_PYTHON) -m pip install --no-index --no-build-isolation --no-deps --target build/gpu .
	@touch $@

.PHONY: paper
paper: $(INSTALLED) ## predict the paper's figures into docs/paper/ (nothing is measured)
	$(VENV)/python benchmarks/paper.py --output docs/paper $(ARGS)

.PHONY: lint
lint: .venv/.packages ## check style: ruff, clang-format
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(if $(CXX_SOURCES),$(VENV)/clang-format --dry-run -Werror $(CXX_SOURCES) $(CXX_TESTS))

# mypy knows nothing of setuptools' package-dir, which puts passes/ and runtime/ into the package,
# so it gets a tree that looks like the installed package. Scripts import each other by bare name.
.PHONY: types
types: .venv/.packages ## check types: mypy
	@rm -rf .mypy_cache/source && mkdir -p .mypy_cache/source/coxcompile
	@cd .mypy_cache/source/coxcompile && ln -s ../../../coxcompile/* ../../../passes ../../../runtime .
	@$(if $(SCRIPTS),ln -s $(SCRIPTS:%=../../%) .mypy_cache/source)
	cd .mypy_cache/source && MYPYPATH=.:examples:benchmarks \
	    ../../$(VENV)/mypy --config-file ../../pyproject.toml --cache-dir .. --explicit-package-bases \
	    coxcompile $(SCRIPTS) | sed -E 's#^coxcompile/(passes|runtime)/#\1/#'

.PHONY: format
format: .venv/.packages ## rewrite the sources in the project's style
	$(VENV)/ruff check --fix
	$(VENV)/ruff format
	$(if $(CXX_SOURCES),$(VENV)/clang-format -i $(CXX_SOURCES) $(CXX_TESTS))

.PHONY: clean
clean: ## remove what was built; .venv stays (rm -r .venv for that too)
	rm -rf build *.egg-info coxcompile/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .venv/.installed*
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

# pip is made last, so a half-made .venv is made again.
.venv/bin/pip:
	@for candidate in $(or $(PYTHON),python3.11 python3); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        python="$$candidate"; break; \
	    fi; \
	done; \
	if [ -z "$${python:-}" ]; then \
	    echo "No Python 3.11 or later found as $(or $(PYTHON),python3.11 or python3). Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	fi; \
	if ! "$$python" -c 'import venv; from ensurepip import version' 2>/dev/null; then \
	    echo "$$python cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; \
	    exit 1; \
	fi; \
	echo "Making .venv with $$("$$python" -V)"; \
	"$$python" -m venv .venv

# PyTorch first, at the version the build pins; triton without its dependencies, so that it cannot
# choose another PyTorch.
.venv/.packages: pyproject.toml | .venv/bin/pip
	$(call REQUIREMENTS,config["build-system"]["requires"]) | $(PIP) install -r /dev/stdin
	$(PIP) install --no-deps triton==3.7.1
	$(call REQUIREMENTS,project["dependencies"] + extras["examples"] + extras["dev"]) | $(PIP) install -r /dev/stdin
	@touch $@

$(INSTALLED): .venv/.packages pyproject.toml setup.py $(CXX_SOURCES)
ifeq ($(COMPILER),)
	@echo "No C++ compiler ($${CXX:-g++}) found: installing without the C++ kernels. On Debian: apt-get install g++" >&2
endif
	@$(VENV)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
	    || echo "No Python.h found, which Inductor needs to compile for the CPU. On Debian: apt-get install python3-dev" >&2
	$(if $(COMPILER),@echo "Building the C++ kernels: a minute or two")
	$(PIP) install --no-build-isolation --no-deps -e .
	@rm -f .venv/.installed* && touch $@
