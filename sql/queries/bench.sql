-- The plain handler that `consent bench` compares with. Its table exists in the benchmark's database only.

-- name: plain_table :exec
CREATE TABLE IF NOT EXISTS plain_consent (
    event       uuid        PRIMARY KEY,
    namespace   text        NOT NULL,
    value       text        NOT NULL,
    body        bytea       NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

-- name: plain_insert :exec
INSERT INTO plain_consent (event, namespace, value, body) VALUES ($1, $2, $3, $4);

-- name: grow_head :exec
-- The head of a ledger whose entries were copied in.
UPDATE ledger_head SET size = $2, frontier = $3 WHERE log_id = $1;
