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
encoders = --encoder $(if $(shell test -e $(call quoted,$(1)) && echo whole),$(call quoted,$(1)),$(foreach e,$(1),$(call quoted,$(e))))
common_flags = $(call encoders,$(ENCODER)) --data $(or $(DATA),work/data) $(if $(DATASET),--dataset $(DATASET)) \
	$(if $(NAME),--name '$(NAME)') $(if $(FACTS),--facts $(FACTS)) $(if $(SET),--set $(SET)) \
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
# Two torch threads on a busy two-core machine can be many times slower than one.
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-22s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nVariables, as in make bench-knn ENCODER=checkpoint.pth DATA=/data\n'
	@awk -F ' [?]= ?' '/^[A-Z_]+ [?]=/ { printf "  %-22s%s%s\n", $$1, about, $$2 ? " (" $$2 ")" : "" } { about = substr($$0, 4) }' \
		$(MAKEFILE_LIST)

# ---- first steps -----------------------------------------------------------------------------------------------------

.PHONY: setup setup-dev setup-transfer lock
setup: $(CORE) ## .venv with the locked core; does nothing when nothing changed
setup-dev: $(CORE) $(DEV) ## and the tools that the tests need
setup-transfer: $(CORE) $(TRANSFER) ## and detectron2 and mmsegmentation, for detection and segmentation

$(CORE) $(DEV) $(TRANSFER):
	scripts/setup.sh $(patsubst .%,%,$(firstword $(subst -, ,$(@F))))
	@rm -f $(firstword $(subst -, ,$@))-* && touch $@
$(DEV) $(TRANSFER): | $(CORE)

lock: $(CORE) $(DEV) ## compile requirements/*.txt from pyproject.toml again; UPGRADE=1 takes newer releases
	scripts/lock.sh $(if $(UPGRADE),--upgrade)

# ---- pretrain --------------------------------------------------------------------------------------------------------

.PHONY: pretrain cost-table bench-loader
pretrain: $(CORE) ## pretrain an encoder: RECIPE, DATA, OUT
	$(PY) -m pretrain --recipe $(RECIPE) --data $(or $(DATA),work/data/drawings) $(if $(OUT),--out $(OUT)) $(flags)

cost-table: $(CORE) ## time and memory of each mechanism's step: RECIPE
	$(PY) scripts/cost_table.py --recipe $(RECIPE) $(ARGS)
bench-loader: $(CORE) ## images per second of the input pipeline alone: RECIPE, DATA
	$(PY) scripts/bench_loader.py --recipe $(RECIPE) --data $(or $(DATA),work/data/drawings) $(ARGS)

# ---- benchmarks: each takes ENCODER, DATA, PROTOCOL, SET, TRIALS, FACTS, NAME, DRY_RUN ----------------------------

.PHONY: bench-all pages bench-knn bench-voc-svm bench-low-shot-svm bench-linear bench-multihead bench-linear-stored
bench-all: $(CORE) ## every benchmark whose data is there, then tables, zoo page and pictures
	$(PY) -m benchmarks all $(common_flags); code=$$?; $(if $(DRY_RUN),,$(pages);) exit $$code
pages: $(CORE) ## tables, zoo page and pictures of what this machine measured, in work/
	$(pages)
bench-knn: $(CORE) ## kNN
	$(PY) -m benchmarks knn $(bench_flags)
bench-voc-svm: $(CORE) ## VOC07 SVM
	$(PY) -m benchmarks voc-svm $(bench_flags)
bench-low-shot-svm: $(CORE) ## VOC07 low-shot SVM
	$(PY) -m benchmarks low-shot-svm $(bench_flags)
bench-linear: $(CORE) ## linear probe on the pooled features (AvgPool)
	$(PY) -m benchmarks linear $(bench_flags)
bench-multihead: $(CORE) ## linear probes on every stage in one pass (Feature1 … Feature5)
	$(PY) -m benchmarks multihead $(bench_flags)
bench-linear-stored: $(CORE) ## a linear classifier on stored features, in seconds
	$(PY) -m benchmarks linear-stored $(bench_flags)

