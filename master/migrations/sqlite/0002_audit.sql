-- The audit log: its lines, and the seal of the newest one (credentials::audit).

CREATE TABLE audit_line (
    seq  INTEGER PRIMARY KEY,
    line TEXT NOT NULL
) STRICT;

CREATE TABLE audit_seal (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    seal TEXT NOT NULL
) STRICT;
