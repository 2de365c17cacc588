-- What the KeyVault keeps: nothing here is readable without the master key but paths and the audit log.

-- How it is unsealed.
CREATE TABLE seal (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    config TEXT NOT NULL
);

-- Whose head this is, and how far its writes have come (keyvault::store::Head).
CREATE TABLE head (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    vault      BYTEA NOT NULL CHECK (length(vault) = 16),
    position   BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    term       BIGINT NOT NULL,
    master_key TEXT NOT NULL,
    wraps      BIGINT NOT NULL,
    digest     BYTEA NOT NULL CHECK (length(digest) = 32),
    mac        BYTEA NOT NULL CHECK (length(mac) = 32)
);

-- Keys of the keyring, each wrapped under each master key that is accepted.
CREATE TABLE keyring (
    term        BIGINT NOT NULL,
    master_key  TEXT NOT NULL,
    created     BIGINT NOT NULL,
    wrapped_key BYTEA NOT NULL,
    PRIMARY KEY (term, master_key)
);

-- Paths are ordered by their bytes, whatever the database's language.
CREATE TABLE entry (
    path        TEXT COLLATE "C" PRIMARY KEY,
    revision    BIGINT NOT NULL,
    term        BIGINT NOT NULL,
    wrapped_key BYTEA NOT NULL,
    ciphertext  BYTEA NOT NULL
);
CREATE INDEX entry_term ON entry (term);
-- What is random does not compress.
ALTER TABLE entry ALTER COLUMN ciphertext SET STORAGE EXTERNAL;

CREATE TABLE audit_line (
    seq  BIGINT PRIMARY KEY,
    line TEXT NOT NULL
);

-- How far the audit log goes, and the seal of its newest line. Who writes anything locks this row.
CREATE TABLE audit_head (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    seq  BIGINT NOT NULL,
    hash BYTEA NOT NULL CHECK (length(hash) = 32),
    seal TEXT
);
INSERT INTO audit_head (one, seq, hash) VALUES (1, 0, decode(repeat('00', 32), 'hex'));

-- Processes that hold the keyring, and which generation of it.
CREATE TABLE instance (
    id         BYTEA PRIMARY KEY CHECK (length(id) = 16),
    generation BIGINT NOT NULL,
    seen       BIGINT NOT NULL
);
