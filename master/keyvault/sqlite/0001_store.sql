-- What the KeyVault keeps: nothing here is readable without the master key but paths and the audit log.

-- How it is unsealed.
CREATE TABLE seal (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    config TEXT NOT NULL
) STRICT;

-- Whose head this is, and how far its writes have come (keyvault::store::Head).
CREATE TABLE head (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    vault      BLOB NOT NULL CHECK (length(vault) = 16),
    position   INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    term       INTEGER NOT NULL,
    master_key TEXT NOT NULL,
    wraps      INTEGER NOT NULL,
    digest     BLOB NOT NULL CHECK (length(digest) = 32),
    mac        BLOB NOT NULL CHECK (length(mac) = 32)
) STRICT;

-- Keys of the keyring, each wrapped under each master key that is accepted.
CREATE TABLE keyring (
    term        INTEGER NOT NULL,
    master_key  TEXT NOT NULL,
    created     INTEGER NOT NULL,
    wrapped_key BLOB NOT NULL,
    PRIMARY KEY (term, master_key)
) STRICT;

CREATE TABLE entry (
    path        TEXT PRIMARY KEY,
    revision    INTEGER NOT NULL,
    term        INTEGER NOT NULL,
    wrapped_key BLOB NOT NULL,
    ciphertext  BLOB NOT NULL
) STRICT;
CREATE INDEX entry_term ON entry (term);

CREATE TABLE audit_line (
    seq  INTEGER PRIMARY KEY,
    line TEXT NOT NULL
) STRICT;

-- How far the audit log goes, and the seal of its newest line.
CREATE TABLE audit_head (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    seq  INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    seal TEXT
) STRICT;
INSERT INTO audit_head (one, seq, hash) VALUES (1, 0, zeroblob(32));

-- Processes that hold the keyring, and which generation of it.
CREATE TABLE instance (
    id         BLOB PRIMARY KEY CHECK (length(id) = 16),
    generation INTEGER NOT NULL,
    seen       INTEGER NOT NULL
) STRICT;
