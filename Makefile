# Everything starts here; needs Python 3.11+ and make, nothing else. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
CACHE ?= .cache/attend
BIN := $(VENV)/bin
PIP_LOG := $(VENV)/pip.log
TEST_WORKERS ?= 2
SERVE_READY := $(VENV)/.installed-serve
DEV_READY := $(VENV)/.installed-dev

export ATTEND_CACHE_DIR := $(CACHE)

.DEFAULT_GOAL := help
.PHONY: help serve test test-tools lint format e2e clients loadtest export clean

help: ## this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# One line for a stage that may take minutes; what pip says of mirrors and paths is shown only when it fails.
define install
@echo "attend: installing packages, which takes minutes the first time (log: $(PIP_LOG))"
@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt \
	--editable '.[$(EXTRAS)]' >$(PIP_LOG) 2>&1 || { cat $(PIP_LOG) >&2; echo "attend: pip failed, see above" >&2; exit 1; }
endef

$(BIN)/python:
	@echo "attend: setting up $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Attend needs Python 3.11 or newer; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)

$(SERVE_READY): EXTRAS = cpu,export
$(SERVE_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(install)
	@touch $@

$(DEV_READY): EXTRAS = cpu,export,dev
$(DEV_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(install)
	@touch $@ $(SERVE_READY)

export: $(SERVE_READY) ## export the default model (a valid bundle is reused)
	@$(BIN)/attend export default

serve: $(SERVE_READY) ## set up, export the default model when missing, serve on 127.0.0.1:8000 under Ray Serve
	@exec $(BIN)/attend serve

# Tests that compute with the default model for long use all cores and run by themselves; the others two modules at a time.
# First the default model is exported at every precision, so that no test waits for another's export until its time is out.
test: $(DEV_READY) ## set up and run the whole test suite (TEST_WORKERS=0: in one process)
	$(BIN)/python -m pytest tests/integration/test_default_bundles.py
	$(BIN)/python -m pytest -m "not alone" --numprocesses $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder
	$(BIN)/python -m pytest -m alone

test-tools: ## install what some tests need beyond Python and make, from Debian's packages (root)
	@sh tests/install_tools.sh

e2e: $(DEV_READY) ## only the tests with a real server and real clients
	$(BIN)/python -m pytest tests/e2e

# `make clients CLIENTS="langchain autogen"` runs only these; `python -m tests.clients.run --help` lists the names.
clients: $(DEV_READY) ## agents' loops of a dozen real clients, each installed into an environment of its own
	$(BIN)/python -m tests.clients.run $(CLIENTS)

lint: $(DEV_READY) ## every static check, the same as the pre-commit hooks
	PATH="$(abspath $(BIN)):$$PATH" pre-commit run --all-files

format: $(DEV_READY) ## format the code and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What `make loadtest` may be told, as in `make loadtest STEPS=1,8`. The environment does not reach these: HOST is often
# in it and means something else. The key reaches Locust by LOADTEST_API_KEY, which its command line does not show.
loadtest: HOST = http://127.0.0.1:8000
loadtest: STEPS = 1,4,16,32,64
loadtest: STEP_SECONDS = 20
loadtest: MAX_ERROR_RATE = 0
loadtest: TTFT_AT = 16
loadtest: MAX_TTFT_P95_S = 10
loadtest: export API_KEY =
loadtest: $(DEV_READY) ## climb in steps of load on a service that runs on 127.0.0.1:8000, for two minutes
	@LOADTEST_API_KEY="$${API_KEY:-$$LOADTEST_API_KEY}" $(BIN)/locust -f loadtest/locustfile.py --host $(HOST) \
		--headless --only-summary --loglevel WARNING \
		--steps $(STEPS) --step-seconds $(STEP_SECONDS) --stop-timeout 30 --html loadtest/results/load.html \
		--max-error-rate $(MAX_ERROR_RATE) --ttft-at $(TTFT_AT) --max-ttft-p95-s $(MAX_TTFT_P95_S)

clean: ## remove the virtual environment, the exported models and the tools' caches
	rm -rf $(VENV) $(CACHE) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
