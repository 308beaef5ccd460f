"""Connections: lent, limited, watched. Knows nothing of HTTP or users."""
