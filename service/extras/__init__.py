"""What the service works without. Each part can be deleted with its lines in app.py or __main__.py."""
