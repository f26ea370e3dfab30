# The front door. `make` lists the targets; each is one visible line around a command of the project.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
PY := .venv/bin/python

# Variables, each with the line that `make help` prints.
## root of the data sets, of an ImageFolder, or of images to pretrain on; empty: the embedded data
DATA ?=
## one or more of: file, glob (? for a blank), random:ARCH[:SEED], package:efficientnet-lite0, pixels, my.module:build
ENCODER ?= package:efficientnet-lite0
## protocol id; empty: what suits the data
PROTOCOL ?=
## numbers of the protocol to change, as SET="epochs=10 batch_size=128"; the id in the record says so
SET ?=
## what a checkpoint's keys cannot show, as FACTS="channels=BGR stride_in_1x1=true"
FACTS ?=
## data set id, as imagenet; empty: the protocol's own, and for check-data all of them
DATASET ?=
## name of the encoder in records and tables
NAME ?=
## an encoder, or NAME@COMMIT, for make diff
A ?=
## the encoder that it is compared with
B ?=
## name in pretrain/recipes, or a .toml file
RECIPE ?= mocov2_resnet18w32_demo
## folder of a pretraining run; empty: work/pretrain/RECIPE
OUT ?=
## further flags, as ARGS="--seed 1 --workers 4"
ARGS ?=
## 1: say what would run and what it needs, and stop
DRY_RUN ?=
## runs with seeds of their own, whose mean is reported; empty: the protocol's
TRIALS ?=
## one entry of make speed
ONLY ?=

flags = $(if $(DRY_RUN),--dry-run) $(ARGS)
# A path with blanks that is there is one encoder; anything else is a list, in which ? stands for a blank.
quoted = '$(subst ','\'',$(1))'
path = $(if $(word 2,$(1)),$(call quoted,$(1)),$(1))# a path with spaces needs quotes; others keep their ~
encoders = --encoder $(if $(shell test -e $(call quoted,$(1)) && echo whole),$(call quoted,$(1)),$(foreach e,$(1),$(call quoted,$(e))))
common_flags = $(call encoders,$(ENCODER)) --data $(call path,$(or $(DATA),work/data)) $(if $(DATASET),--dataset $(DATASET)) \
	$(if $(NAME),--name $(call quoted,$(NAME))) $(if $(FACTS),--facts $(FACTS)) $(if $(SET),--set $(SET)) \
	$(if $(TRIALS),--trials $(TRIALS)) $(flags)
# Not a target of its own inside bench-all: make runs a line that calls make even under --dry-run.
pages = $(PY) -m results tables --out work/tables.md && $(PY) -m results zoo-page --encoder '*' --out work/zoo_page.md && \
	$(PY) -m results pictures --out work/pictures
bench_flags = $(if $(PROTOCOL),--protocol $(PROTOCOL)) $(common_flags)
# A stamp's name holds the hash of what it was made from: the same locks, nothing to do.
stamp = .venv/.$(1)-$(shell cat $(2:%=requirements/%.txt) scripts/setup.sh | git hash-object --stdin)
CORE := $(call stamp,core,core)
DEV := $(call stamp,dev,dev)
TRANSFER := $(call stamp,transfer,transfer detectron2)
# A torch thread that waits for another one sleeps. By default it spins, and takes from everything else that runs on the
# same cores, the loader's processes included: beside other work on two cores a step of the demo's pretraining took 1.34 s
# instead of 0.48 s, and its probes four times the processor's time. The results are the same bits.
export OMP_WAIT_POLICY ?= passive
# Two torch threads on a busy two-core machine can be many times slower than one. Neighbours in the list of tests share
# what is made once for a file: each worker gets half of the list, not every second test. Bytecode is kept, for the many
# Pythons that tests start.
TEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n 2 --dist worksteal

