-- Whether a node forwards packets of others at this address; otherwise the mesh reaches it there.
ALTER TABLE node_address ADD COLUMN transit BOOLEAN NOT NULL DEFAULT FALSE;
