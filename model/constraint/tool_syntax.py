"""How a call stands in an answer's text. The constraint enforces it, the API reads it, templates' texts show it."""

TOOL_CALL_BEGIN = "<tool_call>\n"
TOOL_CALL_END = "\n</tool_call>"
