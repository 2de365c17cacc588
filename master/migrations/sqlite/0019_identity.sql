-- The lives of nodes' identities, and which registration they come from.

-- A number that stays while the node's identity rotates, and is another once it registers anew.
ALTER TABLE node ADD COLUMN registration INTEGER NOT NULL DEFAULT 1;
-- Since when an operator wants another identity; none does otherwise.
ALTER TABLE node ADD COLUMN rotation_ordered INTEGER;

ALTER TABLE node_key ADD COLUMN state TEXT NOT NULL DEFAULT 'present'
    CHECK (state IN ('next', 'present', 'before'));
-- When it became that, in seconds since the Unix epoch; 0 for those that were there before this was kept.
ALTER TABLE node_key ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
-- Rosters of later epochs list it.
ALTER TABLE node_key ADD COLUMN after_epoch INTEGER NOT NULL DEFAULT 0;
-- A key before: when it leaves the roster.
ALTER TABLE node_key ADD COLUMN until INTEGER;

-- Keys that were rotated out. They register no node any more.
CREATE TABLE retired_key (
    public_key BLOB PRIMARY KEY CHECK (length(public_key) = 32),
    node       TEXT NOT NULL
) STRICT;
