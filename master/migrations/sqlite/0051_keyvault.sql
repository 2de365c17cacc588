-- KeyVaults are nodes, too, and have names at which they are found, with blanks between them.
-- A column's check cannot be changed here: another column takes its place.
ALTER TABLE node ADD COLUMN part TEXT NOT NULL DEFAULT 'relay' CHECK (part IN ('gateway', 'relay', 'keyvault'));
UPDATE node SET part = role;
ALTER TABLE node DROP COLUMN role;
ALTER TABLE node RENAME COLUMN part TO role;
ALTER TABLE node ADD COLUMN names TEXT NOT NULL DEFAULT '';
