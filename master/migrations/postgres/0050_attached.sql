-- Relays through which a node is reached that cannot be reached otherwise, as it says. They may be gone.
CREATE TABLE node_attached (
    node  TEXT COLLATE "C" NOT NULL REFERENCES node (id) ON DELETE CASCADE,
    relay TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (node, relay)
);
