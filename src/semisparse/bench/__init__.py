"""Timing of exported models against other engines, interleaved in one run."""
