"""HTTP routes: validate, submit, map errors by one table."""
