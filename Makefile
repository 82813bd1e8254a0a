# The same commands as `python3 run.py …`, for those who have make.
PYTHON ?= python3

.PHONY: demo test lint setup
demo test lint setup:
	$(PYTHON) run.py $@
