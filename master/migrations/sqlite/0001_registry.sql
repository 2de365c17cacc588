-- What the roster shows, and what registration must remember.

CREATE TABLE roster (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL
) STRICT;
INSERT INTO roster (one, epoch) VALUES (1, 1);

CREATE TABLE node (
    id       TEXT PRIMARY KEY,
    role     TEXT NOT NULL CHECK (role IN ('gateway', 'relay')),
    -- Told us that it leaves.
    draining INTEGER NOT NULL DEFAULT 0,
    -- Not heard of for too long.
    silent   INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE node_key (
    public_key BLOB PRIMARY KEY CHECK (length(public_key) = 32),
    node       TEXT NOT NULL REFERENCES node (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX node_key_node ON node_key (node);

CREATE TABLE node_address (
    node     TEXT NOT NULL REFERENCES node (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    address  TEXT NOT NULL,
    PRIMARY KEY (node, position)
) STRICT;

-- Services that the registration token lets the node announce, and those that it does announce.
CREATE TABLE node_grant (
    node    TEXT NOT NULL REFERENCES node (id) ON DELETE CASCADE,
    service TEXT NOT NULL,
    PRIMARY KEY (node, service)
) STRICT;
CREATE TABLE node_service (
    node    TEXT NOT NULL REFERENCES node (id) ON DELETE CASCADE,
    service TEXT NOT NULL,
    PRIMARY KEY (node, service)
) STRICT;

CREATE TABLE service (
    name       TEXT PRIMARY KEY,
    definition TEXT NOT NULL
) STRICT;

CREATE TABLE token_key (
    paserk TEXT PRIMARY KEY
) STRICT;

CREATE TABLE used_token (
    jti        TEXT PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT;