.PHONY: bench-places205 bench-inat18 bench-cifar10 bench-semi bench-finetune
bench-places205: $(CORE) ## linear probes on Places205
	$(PY) -m benchmarks multihead --protocol linear_multihead_places205.mmselfsup $(common_flags)
	$(PY) -m benchmarks linear --protocol linear_avgpool_places205.moco $(common_flags)
bench-inat18: $(CORE) ## linear probes on iNaturalist 2018
	$(PY) -m benchmarks multihead --protocol linear_multihead_inat18.mmselfsup $(common_flags)
	$(PY) -m benchmarks linear --protocol linear_avgpool_inat18.moco $(common_flags)
bench-cifar10: $(CORE) ## linear probes on CIFAR-10
	$(PY) -m benchmarks multihead --protocol linear_multihead_cifar10.mmselfsup $(common_flags)
	$(PY) -m benchmarks linear --protocol linear_avgpool_cifar10.moco $(common_flags)
bench-semi: $(CORE) ## fine-tuning on 1 % and 10 % of ImageNet's labels
	$(PY) -m benchmarks semi-1pct $(common_flags)
	$(PY) -m benchmarks semi-10pct $(common_flags)
bench-finetune: $(CORE) ## end-to-end fine-tuning on ImageNet, or with PROTOCOL=finetune_inat18.mocov1
	$(PY) -m benchmarks finetune $(bench_flags)
.PHONY: bench-voc-det bench-coco-det bench-coco-keypoints bench-lvis bench-cityscapes-det
.PHONY: bench-voc-seg bench-cityscapes-seg
bench-voc-det: $(CORE) $(TRANSFER) ## Faster R-CNN C4 on VOC 07+12
	$(PY) -m benchmarks voc-det $(bench_flags)
bench-coco-det: $(CORE) $(TRANSFER) ## Mask R-CNN on COCO; PROTOCOL chooses FPN or C4, 1x, 2x or 6x, or DensePose
	$(PY) -m benchmarks coco-det $(bench_flags)
bench-coco-keypoints: $(CORE) $(TRANSFER) ## Keypoint R-CNN FPN on COCO
	$(PY) -m benchmarks coco-keypoints $(bench_flags)
bench-lvis: $(CORE) $(TRANSFER) ## Mask R-CNN FPN on LVIS
	$(PY) -m benchmarks lvis-det $(bench_flags)
bench-cityscapes-det: $(CORE) $(TRANSFER) ## Mask R-CNN FPN on Cityscapes instances
	$(PY) -m benchmarks cityscapes-det $(bench_flags)
bench-voc-seg: $(CORE) $(TRANSFER) ## FCN segmentation on VOC 2012 + aug
	$(PY) -m benchmarks voc-seg $(bench_flags)
bench-cityscapes-seg: $(CORE) $(TRANSFER) ## FCN segmentation on Cityscapes
	$(PY) -m benchmarks cityscapes-seg $(bench_flags)

# ---- data and encoders -----------------------------------------------------------------------------------------------

.PHONY: demo-data check-data audit features-gc
demo-data: $(CORE) ## compose the embedded data into work/data
	$(PY) -m benchmarks demo-data --out $(or $(DATA),work/data) $(ARGS)
check-data: $(CORE) ## what of the data sets is there, missing or damaged: DATA, DATASET
	$(PY) -m benchmarks check-data --data $(or $(DATA),work/data) $(if $(DATASET),--dataset $(DATASET)) $(ARGS)
audit: $(CORE) ## whether an encoder is what its card says: ENCODER, DATA, FACTS
	$(PY) -m benchmarks audit $(call encoders,$(ENCODER)) --data $(or $(DATA),work/data) $(if $(FACTS),--facts $(FACTS)) $(ARGS)
features-gc: $(CORE) ## what of the stored features nothing uses; ARGS=--delete removes it
	$(PY) -m benchmarks features-gc $(ARGS)

# ---- results ---------------------------------------------------------------------------------------------------------

.PHONY: tables pictures report zoo-page published-pages diff publish-records speed
tables: $(CORE) ## what this machine measured, as tables: printed and in work/tables.md
	$(PY) -m results tables --out work/tables.md $(flags)
	$(if $(DRY_RUN),,@cat work/tables.md)
pictures: $(CORE) ## curves and per-class tables of what this machine measured: work/pictures
	$(PY) -m results pictures --out work/pictures $(ARGS)
