"""Wire models: what a request may say and what an answer holds. Imports pydantic only."""
