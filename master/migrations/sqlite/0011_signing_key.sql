-- Keys that sign tokens and rosters. Their secret halves are sealed under the secret master_key.

CREATE TABLE signing_key (
    kid     TEXT PRIMARY KEY,
    paserk  TEXT NOT NULL UNIQUE,
    -- Kept while the key signs or may come to sign.
    sealed  BLOB,
    state   TEXT NOT NULL
            CHECK (state IN ('published', 'signing', 'accepted', 'retired', 'revoked')),
    since   INTEGER NOT NULL,
    until   INTEGER,
    overlap INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX signing_key_signs ON signing_key (state) WHERE state = 'signing';
CREATE UNIQUE INDEX signing_key_next ON signing_key (state) WHERE state = 'published';

-- What each key that was followed by another signed of that.
CREATE TABLE succession (
    number    INTEGER PRIMARY KEY,
    statement TEXT NOT NULL
) STRICT;

DROP TABLE token_key;
