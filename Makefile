# make demo                 train a small InternImage on handwritten digits (BACKEND=tensorflow)
# make test                 the whole test suite on the three backends, one after the other
# make test BACKEND=jax     on one
# make test-full            the default tests and the full-size parity of the large variants
# make sanitize             the kernels' tests under AddressSanitizer and UBSan
# make bench                the operator and InternImage-T next to the official formulation
# make bench-export         InternImage-T exported to every format, verified and timed
# make gpu                  what of DCNv3 works on this machine's GPU, and how fast: ten minutes
# make bench-devices        DCNv3's implementations on JAX' device: for a GPU, with JAX for it installed
# make wheels               into dist/: the source distribution, the wheel for any platform, and one
#                           with the kernels of processors for this one; where nvcc is, one with
#                           those of NVIDIA GPUs
# make docs                 the documentation site, into site/, with all links checked
# make lint                 style, format and types: ruff and mypy
# make clean
#
# Each creates .venv and installs what it needs the first time. Outside this folder nothing changes
# but the user's cache, which keeps what was compiled.

# Waiting threads sleep: where others use the cores too, PyTorch is many times slower otherwise.
export OMP_WAIT_POLICY := PASSIVE
export TF_CPP_MIN_LOG_LEVEL := 2

BACKENDS := tensorflow jax torch
VENV := .venv
PY := $(VENV)/bin/python
WORKERS ?= 2
TESTS ?= tests
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

ifdef BACKEND
  ifeq ($(filter $(BACKEND),$(BACKENDS)),)
    $(error BACKEND must be one of $(BACKENDS). Received: BACKEND=$(BACKEND))
  endif
endif
DEMO_BACKEND := $(or $(BACKEND),tensorflow)
TEST_BACKENDS := $(or $(BACKEND),$(BACKENDS))
PIP := $(PY) -m pip --disable-pip-version-check --no-input install --quiet --progress-bar off

# The first interpreter that is new enough; make PYTHON=... chooses another.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
FIND_PYTHON = for p in $${PYTHON:-python3 python3.13 python3.12 python3.11}; do \
	if "$$p" -c '$(NEW_ENOUGH)' 2>/dev/null; then echo "$$p"; break; fi; done

.PHONY: help demo test test-full sanitize docs lint bench bench-export bench-devices gpu wheels clean
help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# A stamp is written after its step succeeded, so an interrupted installation is taken up again.
$(VENV)/.stamp-venv:
	@python="$$($(FIND_PYTHON))"; if [ -z "$$python" ]; then \
	  echo "Python 3.11 or newer must be installed. Received: $$("$${PYTHON:-python3}" --version 2>&1 || true)." >&2; \
	  echo "Where it has another name: make PYTHON=/path/to/python3.12" >&2; exit 1; fi; \
	echo "Creating $(VENV) with $$("$$python" --version) ..."; \
	"$$python" -m venv $(VENV) || { \
	  echo "python -m venv failed; on Debian and Ubuntu it needs the package python3-venv." >&2; \
	  exit 1; }
	@touch $@

# The frameworks come first, from pinned versions: the package's own ranges never choose them.
$(VENV)/.stamp-%: requirements/%.txt requirements/base.txt $(VENV)/.stamp-venv
	@echo "Installing $< into $(VENV) ..."
	@$(PIP) -r $<
	@touch $@

$(VENV)/.stamp-test: requirements/demo.txt
$(VENV)/.stamp-test $(VENV)/.stamp-demo: $(addprefix requirements/,tensorflow.txt torch.txt export.txt)

# Without dependencies: theirs name another build of TensorFlow. See the file.
$(VENV)/.stamp-ecosystem: requirements/ecosystem.txt $(VENV)/.stamp-test
	@echo "Installing $< into $(VENV) ..."
	@$(PIP) --no-deps -r $<
	@touch $@

# In a folder that PyTorch's tests alone see: a process that has loaded TensorFlow ends when it loads
# Triton, for both bring LLVM.
$(VENV)/.stamp-triton: requirements/triton.txt $(VENV)/.stamp-venv
	@echo "Installing $< into $(VENV)/triton ..."
	@rm -rf $(VENV)/triton
	@$(PIP) --no-deps --target $(VENV)/triton -r $<
	@touch $@

$(VENV)/.stamp-package: setup.cfg pyproject.toml $(VENV)/.stamp-base
	@echo "Installing keras_internimage into $(VENV) ..."
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

