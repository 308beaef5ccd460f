"""What every endpoint shares. Knows nothing of users."""
