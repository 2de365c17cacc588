-- How often what a node says of itself was written, and that it fell silent.
ALTER TABLE node ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;

-- Which node some master has heard lately.
CREATE TABLE node_presence (
    node     TEXT COLLATE "C" PRIMARY KEY REFERENCES node (id) ON DELETE CASCADE,
    -- In milliseconds since the Unix epoch, by the server's clock.
    heard_at BIGINT NOT NULL,
    -- What it told: sessions live on it, the epoch of its roster, the version of its program.
    sessions BIGINT NOT NULL,
    epoch    BIGINT NOT NULL,
    version  TEXT NOT NULL
);