.PHONY: help
help: ## this list
	@awk -F ':.*## | ## ' '/^[a-z][a-z0-9-]*:.*## |^# bench-NAME ## / { sub("# ", "", $$1); printf "  %-22s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nVariables, as in make bench-knn ENCODER=checkpoint.pth DATA=/data\n'
	@awk -F ' [?]= ?' '/^[A-Z_]+ [?]=/ { printf "  %-22s%s%s\n", $$1, about, $$2 ? " (" $$2 ")" : "" } { about = substr($$0, 4) }' \
		$(MAKEFILE_LIST)

# ---- first steps -----------------------------------------------------------------------------------------------------

.PHONY: setup setup-dev setup-transfer lock
setup: $(CORE) ## install the locked core into .venv; does nothing when nothing changed
setup-dev: $(CORE) $(DEV) ## the core and the tools that the tests need
setup-transfer: $(CORE) $(TRANSFER) ## the core, detectron2 and mmsegmentation, for detection and segmentation

$(CORE) $(DEV) $(TRANSFER):
	scripts/setup.sh $(patsubst .%,%,$(firstword $(subst -, ,$(@F))))
	@rm -f $(firstword $(subst -, ,$@))-* && touch $@
$(DEV) $(TRANSFER): | $(CORE)

lock: $(CORE) $(DEV) ## compile requirements/*.txt from pyproject.toml; UPGRADE=1 takes newer releases
	scripts/lock.sh $(if $(UPGRADE),--upgrade)

# ---- pretrain --------------------------------------------------------------------------------------------------------

.PHONY: pretrain cost-table bench-loader
pretrain: $(CORE) ## pretrain an encoder: RECIPE, DATA, OUT
	$(PY) -m pretrain --recipe $(RECIPE) --data $(call path,$(or $(DATA),work/data/drawings)) $(if $(OUT),--out $(call path,$(OUT))) $(flags)

cost-table: $(CORE) ## time and memory of each mechanism's step: RECIPE
	$(PY) -m benchmarks cost-table --recipe $(RECIPE) $(ARGS)
bench-loader: $(CORE) ## images per second of the input pipeline alone: RECIPE, DATA
	$(PY) -m benchmarks bench-loader --recipe $(RECIPE) --data $(call path,$(or $(DATA),work/data/drawings)) $(ARGS)

# ---- benchmarks: each takes ENCODER, DATA, PROTOCOL, SET, TRIALS, FACTS, NAME, DRY_RUN ----------------------------

# Each target is `encoder-bench NAME`; `--help` says in one sentence what each one measures.
FROZEN := knn voc-svm low-shot-svm linear multihead linear-grid attentive linear-stored logistic ncm few-shot semi-1pct semi-10pct finetune label-free label-free-views robustness transfer retrieval \
	seg-linear seg-linear-cached seg-logistic seg-knn seg-incontext depth-linear
TRANSFERRED := voc-det coco-det coco-keypoints lvis-det cityscapes-det vit-det voc-seg cityscapes-seg vit-seg

.PHONY: bench-all pages
bench-all: $(CORE) ## every benchmark whose data is there, then tables, zoo page and pictures
	$(PY) -m benchmarks all $(common_flags); code=$$?; $(if $(DRY_RUN),,if [ -d work/records ]; then $(pages); fi;) exit $$code
pages: $(CORE) ## tables, zoo page and pictures of what this machine measured, in work/
	$(pages)
# bench-NAME ## one benchmark: knn voc-svm low-shot-svm linear multihead linear-grid attentive linear-stored logistic ncm few-shot semi-1pct semi-10pct finetune
$(FROZEN:%=bench-%): bench-%: $(CORE)
	$(PY) -m benchmarks $* $(bench_flags)
.PHONY: bench-frozen
bench-frozen: $(CORE) ## kNN, logistic regression, class means, few-shot and SVMs for one pass over the images: ENCODER, DATA
	$(PY) -m benchmarks frozen $(common_flags)