report: $(CORE) ## everything that this machine measured as one HTML file: work/report.html
	$(PY) -m results report --out work/report.html $(flags)
zoo-page: $(CORE) ## the page that a model zoo shows of an encoder: NAME, OUT
	$(PY) -m results zoo-page --encoder '$(NAME)' $(if $(OUT),--out $(OUT)) $(ARGS)
published-pages: $(CORE) ## both published MoCo v2 pages and the papers' tables, from results/published.csv alone
	$(PY) -m results zoo-page --published --out work/published
	$(PY) -m results paper-tables --out work/published/papers
diff: $(CORE) ## two encoders, or NAME@COMMIT twice, with intervals: A, B
	$(PY) -m results diff '$(A)' '$(B)' $(ARGS)
publish-records: $(CORE) ## copy this machine's records into results/records, and make results/MODEL_ZOO.md from them
	$(PY) -m results publish-records $(flags)
	$(if $(DRY_RUN),,$(PY) -m results tables --records results/records --out results/MODEL_ZOO.md --readme README.md)
speed: $(CORE) ## measure the hot loops against plain ones, into work/speed.json: ONLY
	$(PY) -m scripts.speed $(ONLY)

.PHONY: docs
docs: $(CORE) $(DEV) ## the documentation site, built strictly, into work/site
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

demo: $(addprefix $(DEMO)/,knn probes voc-svm low-shot-svm) ## everything once on the embedded data, in minutes
	@$(MAKE) --no-print-directory tables pictures
	@scripts/timed.sh $(DEMO)/times.tsv
demo-seeds: demo ## the demo's pretraining in three seeds; their records are the committed ones
	printf '%s\n' 1 2 | xargs -P 2 -I{} $(PY) -m pretrain --recipe $(DEMO_RECIPE) --data work/data/drawings \
		--out work/pretrain/$(DEMO_RECIPE)-seed{} --seed {} --threads 1
	for harness in knn probes voc-svm low-shot-svm; do $(PY) -m benchmarks $$harness --data work/data \
		--encoder work/pretrain/$(DEMO_RECIPE)-seed*/backbone.safetensors || exit; done
	@$(MAKE) --no-print-directory tables

demo-transfer: $(addprefix $(DEMO)/,voc-det coco-det voc-seg) ## fine-tuning on the embedded scenes, from pretraining and from nothing
	@$(MAKE) --no-print-directory tables

$(DEMO)/data: | $(CORE)
	$(timed) data $(PY) -m benchmarks demo-data --out work/data
	@touch $@
$(DEMO)/random-%.safetensors: $(DEMO)/data
	$(timed) random-$* $(PY) -m benchmarks random-encoder --architecture $(DEMO_ARCH) --seed $* --images work/data/drawings --out $@
$(DEMO_MOCO): $(DEMO)/data
	$(timed) pretrain $(PY) -m pretrain --recipe $(DEMO_RECIPE) --data work/data/drawings --out $(@D)
	@touch $@
$(DEMO)/low-shot-svm: $(DEMO)/voc-svm
$(DEMO)/knn $(DEMO)/voc-svm $(DEMO)/low-shot-svm $(DEMO)/probes: $(DEMO_RANDOM) $(DEMO_MOCO)
	$(timed) $(@F) $(PY) -m benchmarks $(@F) $(DEMO_BENCH)
	@touch $@
$(addprefix $(DEMO)/,voc-det coco-det voc-seg): $(DEMO)/random-0.safetensors $(DEMO_MOCO) | $(TRANSFER)
	$(timed) $(@F) $(PY) -m benchmarks $(@F) --data work/data $(call encoders,$(filter %.safetensors,$^))
	@touch $@

# ---- checks ----------------------------------------------------------------------------------------------------------

.PHONY: lint format types test-fast test
lint: $(CORE) $(DEV) ## ruff and the import rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
format: $(CORE) $(DEV) ## let ruff format the code
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .
types: $(CORE) $(DEV) ## mypy
	.venv/bin/mypy
test-fast: $(CORE) $(DEV) ## the tests that take seconds
	$(TEST) -m "not slow"
test: setup-dev setup-transfer ## everything: set up, lint, types, and all tests
	@$(MAKE) lint types
	$(TEST)
