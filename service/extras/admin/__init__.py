"""For the operator: /metrics and /pool."""
