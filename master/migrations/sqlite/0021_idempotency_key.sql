-- What came of operators' requests that bore a key (`Idempotency-Key`), for those who ask again. `name` is the
-- digest of operator and key, `operator` that of the operator, `request` that of the request. An outcome holds no secret.
CREATE TABLE idempotency_key (
    name BLOB PRIMARY KEY,
    operator BLOB NOT NULL,
    request BLOB NOT NULL,
    outcome TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX idempotency_key_expires_at ON idempotency_key (expires_at);
CREATE INDEX idempotency_key_operator ON idempotency_key (operator);
