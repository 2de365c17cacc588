-- Keys in the order in which they were made, whatever becomes of SQLite's own row numbers.

CREATE TABLE numbered_key (
    number  INTEGER PRIMARY KEY,
    kid     TEXT NOT NULL UNIQUE,
    paserk  TEXT NOT NULL UNIQUE,
    -- Kept while the key signs or may come to sign.
    sealed  BLOB,
    state   TEXT NOT NULL
            CHECK (state IN ('published', 'signing', 'accepted', 'retired', 'revoked')),
    since   INTEGER NOT NULL,
    until   INTEGER,
    overlap INTEGER NOT NULL
) STRICT;
INSERT INTO numbered_key (number, kid, paserk, sealed, state, since, until, overlap)
    SELECT rowid, kid, paserk, sealed, state, since, until, overlap FROM signing_key;
DROP TABLE signing_key;
ALTER TABLE numbered_key RENAME TO signing_key;
CREATE UNIQUE INDEX signing_key_signs ON signing_key (state) WHERE state = 'signing';
CREATE UNIQUE INDEX signing_key_next ON signing_key (state) WHERE state = 'published';
