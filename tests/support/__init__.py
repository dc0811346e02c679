"""Fakes and tiny real things that tests share."""
