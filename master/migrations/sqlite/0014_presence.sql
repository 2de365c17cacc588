-- How often what a node says of itself was written, and that it fell silent.
ALTER TABLE node ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;

-- Which node some master has heard lately; empty where there is one master.
CREATE TABLE node_presence (
    node     TEXT PRIMARY KEY REFERENCES node (id) ON DELETE CASCADE,
    -- In milliseconds since the Unix epoch, by the server's clock.
    heard_at INTEGER NOT NULL,
    -- What it told: sessions live on it, the epoch of its roster, the version of its program.
    sessions INTEGER NOT NULL,
    epoch    INTEGER NOT NULL,
    version  TEXT NOT NULL
) STRICT;
