-- Registration tokens that were issued up to then, before the database was made from a backup, may have
-- been used since that was taken.
ALTER TABLE forgotten ADD COLUMN issued_through INTEGER NOT NULL DEFAULT 0;
