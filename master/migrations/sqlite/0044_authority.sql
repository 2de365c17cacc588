-- Authorities that sign the cluster's own certificates. Their keys are sealed under the secret master_key.
CREATE TABLE authority (
    number      INTEGER PRIMARY KEY,
    -- SHA-256 of its certificate, as hexadecimal.
    hash        TEXT NOT NULL UNIQUE,
    -- X.509, DER.
    certificate BLOB NOT NULL,
    -- Kept while the authority signs or may come to sign.
    sealed      BLOB,
    state       TEXT NOT NULL
                CHECK (state IN ('published', 'signing', 'accepted', 'retired', 'revoked')),
    since       INTEGER NOT NULL,
    until       INTEGER,
    overlap     INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX authority_signs ON authority (state) WHERE state = 'signing';
CREATE UNIQUE INDEX authority_next ON authority (state) WHERE state = 'published';
