-- What the leases of a node's flows are to say.

-- Leases that were signed under a roster of an older epoch hold no more.
ALTER TABLE node ADD COLUMN leases_since BIGINT NOT NULL DEFAULT 0;
-- What a flow of the node may carry in a second; 0 where it is what the master's configuration says.
ALTER TABLE node ADD COLUMN flow_bits BIGINT NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN flow_packets BIGINT NOT NULL DEFAULT 0;
