"""The schema: complete, brought up to date by whoever comes first, and the same as the models."""

from __future__ import annotations

import logging
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from storage import database as storage_database
from storage.models import Base
from storage.upgrade import _config, upgrade


@pytest.fixture
def empty_engine(empty_database):
    engine = storage_database.build(empty_database, pooled=False)
    yield engine
    engine.dispose()


def test_migrated_schema_equals_the_models(empty_database, empty_engine):
    upgrade(empty_database)

    with empty_engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_comparison_notices_what_is_missing(empty_database, empty_engine):
    upgrade(empty_database)
    with empty_engine.begin() as connection:
        connection.execute(text("DROP INDEX ix_links_awaiting"))
        connection.execute(text("ALTER TABLE links DROP COLUMN digest"))

    with empty_engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert len(compare_metadata(context, Base.metadata)) == 2


def test_processes_that_start_at_once_all_succeed(empty_database, empty_engine):
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(4)
    processes = [
        spawn.Process(target=upgrade_at_once, args=(start, empty_database), daemon=True)
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0] * 4
    assert "effects" in inspect(empty_engine).get_table_names()


def upgrade_at_once(start, url):
    start.wait(60)
    upgrade(url)


def test_threads_that_start_at_once_all_succeed(empty_database, empty_engine):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(upgrade, [empty_database] * 8))

    assert "links" in inspect(empty_engine).get_table_names()


def revision(engine):
    with engine.connect() as connection:
        return connection.scalar(text("SELECT version_num FROM alembic_version"))


def test_second_upgrade_changes_nothing_and_says_nothing(empty_database, empty_engine, caplog):
    caplog.set_level(logging.INFO)
    upgrade(empty_database)
    told = [record.getMessage() for record in caplog.records]
    upgrade(empty_database)

    assert told == [f"the schema went from nothing to {revision(empty_engine)}"]
    assert len(caplog.records) == 1


def test_release_with_the_first_schema_is_brought_up_to_date_with_its_rows(
    empty_database, empty_engine
):
    with empty_engine.begin() as connection:
        command.upgrade(_config(connection), "0001")
        connection.execute(
            text(
                "INSERT INTO effects (key, state, owner, runs, doubt, created_at, updated_at) "
                "VALUES ('k', 'done', 'o', 1, false, '2026-01-01', '2026-01-01')"
            )
        )
    upgrade(empty_database)

    assert revision(empty_engine) > "0001"
    assert "credit_transfers" in inspect(empty_engine).get_table_names()
    with empty_engine.connect() as connection:
        assert connection.scalar(text("SELECT key FROM effects")) == "k"


def test_failed_upgrade_leaves_the_schema_as_it_was(empty_database, empty_engine):
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE TABLE links (id TEXT)"))  # in the way of the last one

    with pytest.raises(Exception, match="already exists"):
        upgrade(empty_database)
    assert inspect(empty_engine).get_table_names() == ["links"]


def test_newer_schema_is_left_alone_with_a_warning(empty_database, empty_engine, caplog):
    upgrade(empty_database)
    with empty_engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    upgrade(empty_database)

    assert "newer than this release" in caplog.text
    assert revision(empty_engine) == "9999"


def test_state_is_one_of_four(database):
    with pytest.raises(Exception, match="ck_effects_state"), storage_database.write() as connection:
        connection.execute(
            text(
                "INSERT INTO effects (key, state, owner, runs, doubt, created_at, updated_at) "
                "VALUES ('k', 'lost', 'o', 1, false, '2026-01-01', '2026-01-01')"
            )
        )


def test_database_in_memory_is_refused():
    with pytest.raises(ValueError, match="give it a file"):
        storage_database.engine("sqlite://")
