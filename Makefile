# Needs Python >= 3.11, make and a package index; everything else goes into .venv, in this folder.

PYTHON ?= python3

# Relative, so that a checkout whose path holds spaces works too.
VENV := .venv
RUN := $(VENV)/bin/python
TYPED := $(VENV)/typecheck
SOURCES := $(wildcard clbench/*.py clbench/*/*.py strategies/*.py scenarios/*.py reports/*.py reports/claims/*.py)
FASTER := not slow and not soak and not alone
# A test process for each processor, four at most, since each of them holds torch and the data.
AT_ONCE := --numprocesses logical --maxprocesses 4 --dist worksteal

# The folder in which demo-pretrained looks for CIFAR-100.
DATA ?= data

.PHONY: help demo demo-pretrained test test-all soak lint types setup readme docs clean

help:
	@echo "make demo      compare seven strategies on real digits (about two minutes after the installation)"
	@echo "make demo-pretrained  four methods on frozen ImageNet features: CIFAR-100 if it is in DATA=data, else digits"
	@echo "make test      ruff, mypy and the tests, without the slow ones"
	@echo "make test-all  with the slow tests too: what CI runs"
	@echo "make soak      long kills, loads and fuzzing"
	@echo "make readme    bring the README's table and figure and the generated pages up to date, after make demo"
	@echo "make docs      the documentation as a site, in site/"
	@echo "make clean     remove the environment and what was built; the runs stay"

demo: $(VENV)/installed
	$(VENV)/bin/clbench compare split-mnist-5k naive joint feature-extraction lwf ewc er icarl \
		--seeds 3 --jobs 2 --out runs/demo
	@echo
	@echo "The report, to look at in a browser: runs/demo/report/report.html"

# Class orders differ by seed. CIFAR-100 is 60,000 images, so it is not fetched unasked. RanPAC takes fewer
# projections than its own 10,000, whose cube the time grows with.
demo-pretrained: $(VENV)/installed-pretrained
	@scenario=split-mnist-5k; \
	if $(VENV)/bin/clbench describe split-cifar100 --data-root "$(DATA)" --offline > /dev/null 2>&1; then \
		scenario=split-cifar100; \
	else \
		echo "CIFAR-100 is not in the folder $(DATA); the digits that come with a package take its place."; \
	fi; \
	$(VENV)/bin/clbench compare $$scenario frozen-ncm simplecil slda "ranpac[projections=2000]" --no-references \
		--data-root "$(DATA)" --model "efficientnet-lite0[image_size=96]" --seeds 3 --class-order-seed per-seed \
		--out runs/demo-pretrained
	@echo
	@echo "The report, to look at in a browser: runs/demo-pretrained/report/report.html"

test: lint types
	$(RUN) -m pytest -m "$(FASTER)" $(AT_ONCE)

test-all: lint types
	$(RUN) -m pytest -m "not soak and not alone" $(AT_ONCE)
	$(RUN) -m pytest -m "alone and not soak"

soak: setup
	$(RUN) -m pytest -m soak

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(TYPED)/made
	cd $(TYPED) && ../bin/python -m mypy --config-file ../../pyproject.toml -p clbench

setup: $(VENV)/installed-dev

readme: setup
	$(RUN) docs/update_readme.py runs/demo
	$(RUN) docs/update_defaults.py
	$(RUN) docs/update_schema.py
	$(RUN) docs/update_reproduction.py
	$(RUN) docs/update_speed.py
	$(RUN) docs/update_online.py

docs: setup
	$(RUN) -m mkdocs build --strict
	@echo
	@echo "The documentation, to look at in a browser: site/index.html"

clean:
	rm -rf $(VENV) build dist site clbench.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clbench needs Python 3.11 or newer, not %d.%d; name one: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Installing takes a minute or two, so it is done again only when pyproject.toml has changed. An old egg-info in this
# folder would hide entry points that are new.
$(VENV)/installed: pyproject.toml | $(VENV)/made
	@rm -rf clbench.egg-info
	$(RUN) -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-pretrained: pyproject.toml | $(VENV)/made
	@rm -rf clbench.egg-info
	$(RUN) -m pip install --quiet --editable ".[pretrained]"
	@touch $(VENV)/installed $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/made
	@rm -rf clbench.egg-info
	$(RUN) -m pip install --quiet --editable ".[dev]"
	@touch $(VENV)/installed $(VENV)/installed-pretrained $@

# mypy reads packages as they are installed: it knows nothing of the folders that pyproject.toml maps.
$(TYPED)/made: $(SOURCES) $(VENV)/installed-dev
	@rm -rf build $(TYPED)
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --target $(TYPED) .
	@rm -rf build
	@touch $@