demo: $(VENV)/.stamp-$(DEMO_BACKEND) $(VENV)/.stamp-demo $(VENV)/.stamp-package
	@KERAS_BACKEND=$(DEMO_BACKEND) $(PY) examples/demo.py

INSTALLED_FOR_TESTS := $(TEST_BACKENDS:%=$(VENV)/.stamp-%) \
	$(addprefix $(VENV)/.stamp-,test package ecosystem triton docs)
PYTEST = $(PY) -m pytest $(TESTS) -q -n $(WORKERS) --dist worksteal --durations=5

# Every backend runs, also after a failure; the exit status is that of the worst. Tests that do not
# depend on it run on the last one: PyTorch, which starts and builds models the quickest.
define run_tests
	@failed=""; for backend in $(TEST_BACKENDS); do \
	  echo "== $$backend"; \
	  more=""; if [ $$backend = torch ]; then more=$(CURDIR)/$(VENV)/triton; fi; \
	  PYTHONPATH="$$more$${PYTHONPATH:+:$$PYTHONPATH}" \
	  KERAS_BACKEND=$$backend KERAS_INTERNIMAGE_TEST_ANY_BACKEND=$(lastword $(TEST_BACKENDS)) \
	    $(PYTEST) $(1) </dev/null || failed="$$failed $$backend"; \
	done; \
	if [ -n "$$failed" ]; then echo "Tests failed on:$$failed" >&2; exit 1; fi; \
	echo "All tests passed on: $(TEST_BACKENDS)"
endef

test: $(INSTALLED_FOR_TESTS)
	$(call run_tests,)

test-full: $(INSTALLED_FOR_TESTS) $(VENV)/.stamp-wheels
	$(call run_tests,-m "slow or not slow")

# The compiler with the sanitizers is another compiler: its libraries do not mix with the others.
SANITIZER := g++ -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
sanitize: $(INSTALLED_FOR_TESTS)
	@export CXX="$(SANITIZER)" KERAS_INTERNIMAGE_CACHE=$(CURDIR)/build/sanitize \
	    KERAS_BACKEND=$(firstword $(TEST_BACKENDS)) KERAS_INTERNIMAGE_KERNELS=require; \
	  $(PY) -c "from keras_internimage.custom_ops import build; print(build.core_library())"; \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	  $(PY) -m pytest tests/custom_ops/test_core*.py -q -s -p no:cacheprovider -p no:xdist

docs: $(VENV)/.stamp-docs $(VENV)/.stamp-torch $(VENV)/.stamp-package
	@KERAS_BACKEND=torch NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "site/index.html"

lint: $(VENV)/.stamp-test
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

# The official formulation, which everything is compared with, is PyTorch's.
BENCHED := $(or $(BACKEND),torch tensorflow jax)
bench: $(BENCHED:%=$(VENV)/.stamp-%) $(VENV)/.stamp-test $(VENV)/.stamp-package
	@$(PY) benchmarks/dcnv3.py --backends $(BENCHED)
	@$(PY) benchmarks/model.py --backends $(BENCHED)
	@for backend in $(BENCHED); do \
	  echo "== import on $$backend"; KERAS_BACKEND=$$backend $(PY) benchmarks/import_time.py; \
	done

bench-export: $(BENCHED:%=$(VENV)/.stamp-%) $(VENV)/.stamp-test $(VENV)/.stamp-package
	@$(PY) benchmarks/export.py --backends $(BENCHED)

# With the JAX that is there: an environment of a GPU, not the one of the tests. Its processors'
# kernels and, where nvcc is, its CUDA kernels are built first.
bench-devices:
	@export KERAS_BACKEND=jax PYTHONPATH=$(CURDIR); python="$$($(FIND_PYTHON))"; \
	  if "$$python" -c 'import sys; from custom_ops import toolchain as t; sys.exit(not t.nvcc_paths())'; then \
	    "$$python" -m keras_internimage.custom_ops build --backend jax --cuda; fi; \
	  "$$python" benchmarks/jax_devices.py

# With the Python, and the frameworks for GPUs, that are there. OPTIONS="--dry-run" rehearses it on
# the processor; others: python -m benchmarks.gpu --help.
gpu:
	@python="$$($(FIND_PYTHON))"; \
	  PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" "$$python" -m benchmarks.gpu $(OPTIONS)

wheels: $(VENV)/.stamp-wheels
	@$(PY) wheels/build.py
	@$(PY) wheels/cuda_wheel.py

clean:
	rm -rf $(VENV) demo build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
