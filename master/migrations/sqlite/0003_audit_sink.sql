-- How far each sink of the audit log is: the number of the last line that it has for certain.

CREATE TABLE audit_sink (
    name TEXT PRIMARY KEY,
    seq  INTEGER NOT NULL
) STRICT;
