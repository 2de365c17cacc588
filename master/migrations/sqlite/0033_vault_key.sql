-- Of a key that a vault has: MOUNT/KEY there, and which version of it. Empty for one that is kept here.
ALTER TABLE signing_key ADD COLUMN vault_key TEXT NOT NULL DEFAULT '';
ALTER TABLE signing_key ADD COLUMN vault_version INTEGER;
