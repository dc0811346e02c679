"""Measurements behind `attend bench`. Nothing that serves imports them."""
