-- KeyVaults are nodes, too, and have names at which they are found, with blanks between them.
ALTER TABLE node DROP CONSTRAINT node_role_check;
ALTER TABLE node ADD CONSTRAINT node_role_check CHECK (role IN ('gateway', 'relay', 'keyvault'));
ALTER TABLE node ADD COLUMN names TEXT COLLATE "C" NOT NULL DEFAULT '';
