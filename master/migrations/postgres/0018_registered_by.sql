-- The token that registered the node last: whoever lost the answer may ask again with it.
ALTER TABLE node ADD COLUMN registered_by TEXT NOT NULL DEFAULT '';
