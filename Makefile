# Every target does its own set-up: Python 3.11 or newer and make are all it needs.

PYTHON ?= $(shell for python in python3.11 python3; do $$python -c "" 2>/dev/null && echo $$python && break; done)
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

# The same numbers whatever the machine.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export HF_HUB_OFFLINE := 1
export PYTHONHASHSEED := 0

# A variable counts if it stands in the call; one of the environment is somebody else's.
called = $(if $(filter command,$(origin $(1))),$($(1)))
parameter = $(if $(call called,$(1)),$(2)=$(call called,$(1)))
quoted = $(foreach word,$(1),'$(subst ','\'',$(word))')

ifneq ($(call called,DASK),)
export MLLM_SCHED_DASK := $(DASK)
endif

# Parameters in the call: their results lie in a folder that has their name.
GIVEN := $(sort $(call parameter,SEEDS,seeds) $(call parameter,STEPS,steps) \
  $(call parameter,DEVICE,device) $(call parameter,ENCODER,encoder) \
  $(call parameter,LIMIT,limit_s) $(call called,SET))
ifeq ($(GIVEN),)
MADE    := build
RESULTS := results
else
MADE    := build/runs/$(shell given=$$(printf '_%s' $(call quoted,$(GIVEN)) | cut -c2-); \
             name=$$(printf %s "$$given" | tr -c 'A-Za-z0-9=.,_\n-' '-' | cut -c1-60); [ "$$name" = "$$given" ] || \
             name=$$name-$$(printf %s "$$given" | cksum | cut -d' ' -f1); echo "$$name")
RESULTS := $(MADE)/results
endif
DONE    := $(MADE)/done
# Empty stands for the committed results; one of the environment does not count here.
export MLLM_SCHED_RESULTS := $(if $(GIVEN),$(CURDIR)/$(RESULTS))

