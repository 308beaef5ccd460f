"""uvicorn's HTTP, bounded in all that a client can make grow. The only folder that uses private names of uvicorn."""
