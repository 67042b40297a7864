"""Fixtures for every test."""

from __future__ import annotations

import os

# Threads of torch and OpenMP only compete with one another on the small arrays of the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
