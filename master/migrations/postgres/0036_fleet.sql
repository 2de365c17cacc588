-- What gateways that share certificates keep here: sealed by them for each other, in base64.
CREATE TABLE fleet (
    one      BIGINT PRIMARY KEY CHECK (one = 1),
    -- Grows with each change of what gateways are told of.
    revision BIGINT NOT NULL
);
INSERT INTO fleet (one, revision) VALUES (1, 0);

CREATE TABLE fleet_entry (
    name             TEXT COLLATE "C" PRIMARY KEY,
    -- The lease: its last holder's number, who has it (nobody: ''), and until when, in milliseconds since the Unix epoch.
    fence            BIGINT NOT NULL,
    holder           TEXT NOT NULL,
    until            BIGINT NOT NULL,
    -- For the next holder; for all; for all. '' where there is none.
    draft            TEXT NOT NULL,
    answers          TEXT NOT NULL,
    product          TEXT NOT NULL,
    -- When the last two changed last.
    answers_revision BIGINT NOT NULL,
    product_revision BIGINT NOT NULL,
    revision         BIGINT NOT NULL
);
CREATE INDEX fleet_entry_revision ON fleet_entry (revision);

-- Up to which revision a gateway has taken in what it is told, and when it asked last.
CREATE TABLE fleet_member (
    node     TEXT COLLATE "C" PRIMARY KEY REFERENCES node (id) ON DELETE CASCADE,
    revision BIGINT NOT NULL,
    asked_at BIGINT NOT NULL
);
