"""The database's schema, version after version: an older directory is brought up to date when it is opened."""

__all__ = ["SCHEMA_VERSION", "STEPS"]

_ROUNDS = """
    CREATE TABLE population (
        name TEXT PRIMARY KEY, plan TEXT NOT NULL, signature TEXT NOT NULL,
        round INTEGER NOT NULL, checkpoint TEXT NOT NULL, extra TEXT NOT NULL
    ) STRICT;
    CREATE TABLE round (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, population TEXT NOT NULL REFERENCES population (name),
        number INTEGER NOT NULL, status TEXT NOT NULL, summary BLOB NOT NULL,
        checkpoint TEXT NOT NULL, extra TEXT NOT NULL
    ) STRICT;
    CREATE INDEX round_of ON round (population, sequence);
"""
_LEDGER = """
    CREATE TABLE privacy_loss (name TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT;
    CREATE TABLE privacy_charge (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, population TEXT NOT NULL REFERENCES population (name),
        plan TEXT NOT NULL, round INTEGER NOT NULL, phase INTEGER NOT NULL, attempt TEXT NOT NULL,
        loss TEXT NOT NULL REFERENCES privacy_loss (name), times INTEGER NOT NULL CHECK (times > 0)
    ) STRICT;
    CREATE INDEX privacy_charge_of ON privacy_charge (population, loss);
    CREATE TRIGGER privacy_is_not_changed BEFORE UPDATE ON privacy_charge
        BEGIN SELECT RAISE (ABORT, 'a privacy charge is never changed'); END;
    CREATE TRIGGER privacy_is_not_refunded BEFORE DELETE ON privacy_charge
        BEGIN SELECT RAISE (ABORT, 'a privacy charge is never refunded'); END;
"""
# What a population executed becomes its first task, under the name that `covey serve` gives the task of server.toml.
_TASKS = """
    CREATE TABLE task (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, population TEXT NOT NULL REFERENCES population (name),
        name TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('train', 'evaluate')),
        plan TEXT NOT NULL, signature TEXT NOT NULL, settings BLOB NOT NULL, state TEXT NOT NULL,
        rounds INTEGER NOT NULL, version INTEGER NOT NULL, checkpoint TEXT NOT NULL, UNIQUE (population, name)
    ) STRICT;
    INSERT INTO task (population, name, kind, plan, signature, settings, state, rounds, version, checkpoint)
        SELECT name, 'train', 'train', plan, signature, x'', 'running', round, round, '' FROM population;
    ALTER TABLE population DROP COLUMN plan;
    ALTER TABLE population DROP COLUMN signature;
"""
_RELEASES = """
    CREATE TABLE release (
        population TEXT NOT NULL REFERENCES population (name), version INTEGER NOT NULL CHECK (version > 0),
        checkpoint TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (population, version)
    ) STRICT;
    CREATE TABLE candidate (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, population TEXT NOT NULL REFERENCES population (name),
        task TEXT NOT NULL, round INTEGER NOT NULL, checkpoint TEXT NOT NULL, status TEXT NOT NULL,
        data BLOB NOT NULL, UNIQUE (population, task, round)
    ) STRICT;
    CREATE INDEX candidate_pending ON candidate (status) WHERE status = 'pending';
    CREATE TRIGGER release_is_not_changed BEFORE UPDATE ON release
        BEGIN SELECT RAISE (ABORT, 'a release is never changed'); END;
    CREATE TRIGGER release_is_not_taken_back BEFORE DELETE ON release
        BEGIN SELECT RAISE (ABORT, 'a release is never taken back'); END;
"""

STEPS = (_ROUNDS, _LEDGER, _TASKS, _RELEASES)
"""What leads from each version to the next. A step that was released is never edited: add another."""

SCHEMA_VERSION = len(STEPS)
