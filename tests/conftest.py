"""Fixtures for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# Threads of torch and OpenMP only compete with one another on the small arrays of the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shared machine is slow at times, which says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