# bench-NAME ## every test set of a suite that is there: robustness transfer retrieval
# bench-NAME ## dense: seg-linear seg-linear-cached seg-logistic seg-knn seg-incontext depth-linear
# bench-NAME ## without labels: label-free label-free-views
# bench-NAME ## and, after make setup-transfer: voc-det coco-det coco-keypoints lvis-det cityscapes-det vit-det voc-seg cityscapes-seg vit-seg
$(TRANSFERRED:%=bench-%): bench-%: $(CORE) $(TRANSFER)
	$(PY) -m benchmarks $* $(bench_flags)

# ---- data and encoders -----------------------------------------------------------------------------------------------

.PHONY: demo-data check-data audit features-gc
demo-data: $(CORE) ## compose the embedded data into work/data
	$(PY) -m benchmarks demo-data --out $(call path,$(or $(DATA),work/data)) $(ARGS)
check-data: $(CORE) ## say which data sets are there, missing or damaged: DATA, DATASET
	$(PY) -m benchmarks check-data --data $(call path,$(or $(DATA),work/data)) $(if $(DATASET),--dataset $(DATASET)) $(ARGS)
audit: $(CORE) ## check that an encoder is what its card says: ENCODER, DATA, FACTS
	$(PY) -m benchmarks audit $(call encoders,$(ENCODER)) --data $(call path,$(or $(DATA),work/data)) $(if $(FACTS),--facts $(FACTS)) $(ARGS)
features-gc: $(CORE) ## list stored features that no record refers to; ARGS=--delete removes them
	$(PY) -m benchmarks features-gc $(ARGS)

# ---- results ---------------------------------------------------------------------------------------------------------

.PHONY: tables pictures report zoo-page published-pages diff publish-records speed
tables: $(CORE) ## tables of what this machine measured: printed, and in work/tables.md
	$(PY) -m results tables --out work/tables.md $(flags)
	$(if $(DRY_RUN),,@cat work/tables.md)
pictures: $(CORE) ## figures of what this machine measured, in work/pictures
	$(PY) -m results pictures --out work/pictures $(ARGS)
report: $(CORE) ## one HTML file of everything that this machine measured: work/report.html
	$(PY) -m results report --out work/report.html $(flags)
zoo-page: $(CORE) ## model-zoo page of an encoder: NAME, OUT
	$(PY) -m results zoo-page $(if $(NAME),--encoder $(call quoted,$(NAME))) $(if $(OUT),--out $(call path,$(OUT))) $(ARGS)
published-pages: $(CORE) ## the published MoCo v2 pages and the papers' tables, from results/published.csv alone
	$(PY) -m results zoo-page --published --out work/published
	$(PY) -m results paper-tables --out work/published/papers
diff: $(CORE) ## compare two encoders, or one at two commits (NAME@COMMIT), with intervals: A, B
	$(PY) -m results diff $(call quoted,$(A)) $(call quoted,$(B)) $(ARGS)
publish-records: $(CORE) ## copy this machine's records into results/records, and make results/MODEL_ZOO.md from them
	$(PY) -m results publish-records $(flags)
	$(if $(DRY_RUN),,$(PY) -m results tables --records results/records --out results/MODEL_ZOO.md --readme README.md)
speed: $(CORE) ## time the hot loops against plain ones, into work/speed.json: ONLY
	$(PY) -m scripts.speed $(ONLY)

.PHONY: docs
docs: $(CORE) $(DEV) ## build the documentation site into work/site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# ---- the demo: a chain of stamps, so that a killed run goes on where it was ------------------------------------------

.PHONY: demo demo-seeds demo-transfer
DEMO := work/demo
DEMO_RECIPE := mocov2_resnet18w32_demo
DEMO_ARCH := resnet18-w32-k3-nopool
DEMO_RANDOM := $(patsubst %,$(DEMO)/random-%.safetensors,0 1 2 3 4)
DEMO_MOCO := work/pretrain/$(DEMO_RECIPE)/backbone.safetensors
DEMO_BENCH := --data work/data $(call encoders,pixels $(DEMO_RANDOM) $(DEMO_MOCO) package:efficientnet-lite0)
timed = @scripts/timed.sh $(DEMO)/times.tsv

