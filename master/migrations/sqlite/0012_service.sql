-- Services that operators made live beside those of the configuration, which are written anew at each
-- start.
ALTER TABLE service ADD COLUMN configured INTEGER NOT NULL DEFAULT 1;
