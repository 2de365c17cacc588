-- The lives of nodes' identities, and which registration they come from.

-- A number that stays while the node's identity rotates, and is another once it registers anew.
ALTER TABLE node ADD COLUMN registration BIGINT NOT NULL DEFAULT 1;
-- Since when an operator wants another identity; none does otherwise.
ALTER TABLE node ADD COLUMN rotation_ordered BIGINT;

ALTER TABLE node_key ADD COLUMN state TEXT NOT NULL DEFAULT 'present'
    CHECK (state IN ('next', 'present', 'before'));
-- When it became that, in seconds since the Unix epoch; 0 for those that were there before this was kept.
ALTER TABLE node_key ADD COLUMN since BIGINT NOT NULL DEFAULT 0;
-- Rosters of later epochs list it.
ALTER TABLE node_key ADD COLUMN after_epoch BIGINT NOT NULL DEFAULT 0;
-- A key before: when it leaves the roster.
ALTER TABLE node_key ADD COLUMN until BIGINT;

-- Keys that were rotated out. They register no node any more.
CREATE TABLE retired_key (
    public_key BYTEA PRIMARY KEY CHECK (length(public_key) = 32),
    node       TEXT COLLATE "C" NOT NULL
);
