"""Outcomes of writes with an Idempotency-Key are deleted after a day, while the service runs."""

from tests.support.checkout import copied
from tests.support.polling import until
from tests.support.postgres import Cluster

OUTDATED = """
    INSERT INTO idempotency_key (key_hash, fingerprint, status, id, created_at)
    SELECT sha256(n::text::bytea), '', 204, n, now() - CASE n WHEN 0 THEN interval '23 h' ELSE interval '25 h' END
    FROM generate_series(0, 2500) AS n
"""


def test_a_running_service_deletes_outdated_outcomes_batch_after_batch_also_after_an_outage(cluster: Cluster) -> None:
    database = cluster.create_database()
    with copied() as checkout:
        module = checkout.folder / "service" / "web" / "idempotency.py"
        module.write_text(module.read_text().replace("SWEEP_PERIOD = 60.0", "SWEEP_PERIOD = 0.3"))

        def left() -> list[int]:
            with database.connect() as conn:
                return [number for (number,) in conn.execute("SELECT id FROM idempotency_key")]

        with checkout.start(database.environment) as service, database.connect() as conn:
            for _ in range(2):
                conn.execute("DELETE FROM idempotency_key")
                conn.execute(OUTDATED)
                until(lambda: left() == [0], "what is outdated is deleted, what is not stays", within=10)
                conn.execute("ALTER TABLE idempotency_key RENAME TO elsewhere")
                until(lambda: "the server refused a statement" in service.log, "a sweep fails")
                conn.execute("ALTER TABLE elsewhere RENAME TO idempotency_key")
