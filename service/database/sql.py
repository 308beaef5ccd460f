"""SQL that every resource can use."""


def utc(column: str) -> str:
    """Return SQL for a timestamptz column as text in UTC, such as 2026-11-23T08:50:46.876168Z (RFC 3339).

    row_to_json() would use the time zone of the session. Costs 0.2 µs a value.
    """
    return f"""to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS {column}"""
