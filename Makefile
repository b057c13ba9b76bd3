# Everything runs in .venv, which the first target that needs it creates. Override on the command line, for example
# `make setup PYTHON=python3.10` or `make setup EXTRAS=cu112`. The tools of development come with the first target that
# needs them.
PYTHON ?= python3
SEEDS ?= 0
PYTEST_ARGS ?=
FUZZ ?= 1000

# The extras chosen last are kept until others are asked for.
INSTALLED := $(patsubst .venv/installed-%,%,$(wildcard .venv/installed-*))
DEFAULT_EXTRAS := cpu
EXTRAS ?= $(or $(INSTALLED),$(DEFAULT_EXTRAS))
STAMP = .venv/installed-$(EXTRAS)
DEV = $(if $(findstring dev,$(EXTRAS)),$(STAMP),.venv/with-dev)
BIN = .venv/bin

RUNS ?= runs
INIT ?=
CTX ?=
AMP ?=
SMOKE ?=
REHEARSE ?=
TARGET ?=
ROUNDS ?=
FULL ?=
WRITE ?=
ONLY ?=
TORCH ?=
BENCH ?=

# One target for each experiment file; *-data.yaml describe data sets, and the demo has a target of its own.
EXPERIMENTS := $(filter-out demo %-data,$(basename $(notdir $(wildcard experiments/*.yaml))))

.DEFAULT_GOAL := help
.PHONY: help setup demo camvid-ablation test fuzz check docs bench bench-ci gpu-check gpu-rehearsal clean $(EXPERIMENTS)

# $(call setting,NAME,KEY) is what experiments/NAME.yaml, or else the file that it extends, says of a key; empty for null.
# Rounds, folds and the network to start from stand in these files only; sed, because nothing is installed before set-up.
HASH := \#
read = $(firstword $(shell sed -n 's/$(HASH).*//; s/^\(.*[ {,]\)\{0,1\}$2: *\([^ ,}]*\).*/\2/p' $1))
look-up = $(or $(call read,$1,$2),$(if $(call read,$1,extends),$(call look-up,$(dir $1)$(call read,$1,extends),$2)))
setting = $(filter-out null,$(call look-up,experiments/$1.yaml,$2))

# Of every step: CTX=gpu:0, AMP=float16, and SMOKE=1 to see only that every step runs.
CBST = $(BIN)/cbst-mx
SETTINGS = $(if $(SMOKE),--smoke) $(if $(CTX),--ctx $(CTX)) $(if $(AMP),--amp $(AMP))
smoke = $(if $(SMOKE),$(wordlist 1,2,$1),$1)
unsaid = $(error experiments/$1.yaml or the file that it extends must say rounds)
stated = $(or $(call setting,$1,rounds),$(unsaid))
rounds = $(call smoke,$(shell seq 1 1 $(if $(filter-out 0,$(stated)),$(or $(ROUNDS),$(stated)),0)))
# The unlabelled images of a city (TARGET=train) are in no fold.
folds = $(call smoke,$(if $(filter train,$(TARGET)),,$(if $(call setting,$1,folds),$(shell seq 0 1 $$(($(call setting,$1,folds) - 1))))))
# $(call folder,NAME) is where NAME runs. TARGET=train adapts on other images and ROUNDS=12 that often, in folders of their
# own, and so is what starts from there; an experiment without rounds adapts on none itself, and the source network that
# others start from is always the same.
adapts = $(if $(TARGET)$(ROUNDS),$(filter-out 0,$(call setting,$1,rounds)))
varied = $(or $(call adapts,$1),$(if $(call setting,$1,starts_from),$(call adapts,$(call setting,$1,starts_from))))
folder = $(RUNS)/$1$(if $(call varied,$1),$(addprefix -,$(TARGET))$(patsubst %,-%-rounds,$(ROUNDS)))
variant = $(if $(call adapts,$1),$(addprefix --target ,$(TARGET)) $(addprefix --rounds ,$(ROUNDS)))
# $(call network,NAME) is what NAME ends with: its last round's network, or the source network where it has no rounds.
network = $(call folder,$1)/$(or $(patsubst %,round-%,$(lastword $(call rounds,$1))),source)/parameters.params

# $(call start,NAME) is the experiment whose network NAME starts from; none where the network that the program's authors
# released is there, which NAME then finds itself, and does not use for SMOKE=1: its size is another.
released = $(if $(SMOKE),,$(if $(call setting,$1,released_start),$(wildcard $(CBST_DATA)/$(call setting,$1,released_start))))
start = $(if $(call released,$1),,$(call setting,$1,starts_from))

# $(call steps,NAME,START) makes NAME, which starts from START's network or, without START, from its own source training
# (or INIT=FILE.params). Each step is skipped where it is done: a killed make continues. What NAME itself reads is looked at
# before START's training, which may take weeks.
define steps
$(if $2,$(call inputs-step,$1)
$(call before,$2,$(call start,$2)),$(call source-step,$1))
$(if $(call folds,$1),$(foreach f,$(call folds,$1),$(call round-steps,$1,$2,/fold-$f,--fold $f)),$(call round-steps,$1,$2))
$(if $(call setting,$1,table),$(CBST) check-paper $(call folder,$1))

endef
# A START that itself starts from nothing is only trained, not evaluated.
before = $(if $2,$(call steps,$1,$2),$(call source-step,$1))
inputs-step = $(CBST) check-inputs experiments/$1.yaml $(SETTINGS) $(call variant,$1)
source-step = $(CBST) source experiments/$1.yaml --out $(call folder,$1) $(SETTINGS) $(call variant,$1) $(addprefix --init ,$(INIT))
# $(call round-steps,NAME,START,FOLDER,OPTIONS) works in a folder below NAME's run folder, with more options.
define round-steps
$(foreach r,$(call rounds,$1),$(foreach verb,pseudo-label retrain,$(call step,$(verb),$1,$2,$3,$4 --round $r)
))
$(call step,run,$1,$2,$3,$4)

endef
step = $(CBST) $1 experiments/$2.yaml --out $(call folder,$2)$4 $(SETTINGS) $(call variant,$2) $5 $(addprefix --init ,$(if $3,$(call network,$3),$(INIT)))

# One source network for each seed, and from it every variant; $(call ablation,SEED) makes those of a seed.
ABLATION := st cbst cbst-sp cbst-mining
comma := ,
define ablation
$(call vgg16,source,$1)
$(foreach variant,$(ABLATION),$(call vgg16,$(variant),$1,--init $(RUNS)/camvid-ablation/source/seed-$1/source/parameters.params)
)
endef
vgg16 = $(CBST) run experiments/camvid-vgg16-$1.yaml --out $(RUNS)/camvid-ablation/$1/seed-$2 --set seed=$2 $(SETTINGS) $3

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 - /p' $(MAKEFILE_LIST)
	@for name in $(EXPERIMENTS); do printf '%s - ' $$name; sed -n '1s/^# *//p' experiments/$$name.yaml; done

setup: $(STAMP) ## create .venv and install (EXTRAS=cpu or cu112; PYTHON=python3)

demo: $(STAMP) ## adapt a network to generated street scenes (SEEDS=0,1,2,3,4 for mean and spread; CTX=gpu:0)
	$(BIN)/cbst-mx demo --out runs/demo --seeds $(SEEDS) $(addprefix --ctx ,$(CTX))

camvid-ablation: SEEDS = 0,1,2
camvid-ablation: $(STAMP) ## ST, CBST, CBST-SP, mining on photographs, FCN8s-VGG16 (4 hours of one core; continues)
	$(foreach seed,$(subst $(comma), ,$(SEEDS)),$(call ablation,$(seed)))
	$(CBST) compare $(addprefix $(RUNS)/camvid-ablation/,source $(ABLATION)) --out $(RUNS)/camvid-ablation/comparison.json

test: $(DEV) ## run the tests that are neither slow nor need a GPU (PYTEST_ARGS="-k loader")
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow and not gpu" $(PYTEST_ARGS)

fuzz: $(DEV) ## hostile inputs to every reader, other ones each time (FUZZ=1000 for each target, 40,000 in all)
	CBST_FUZZ=$(FUZZ) CBST_FUZZ_SEED=$$(date +%s) $(BIN)/python -m pytest -q tests/fuzz $(PYTEST_ARGS)

check: $(DEV) ## ruff, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEV) ## the documentation as a site, site/index.html; every link is checked
	$(BIN)/python -m mkdocs build --quiet --strict

# ONLY has the names of those that shall run, FULL=1 takes larger sizes and more repeats, TORCH is a Python that has PyTorch,
# BENCH has further options, for each of them.
bench: $(DEV) ## run the benchmarks in tools/bench, 40 minutes (FULL=1: 80; WRITE=1: into docs; ONLY="rounds images")
	@$(BIN)/python tools/bench/measuring.py $(if $(ONLY),--only $(ONLY)) $(if $(FULL),--full) $(if $(WRITE),--write) \
		$(addprefix --torch-python ,$(TORCH)) $(BENCH)

bench-ci: $(DEV) ## time and memory of a small round against tools/bench/regressions.json: a report that fails nothing
	-@$(BIN)/python tools/bench/regressions.py

gpu-check: $(STAMP) ## can this GPU be used, does it compute what the CPU does, how long does gta5-cbst take (CTX=gpu:0)
	$(CBST) gpu-check experiments/gta5-cbst.yaml $(addprefix --ctx ,$(CTX)) $(addprefix --amp ,$(AMP))

gpu-rehearsal: ## whole experiments over a fake CUDA, without a GPU; needs gcc, downloads 800 MB into .rehearsal
	@$(PYTHON) tools/environment.py refuse
	$(PYTHON) -m tools.rehearsal $(REHEARSE)

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv .rehearsal build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find cbst_mx symbols tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# A row of the paper: the network it starts from, rounds of pseudo-labelling and retraining, evaluation, check against the
# paper; of NTHU once for each fold. What is no row and starts from nothing is one run.
$(EXPERIMENTS): %: experiments/%.yaml $(STAMP)
	$(if $(call setting,$@,table)$(call setting,$@,starts_from),$(call steps,$@,$(call start,$@)),$(call step,run,$@))

# Always a new environment: mxnet and mxnet-cu112 must not meet in one. The stamp is made when all has worked.
$(STAMP): setup.py
	@command -v $(PYTHON) >/dev/null || { echo "Error: there is no $(PYTHON) here: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) tools/environment.py refuse
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q 'pip>=21.3'
	@$(BIN)/python tools/environment.py install $(EXTRAS),report
	@$(BIN)/python tools/environment.py repair
	@$(BIN)/python tools/environment.py check
	@touch $@

# What the tests and checks need is added to the environment that is there.
.venv/with-dev: $(STAMP)
	@$(BIN)/python tools/environment.py install dev
	@touch $@
