-- What SQLite has after the migration of the same number. Later ones have the same numbers in both.

CREATE TABLE roster (
    one   BIGINT PRIMARY KEY CHECK (one = 1),
    epoch BIGINT NOT NULL
);
INSERT INTO roster (one, epoch) VALUES (1, 1);

CREATE TABLE node (
    id       TEXT COLLATE "C" PRIMARY KEY,
    role     TEXT NOT NULL CHECK (role IN ('gateway', 'relay')),
    -- Told us that it leaves.
    draining BOOLEAN NOT NULL DEFAULT FALSE,
    -- Not heard of for too long.
    silent   BOOLEAN NOT NULL DEFAULT FALSE
);

CREATE TABLE node_key (
    public_key BYTEA PRIMARY KEY CHECK (length(public_key) = 32),
    node       TEXT COLLATE "C" NOT NULL REFERENCES node (id) ON DELETE CASCADE
);
CREATE INDEX node_key_node ON node_key (node);

CREATE TABLE node_address (
    node     TEXT COLLATE "C" NOT NULL REFERENCES node (id) ON DELETE CASCADE,
    position BIGINT NOT NULL,
    address  TEXT NOT NULL,
    PRIMARY KEY (node, position)
);

-- Services that the registration token lets the node announce, and those that it does announce.
CREATE TABLE node_grant (
    node    TEXT COLLATE "C" NOT NULL REFERENCES node (id) ON DELETE CASCADE,
    service TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (node, service)
);
CREATE TABLE node_service (
    node    TEXT COLLATE "C" NOT NULL REFERENCES node (id) ON DELETE CASCADE,
    service TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (node, service)
);

CREATE TABLE service (
    name       TEXT COLLATE "C" PRIMARY KEY,
    definition TEXT NOT NULL,
    -- One of the configuration, which is written anew at each start.
    configured BOOLEAN NOT NULL DEFAULT TRUE
);

CREATE TABLE used_token (
    jti        TEXT PRIMARY KEY,
    expires_at BIGINT NOT NULL
);

CREATE TABLE forgotten (
    one        BIGINT PRIMARY KEY CHECK (one = 1),
    -- Used tokens that expired before this are not remembered, so none that did is accepted.
    expires_at BIGINT NOT NULL
);
INSERT INTO forgotten (one, expires_at) VALUES (1, 0);

CREATE TABLE revoked_node (
    node TEXT COLLATE "C" PRIMARY KEY,
    -- Registration tokens for it that were issued up to then do not register it.
    through BIGINT NOT NULL
);

CREATE TABLE revoked_key (
    public_key BYTEA PRIMARY KEY CHECK (length(public_key) = 32),
    node       TEXT COLLATE "C" NOT NULL
);

CREATE TABLE revoked_subject (
    -- Empty for all.
    service TEXT COLLATE "C" NOT NULL,
    subject TEXT COLLATE "C" NOT NULL,
    through BIGINT NOT NULL,
    PRIMARY KEY (service, subject)
);

-- Keys that sign tokens and rosters. Their secret halves are sealed under the secret master_key.
CREATE TABLE signing_key (
    number  BIGINT PRIMARY KEY,
    kid     TEXT NOT NULL UNIQUE,
    paserk  TEXT COLLATE "C" NOT NULL UNIQUE,
    -- Kept while the key signs or may come to sign.
    sealed  BYTEA,
    state   TEXT NOT NULL
            CHECK (state IN ('published', 'signing', 'accepted', 'retired', 'revoked')),
    since   BIGINT NOT NULL,
    until   BIGINT,
    overlap BIGINT NOT NULL
);
CREATE UNIQUE INDEX signing_key_signs ON signing_key (state) WHERE state = 'signing';
CREATE UNIQUE INDEX signing_key_next ON signing_key (state) WHERE state = 'published';

-- What each key that was followed by another signed of that.
CREATE TABLE succession (
    number    BIGINT PRIMARY KEY,
    statement TEXT NOT NULL
);

-- The audit log: its lines, and the seal of the newest one (credentials::audit).
CREATE TABLE audit_line (
    seq  BIGINT PRIMARY KEY,
    line TEXT NOT NULL
);
CREATE TABLE audit_seal (
    one  BIGINT PRIMARY KEY CHECK (one = 1),
    seal TEXT NOT NULL
);
-- How far each sink of the audit log is: the number of the last line that it has for certain.
CREATE TABLE audit_sink (
    name TEXT PRIMARY KEY,
    seq  BIGINT NOT NULL
);
