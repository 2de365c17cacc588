-- Where a node is, and how much it is to take beside others, as its registration token said.

-- Empty where that was not said.
ALTER TABLE node ADD COLUMN region TEXT NOT NULL DEFAULT '';
ALTER TABLE node ADD COLUMN weight INTEGER NOT NULL DEFAULT 100 CHECK (weight BETWEEN 1 AND 1000);
