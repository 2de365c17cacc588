-- What gateways that share certificates keep here: sealed by them for each other, in base64.
CREATE TABLE fleet (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    -- Grows with each change of what gateways are told of.
    revision INTEGER NOT NULL
);
INSERT INTO fleet (one, revision) VALUES (1, 0);

CREATE TABLE fleet_entry (
    name             TEXT PRIMARY KEY,
    -- The lease: its last holder's number, who has it (nobody: ''), and until when, in milliseconds since the Unix epoch.
    fence            INTEGER NOT NULL,
    holder           TEXT NOT NULL,
    until            INTEGER NOT NULL,
    -- For the next holder; for all; for all. '' where there is none.
    draft            TEXT NOT NULL,
    answers          TEXT NOT NULL,
    product          TEXT NOT NULL,
    -- When the last two changed last.
    answers_revision INTEGER NOT NULL,
    product_revision INTEGER NOT NULL,
    revision         INTEGER NOT NULL
);
CREATE INDEX fleet_entry_revision ON fleet_entry (revision);

-- Up to which revision a gateway has taken in what it is told, and when it asked last.
CREATE TABLE fleet_member (
    node     TEXT PRIMARY KEY REFERENCES node (id) ON DELETE CASCADE,
    revision INTEGER NOT NULL,
    asked_at INTEGER NOT NULL
);