demo: $(addprefix $(DEMO)/,knn probes voc-svm low-shot-svm dense label-free robustness) ## pretrain and benchmark on the embedded data: 10 to 25 minutes
	@$(MAKE) --no-print-directory tables pictures
	@scripts/timed.sh $(DEMO)/times.tsv
demo-seeds: demo ## the demo's pretraining with three seeds, as in the committed records
	printf '%s\n' 1 2 | xargs -P 2 -I{} $(PY) -m pretrain --recipe $(DEMO_RECIPE) --data work/data/drawings \
		--out work/pretrain/$(DEMO_RECIPE)-seed{} --seed {} --threads 1 --monitor work/data/drawings --monitor-every 25
	for harness in knn probes voc-svm low-shot-svm dense label-free robustness; do $(PY) -m benchmarks $$harness --data work/data \
		--encoder work/pretrain/$(DEMO_RECIPE)-seed*/backbone.safetensors || exit; done
	@$(MAKE) --no-print-directory tables

demo-transfer: $(addprefix $(DEMO)/,voc-det coco-det voc-seg) ## detectors and a segmenter on the embedded scenes, pretrained and from scratch: 90 minutes
	@$(MAKE) --no-print-directory tables

$(DEMO)/data: | $(CORE)
	$(timed) data $(PY) -m benchmarks demo-data --out work/data
	@touch $@
$(DEMO)/random: $(DEMO)/data
	$(timed) random $(PY) -m benchmarks random-encoder --architecture $(DEMO_ARCH) --seed 0 1 2 3 4 --images work/data/drawings \
		--out '$(DEMO)/random-{seed}.safetensors'
	@touch $@
$(DEMO_RANDOM): | $(DEMO)/random ;
$(DEMO_MOCO): $(DEMO)/data
	$(timed) pretrain $(PY) -m pretrain --recipe $(DEMO_RECIPE) --data work/data/drawings --out $(@D) \
		--monitor work/data/drawings --monitor-every 25
	@touch $@
$(DEMO)/low-shot-svm: $(DEMO)/voc-svm
$(DEMO)/knn $(DEMO)/voc-svm $(DEMO)/low-shot-svm $(DEMO)/probes $(DEMO)/dense $(DEMO)/label-free $(DEMO)/robustness: \
		$(DEMO_RANDOM) $(DEMO_MOCO)
	$(timed) $(@F) $(PY) -m benchmarks $(@F) $(DEMO_BENCH)
	@touch $@
$(addprefix $(DEMO)/,voc-det coco-det voc-seg): $(DEMO)/random-0.safetensors $(DEMO_MOCO) | $(TRANSFER)
	$(timed) $(@F) $(PY) -m benchmarks $(@F) --data work/data $(call encoders,$(filter %.safetensors,$^))
	@touch $@

# ---- checks ----------------------------------------------------------------------------------------------------------

.PHONY: lint format types test-fast test test-nightly test-gpu test-faults
lint: $(CORE) $(DEV) ## ruff and the import rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
format: $(CORE) $(DEV) ## let ruff format the code
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .
types: $(CORE) $(DEV) ## mypy
	.venv/bin/mypy
test-fast: $(CORE) $(DEV) ## the tests that take seconds
	$(TEST) --ignore tests/faults -m "not slow and not nightly"
test: setup-dev setup-transfer ## everything: set up, lint, types, and all tests
	@$(MAKE) lint types
	$(TEST) -m "not nightly and not faults"
test-nightly: setup-dev setup-transfer ## what takes minutes on real weights or on all of the demo's data
	$(TEST) --ignore tests/faults -m nightly
test-gpu: $(CORE) $(DEV) ## the tests of what runs on a GPU, on the GPU of this machine and on a simulated one
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/gpu
test-faults: setup-dev setup-transfer ## kill loops, hostile files and full disks: an hour or more
	$(TEST) tests/faults
