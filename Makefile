# Everything runs in .venv, which the first target that needs it creates. Override on the command line, for example
# `make setup PYTHON=python3.10` or `make setup EXTRAS=cu112,dev`.
PYTHON ?= python3
SEEDS ?= 0
PYTEST_ARGS ?=

# The extras chosen last are kept until others are asked for.
INSTALLED := $(patsubst .venv/installed-%,%,$(wildcard .venv/installed-*))
DEFAULT_EXTRAS := cpu,dev
EXTRAS ?= $(or $(INSTALLED),$(DEFAULT_EXTRAS))
STAMP = .venv/installed-$(EXTRAS)
BIN = .venv/bin

RUNS ?= runs
INIT ?=
CTX ?=
AMP ?=
SMOKE ?=

# *-data.yaml describe data sets; the rest is one target each. The paper's settings share a source network, so their
# rounds start from the -source experiment's (or from INIT=FILE.params); of NTHU, all cities' from one network, which
# the city that is made first trains.
EXPERIMENTS := $(filter-out demo %-data,$(basename $(notdir $(wildcard experiments/*.yaml))))
OWN := $(filter camvid-% demo-%,$(EXPERIMENTS))
NTHU := $(filter nthu-%,$(EXPERIMENTS))
MULTI_SCALE := $(filter %-mst,$(EXPERIMENTS))
SOURCES := $(filter-out $(NTHU),$(filter %-source,$(EXPERIMENTS)))
ROUNDS := $(filter-out $(OWN) $(NTHU) $(MULTI_SCALE) $(SOURCES),$(EXPERIMENTS))

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench clean $(EXPERIMENTS)

CBST = $(BIN)/cbst-mx
# Of every step: CTX=gpu:0, AMP=float16, and SMOKE=1 to see only that every step runs.
SETTINGS = $(if $(SMOKE),--smoke) $(if $(CTX),--ctx $(CTX)) $(if $(AMP),--amp $(AMP))
# $(call source-of,NAME) is the experiment whose source network NAME starts from.
source-of = $(if $(filter nthu-%,$1),nthu-$(word 2,$(subst -, ,$1)),$(if $(findstring fcn8s,$1),$(firstword $(subst -, ,$1))-fcn8s,$(firstword $(subst -, ,$1))))-source
rounds-of = $(if $(filter %-source,$1),,$(if $(SMOKE),1 2,$(if $(filter %-released,$1),1 2 3 4 5 6,1 2 3 4 5 6 7)))
folds = $(if $(SMOKE),0 1,0 1 2 3 4 5 6 7 8 9)

# The steps, each of which is skipped where it is done: a killed make continues.
define source-steps
$(CBST) source experiments/$1.yaml --out $2 $(SETTINGS) $(if $(INIT),--init $(INIT))

endef
define round-steps
$(foreach r,$(call rounds-of,$1),$(CBST) pseudo-label experiments/$1.yaml --round $r --out $2 $3
$(CBST) retrain experiments/$1.yaml --round $r --out $2 $3
)$(CBST) run experiments/$1.yaml --out $2 $3

endef

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1 - /p' $(MAKEFILE_LIST)
	@for name in $(EXPERIMENTS); do printf '%s - ' $$name; sed -n '1s/^# *//p' experiments/$$name.yaml; done

setup: $(STAMP) ## create .venv and install (EXTRAS=cpu,dev or cu112,dev; PYTHON=python3)

demo: $(STAMP) ## adapt a network to generated street scenes (SEEDS=0,1,2,3,4 for mean and spread)
	$(BIN)/cbst-mx demo --out runs/demo --seeds $(SEEDS)

test: $(STAMP) ## run the tests that are neither slow nor need a GPU (PYTEST_ARGS="-k loader")
	$(BIN)/python -m pytest -q -m "not slow and not gpu" $(PYTEST_ARGS)

check: $(STAMP) ## ruff, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## run every benchmark in tools/bench
	@for script in $(or $(wildcard tools/bench/*.py),none); do \
		[ "$$script" != none ] || { echo "there are no benchmarks in tools/bench yet"; break; }; \
		echo "$$script"; $(BIN)/python "$$script" || exit 1; done

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find cbst_mx symbols tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(OWN): %: experiments/%.yaml $(STAMP)
	$(CBST) run $< --out $(RUNS)/$@ $(SETTINGS)

# Source network, rounds of pseudo-labelling and retraining, evaluation, check against the paper.
$(SOURCES): %: experiments/%.yaml $(STAMP)
	$(call source-steps,$@,$(RUNS)/$@)
	$(CBST) run $< --out $(RUNS)/$@ $(SETTINGS) $(if $(INIT),--init $(INIT))
	$(CBST) check-paper $(RUNS)/$@

$(ROUNDS): %: experiments/%.yaml $(STAMP)
	$(call source-steps,$(call source-of,$@),$(RUNS)/$(call source-of,$@))
	$(call round-steps,$@,$(RUNS)/$@,$(SETTINGS) --init $(RUNS)/$(call source-of,$@)/source/parameters.params)
	$(CBST) check-paper $(RUNS)/$@

# Multi-scale testing takes the last network of the run that it is the test of.
$(MULTI_SCALE): %-mst: experiments/%-mst.yaml $(STAMP) %
	$(CBST) run $< --out $(RUNS)/$@ $(SETTINGS) --rounds 0 \
		--init $(RUNS)/$*/round-$(if $(SMOKE),2,7)/parameters.params
	$(CBST) check-paper $(RUNS)/$@

# Ten folds of one city; the mean counts.
$(NTHU): %: experiments/%.yaml $(STAMP)
	test -f $(RUNS)/nthu-source/source/training.json || $(call source-steps,$(call source-of,$@),$(RUNS)/nthu-source)
	$(foreach f,$(folds),$(call round-steps,$@,$(RUNS)/$@/fold-$f,$(SETTINGS) --fold $f --init $(RUNS)/nthu-source/source/parameters.params))
	$(CBST) check-paper $(RUNS)/$@

define REFUSE_PYTHON
import sys
if not (3, 8) <= sys.version_info[:2] <= (3, 11):
    sys.exit("Error: cbst_mx needs Python 3.8 to 3.11, this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("Error: this Python cannot make virtual environments: apt-get install python3-venv, or make PYTHON=python3.11")
endef
export REFUSE_PYTHON

# opencv-python wants libGL of a desktop, which a bare machine lacks; the headless build of the same version has the
# same files without that need.
define CHECK_CV2
import importlib.metadata, subprocess, sys
try:
    import cv2
except ImportError as error:
    headless = "opencv-python-headless==" + importlib.metadata.version("opencv-python")
    print("%s: installing %s over opencv-python" % (error, headless))
    sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", "-q", "--no-deps", headless]))
endef
export CHECK_CV2

# mxnet wants a compiler's libgomp and libquadmath, which a bare machine lacks too. Wheels bring both under other names,
# and mxnet looks in its own folder first.
define CHECK_LIBRARIES
import ctypes, glob, os, shutil, subprocess, sys, sysconfig, tempfile, zipfile
site = sysconfig.get_paths()["purelib"]
folder = os.path.join(site, "mxnet")
def missing(name):
    try:
        ctypes.CDLL(name)
    except OSError:
        return os.path.isdir(folder)
if missing("libquadmath.so.0"):
    shutil.copy(glob.glob(os.path.join(site, "numpy.libs", "libquadmath*"))[0], os.path.join(folder, "libquadmath.so.0"))
    print("libquadmath.so.0 is not on this machine: using the one of numpy's wheel")
if missing("libgomp.so.1"):
    with tempfile.TemporaryDirectory() as download:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", download]
        subprocess.check_call(pip + ["scikit-learn==1.3.2"])
        with zipfile.ZipFile(os.path.join(download, os.listdir(download)[0])) as wheel:
            member = [name for name in wheel.namelist() if "/libgomp" in name][0]
            with open(os.path.join(folder, "libgomp.so.1"), "wb") as library:
                library.write(wheel.read(member))
    print("libgomp.so.1 is not on this machine: using the one of scikit-learn's wheel")
endef
export CHECK_LIBRARIES

# What mxnet lacks (a library of the system, the NVIDIA driver) is said now rather than by every test.
define CHECK_MXNET
import sys
try:
    import symbols.backend
except ImportError as error:
    sys.exit("Error: %s" % error)
endef
export CHECK_MXNET

# Always a new environment: mxnet and mxnet-cu112 must not meet in one. The stamp is made when all has worked.
$(STAMP): setup.py
	@command -v $(PYTHON) >/dev/null || { echo "Error: there is no $(PYTHON) here: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c "$$REFUSE_PYTHON"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q 'pip>=21.3'
	$(BIN)/python -m pip install -q -e '.[$(EXTRAS)]'
	@$(BIN)/python -c "$$CHECK_CV2"
	@$(BIN)/python -c "$$CHECK_LIBRARIES"
	@$(BIN)/python -c "$$CHECK_MXNET"
	@touch $@
