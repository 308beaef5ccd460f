"""What happened: noted for each request, counted for all workers together."""
