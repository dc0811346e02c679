"""Tests of loadtest/, without a service."""
