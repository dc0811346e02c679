"""Tests of what runs and records the real clients."""