NAMES   := $(sort $(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/*.ipynb)))
CHOSEN  := $(or $(sort $(basename $(notdir $(call called,NOTEBOOKS)))),$(NAMES))
ifneq ($(filter-out $(NAMES),$(CHOSEN)),)
$(error NOTEBOOKS=$(filter-out $(NAMES),$(CHOSEN)): expected some of $(NAMES))
endif

# What every notebook depends on.
SOURCES := $(shell find mllm_sched -type f ! -path '*/.*' ! -path '*/__pycache__/*' ! -name '*~') \
  $(addprefix data/,$(shell cut -d' ' -f3 data/SHA256SUMS)) requirements.lock \
  $(wildcard $(patsubst device=trace:%,%,$(filter device=trace:%,$(GIVEN))))

# What a notebook reads of another's results: those there are, and those that the chosen will write.
JUDGED  := $(sort $(shell sed -n 's/^ *notebook: *//p' claims.yaml))
READ    := $(addprefix $(RESULTS)/,10_savings/runs.csv 13_sensitivity/verdicts.csv $(JUDGED:%=%/claims.csv))
WRITTEN := $(foreach name,$(CHOSEN),$(filter $(RESULTS)/$(name)/%,$(READ)))
THERE   := $(sort $(WRITTEN) $(wildcard $(READ)))

# Without the grammar of web addresses of jsonschema, which takes 2 s of a core to load.
PAPERMILL := $(RUN) -c 'import sys; sys.modules["rfc3987_syntax"] = None; \
  from papermill.__main__ import papermill; papermill(prog_name="papermill")'

# Two notebooks at a time; `make -j1` runs one. The longest begin first, so that none runs alone in the end.
MAKEFLAGS += --jobs=2
LONGEST := 08_ablations 09_many_users 01_decoupling 07_time_varying 04_scheduler_comparison 06_latency_limits 05_power_levels
longest_first = $(filter $(1),$(LONGEST)) $(filter-out $(LONGEST),$(1))

.DEFAULT_GOAL := help
.PHONY: help env reproduce test test-slow browser lint lab app notebooks claims bench system peers site proto checksums clean \
  force parameters

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP) ## Create .venv, install the lock, register the kernel

$(STAMP): requirements.lock pyproject.toml
	@$(or $(PYTHON),false) -c '' 2>/dev/null || \
	  { echo "$(or $(PYTHON),Python) cannot be run; call: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; call: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(RUN) -m ipykernel install --sys-prefix --name python3 >/dev/null
	@touch $@

reproduce: $(patsubst %,$(DONE)/%,$(call longest_first,$(CHOSEN))) $(DONE)/claims ## Run notebooks that are not up to date: SEEDS= STEPS= DEVICE= ENCODER= LIMIT= NOTEBOOKS= DASK= SET="name=value" FORCE=1
	@echo "$(words $(CHOSEN)) notebooks up to date: $(MADE)/notebooks, $(RESULTS)"

# Two notebooks at a time share the cores. The one that waits for all others has them all.
CORES := $(shell getconf _NPROCESSORS_ONLN)
HALF  := $(shell echo $$((($(CORES) + 1) / 2)))
$(CHOSEN:%=$(DONE)/%): export LOKY_MAX_CPU_COUNT = $(if $(word 2,$(CHOSEN)),$(HALF),$(CORES))
$(DONE)/13_sensitivity: export LOKY_MAX_CPU_COUNT = $(CORES)

# A stamp has the time at which its run began, so that what is edited meanwhile makes it stale.
# Long studies keep their finished jobs until the notebook has come to its end, or a source changed.
FORCED := $(if $(call called,FORCE),force)
$(CHOSEN:%=$(DONE)/%): export MLLM_SCHED_KEPT = $(CURDIR)/$(MADE)/cache/jobs/$(@F)
$(CHOSEN:%=$(DONE)/%): $(DONE)/%: notebooks/%.ipynb $(SOURCES) $(FORCED) | $(STAMP) $(if $(GIVEN),parameters)
	@mkdir -p $(DONE) $(MADE)/notebooks && rm -f $@ && touch $@.begun
	@[ -z "$$(find $(SOURCES) -newer $$MLLM_SCHED_KEPT 2>/dev/null)" ] || rm -rf "$$MLLM_SCHED_KEPT"
	$(PAPERMILL) $< $(MADE)/notebooks/$*.ipynb -k python3 --no-progress-bar --stderr-file - $(if $(GIVEN),-f $(MADE)/parameters/$*.yaml)
	@rm -rf $(MADE)/cache/jobs/$* && mv $@.begun $@

$(DONE)/12_explorer: $(filter %/runs.csv,$(THERE))
$(DONE)/13_sensitivity $(DONE)/99_claims $(DONE)/claims: claims.yaml $(filter %/claims.csv,$(THERE))
$(DONE)/99_claims $(DONE)/claims: $(filter %/verdicts.csv,$(THERE))

.SECONDEXPANSION:
$(WRITTEN): $(DONE)/$$(notdir $$(@D))
	@test -e $@ || { echo "$@ is gone; call it again with NOTEBOOKS=$(notdir $(@D)) FORCE=1" >&2; exit 1; }

# Verdicts on other parameters are shown, never written.
$(DONE)/claims: $(SOURCES) $(FORCED) $(if $(GIVEN),force) | $(STAMP)
	@mkdir -p $(DONE) && touch $@.begun
	$(RUN) -m mllm_sched.experiments.claims $(if $(GIVEN),--print)
	@mv $@.begun $@

parameters: | $(STAMP)
	@$(RUN) -m mllm_sched.experiments.notebook_files parameters $(MADE)/parameters \
	  $(addprefix --set ,$(call quoted,$(GIVEN))) $(CHOSEN:%=notebooks/%.ipynb)

# Notebooks cell by cell against their committed outputs, then their tables against the committed
# ones. Three at once fill two cores, since some sleep or wait for processes of their own.
SLOW := 08_ablations 09_many_users 13_sensitivity
define check_notebooks
rm -rf build/tested && mkdir -p build && cp -R results build/tested
@status=0; MLLM_SCHED_RESULTS="$(CURDIR)/build/tested" TQDM_DISABLE=1 LOKY_MAX_CPU_COUNT=1 \
  $(RUN) -m pytest --nbval --nbval-current-env --nbval-cell-timeout 900 -p no:cacheprovider \
  -n 3 --dist loadscope --no-loadscope-reorder $(patsubst %,notebooks/%.ipynb,$(call longest_first,$(1))) || status=$$?; \
  $(RUN) tests/compare_results.py results build/tested || status=1; exit $$status
endef

test: $(STAMP) ## Unit tests, doctests, then all notebooks but three against their committed outputs and tables
	$(RUN) -m pytest -m "not slow" -p no:nbval -n 3 --dist worksteal
	$(call check_notebooks,$(filter-out $(SLOW),$(NAMES)))

test-slow: $(STAMP) browser ## What needs processes, kills, a browser, Prometheus or the built site; the three longest notebooks
	$(RUN) -m pytest -m slow -p no:nbval -n 2 --dist loadscope tests
	$(call check_notebooks,$(SLOW))

browser: ## Install Chromium for the tests of pages, where it is missing and we are root on Debian
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } || \
	  echo "no Chromium: the tests of pages will be skipped"

lint: $(STAMP) ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy mllm_sched data/encoders/count_work.py

lab: $(STAMP) ## Open JupyterLab at the quickstart
	$(VENV)/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_quickstart.ipynb

app: $(STAMP) ## Open the explorer and the calculator as a page without code
	$(VENV)/bin/voila notebooks/12_explorer.ipynb --Voila.ip=127.0.0.1 --VoilaConfiguration.resources="{'metadata': {'name': 'mllm-sched explorer'}}"

notebooks: $(STAMP) ## Run the notebooks in place: outputs, results and parameters become what is committed; NOTEBOOKS=
	@$(if $(GIVEN),$(error parameters are edited in the notebook: make notebooks takes NOTEBOOKS= alone))
	for name in $(CHOSEN:%=notebooks/%.ipynb); do \
	  MLLM_SCHED_RECORD=1 TQDM_DISABLE=1 $(RUN) -m nbconvert --to notebook --execute --inplace \
	    --coalesce-streams --ExecutePreprocessor.kernel_name=python3 $$name && \
	  $(RUN) -m mllm_sched.experiments.notebook_files normalise $$name || exit; done

claims: $(STAMP) ## Write results/claims.csv and the tables of README and REPORT from results/
	$(RUN) -m mllm_sched.experiments.claims

bench: $(STAMP) ## Cost and quality of decisions; sampling power; transport; a server under overload
	$(RUN) benchmarks/decision_cost.py
	$(RUN) benchmarks/scheduler_quality.py
	$(RUN) benchmarks/sampler_cost.py
	$(RUN) benchmarks/transport_overhead.py
	$(RUN) benchmarks/pipeline_load.py

peers: $(STAMP) build/peers/.installed ## Our schedulers against BoTorch, SafeOpt and others, half an hour
	$(RUN) benchmarks/against_peers.py

system: $(STAMP) ## The running system, measured: a closed loop, many users, kills, what deciding costs; 15 minutes
	$(RUN) benchmarks/closed_loop.py --out build/closed_loop
	$(RUN) benchmarks/edge_load.py
	$(RUN) benchmarks/edge_kill.py
	$(RUN) benchmarks/decision_overhead.py

# Into a folder of their own and without what they depend on, so that .venv stays what the lock says.
build/peers/.installed: benchmarks/requirements.txt $(STAMP)
	rm -rf build/peers
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target build/peers -r $<
	@touch $@

site: $(STAMP) ## Build the site into build/site and check its links; LINKS=1: those to elsewhere too
	@rm -rf build/site build/links
	$(RUN) docs/build.py build/site $(if $(LINKS),--links)

proto: $(STAMP) ## Generate the gRPC code from node.proto and agent.proto
	$(RUN) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
	  mllm_sched/pipeline/proto/node.proto mllm_sched/edge/proto/agent.proto

checksums: ## Rewrite data/SHA256SUMS
	cd data && find . -type f ! -name SHA256SUMS ! -name '.*' ! -name '*.py' ! -path '*/__pycache__/*' | LC_ALL=C sort | xargs sha256sum > SHA256SUMS

clean: ## Remove what was built; .venv and results stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
