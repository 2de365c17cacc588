-- The address that a node's last heartbeat came from, as the master that took it saw it.
ALTER TABLE node_presence ADD COLUMN seen_from TEXT;
