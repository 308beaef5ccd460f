"""On Debian's PostgreSQL, with locales of libc and ICU: in Turkish, the small form of I is another letter than i."""

from collections.abc import Iterator

import pytest

from service.database.schema import SchemaError
from tests.process.test_same_email import INSERT, knows_which_emails_are_the_same
from tests.process.test_server_settings import check
from tests.support.postgres import Cluster, installed
from tests.support.process import Service
from tests.support.schemas import prepare

LOCALES = {
    "Turkish of libc": "TEMPLATE template0 LOCALE 'tr_TR.UTF-8'",
    "Turkish of ICU": "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR' LOCALE 'C.UTF-8'",
    "German of libc": "TEMPLATE template0 LOCALE 'de_DE.UTF-8'",
    "German of ICU": "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de-u-ks-level1' LOCALE 'C.UTF-8'",
}


@pytest.fixture(scope="module")
def debian() -> Iterator[Cluster]:
    """Debian's PostgreSQL, which has ICU and the machine's locales."""
    versions = installed()
    with Cluster(versions[min(versions.keys() - {"16", "18"})]) as cluster:
        yield cluster


@pytest.mark.parametrize("locale", LOCALES)
def test_emails_are_the_same_whatever_the_locale(debian: Cluster, locale: str) -> None:
    with Service(debian.create_database(LOCALES[locale]).environment) as service:
        knows_which_emails_are_the_same(service.client)


@pytest.mark.parametrize("locale", ["Turkish of libc", "Turkish of ICU"])
def test_users_that_only_turkish_tells_apart_stop_the_start_which_names_them(debian: Cluster, locale: str) -> None:
    database = debian.create_database(LOCALES[locale])
    prepare(database)
    with database.connect() as conn:
        conn.execute("DROP FUNCTION user_email_fold CASCADE; DROP TABLE schema_applied")
        for email in ("INFO@example.com", "info@example.com"):
            conn.execute(INSERT, [email])
    with pytest.raises(SchemaError, match=r"the same email but for its case.*: ids 2147483648, 2147483649"):
        prepare(database)


def test_a_collation_of_an_index_that_has_changed_is_reported(debian: Cluster) -> None:
    database = debian.create_database()
    with database.connect() as conn:
        conn.execute("""
            CREATE COLLATION german (PROVIDER = icu, LOCALE = 'de-DE');
            CREATE TABLE town (name text COLLATE german);
            CREATE INDEX ON town (name)
            """)
    assert "the order of text" not in check(database)
    with database.as_superuser() as conn:
        conn.execute("UPDATE pg_collation SET collversion = '0' WHERE collname IN ('german', 'fr-x-icu')")
    assert "the order of text: german. " in check(database)
