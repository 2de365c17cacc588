-- What does not come back: tokens that expired before a second of which nothing is remembered, nodes
-- and keys that were revoked, and session tokens of subjects that were.

CREATE TABLE forgotten (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    -- Used tokens that expired before this are not remembered, so none that did is accepted.
    expires_at INTEGER NOT NULL
) STRICT;
INSERT INTO forgotten (one, expires_at) VALUES (1, 0);

CREATE TABLE revoked_node (
    node TEXT PRIMARY KEY,
    -- Registration tokens for it that were issued up to then do not register it.
    through INTEGER NOT NULL
) STRICT;

CREATE TABLE revoked_key (
    public_key BLOB PRIMARY KEY CHECK (length(public_key) = 32),
    node       TEXT NOT NULL
) STRICT;

CREATE TABLE revoked_subject (
    -- Empty for all.
    service TEXT NOT NULL,
    subject TEXT NOT NULL,
    through INTEGER NOT NULL,
    PRIMARY KEY (service, subject)
) STRICT;
