"""How the built-in model was trained; not part of any test run.

    python3 -m venv VENV && VENV/bin/pip install -r tests/models/training/requirements.txt
    VENV/bin/python -m tests.models.training.train FIRST
    VENV/bin/python -m tests.models.training.train agent/builtin \\
        --start-from FIRST/llamesh-tiny.gguf --steps 450 --peak-rate 0.0015 --seed 1

About ten CPU minutes for the first run and four for the second, which prints its worst margins:
none may be negative. Float sums differ between processors and versions of torch, so a new run gives
another file that knows the same answers; its digest goes into ``agent/builtin/__init__.py``.
The committed file's first run still drew fewer tool calls (20 % of the dialogs) and weighed read
tokens 0.15 instead of 0.4; its second run used the values that stand here.
"""
