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
parameter = $(if $(call called,$(1)),--set $(2)=$(call called,$(1)))

PARAMETERS := $(strip $(call parameter,SEEDS,seeds) $(call parameter,STEPS,steps) \
  $(call parameter,DEVICE,device) $(call parameter,ENCODER,encoder) \
  $(call parameter,LIMIT,limit_s) $(foreach pair,$(call called,SET),--set $(pair)))

ifneq ($(call called,DASK),)
export MLLM_SCHED_DASK := $(DASK)
endif

.DEFAULT_GOAL := help
.PHONY: help env reproduce test test-slow browser lint lab app notebooks claims bench system peers site proto checksums clean

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

reproduce: $(STAMP) ## Run notebooks that are not up to date: SEEDS= STEPS= DEVICE= ENCODER= LIMIT= NOTEBOOKS= DASK= SET="name=value" FORCE=1
	$(RUN) -m mllm_sched.study.notebooks reproduce $(if $(call called,FORCE),--force) $(PARAMETERS) $(call called,NOTEBOOKS)
	@$(if $(PARAMETERS),MLLM_SCHED_RESULTS=build/results) $(RUN) -m mllm_sched.study.claims $(if $(PARAMETERS),--print)

test: $(STAMP) ## Unit tests, doctests, then the notebooks against their committed outputs, tables and figures
	$(RUN) -m pytest -m "not slow" -p no:nbval -n 2 --dist worksteal
	rm -rf build/held && mkdir -p build && cp -R results build/held
	@# Two notebooks at once fill the cores: processes of their own would only have to be started.
	@status=0; MLLM_SCHED_RESULTS="$(CURDIR)/build/held" TQDM_DISABLE=1 LOKY_MAX_CPU_COUNT=1 $(RUN) -m pytest --nbval --nbval-current-env --nbval-cell-timeout 900 \
	  -p no:cacheprovider -n 2 --dist loadscope --no-loadscope-reorder notebooks || status=$$?; \
	$(RUN) -m mllm_sched.study.held results build/held || status=1; exit $$status

test-slow: $(STAMP) browser ## Tests that need processes, kills, a browser, Prometheus or the built site
	$(RUN) -m pytest -m slow -p no:nbval -n 2 --dist loadscope tests

browser: ## Install Chromium for the tests of pages, where it is missing and we are root on Debian
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } || \
	  echo "no Chromium: the tests of pages will be skipped"

lint: $(STAMP) ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy mllm_sched

lab: $(STAMP) ## Open JupyterLab at the quickstart
	$(VENV)/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_quickstart.ipynb

app: $(STAMP) ## Open the explorer and the calculator as a page without code
	$(VENV)/bin/voila notebooks/12_explorer.ipynb --Voila.ip=127.0.0.1 --VoilaConfiguration.resources="{'metadata': {'name': 'mllm-sched explorer'}}"

notebooks: $(STAMP) ## Run the notebooks in place: their outputs become the result to commit; LIVE=1
	$(RUN) -m mllm_sched.study.notebooks refresh $(if $(call called,LIVE),--live) $(call called,NOTEBOOKS)

claims: $(STAMP) ## Write results/claims.csv and the tables of README and REPORT from results/
	$(RUN) -m mllm_sched.study.claims

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
	cd data && find . -type f ! -name SHA256SUMS ! -name '.*' | LC_ALL=C sort | xargs sha256sum > SHA256SUMS

clean: ## Remove what was built; .venv and results stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
