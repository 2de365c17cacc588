-- How far each sink of the audit log is: the number of the last line that it has for certain.

CREATE TABLE audit_sink (
    name text PRIMARY KEY,
    seq  bigint NOT NULL
);
