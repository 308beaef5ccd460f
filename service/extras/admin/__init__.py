"""For whoever runs the service: /metrics and /pool."""
