-- Policies and notices: versions only ever added.

-- name: read_policy :one
SELECT version, hash, body, applied_at
FROM policy_version
WHERE log_id = $1 AND version = $2;

-- name: activate_policy :exec
-- Under the head's lock: the new version, its new notices, the tenant's issuers, and the head that names it.
WITH policy AS (
    INSERT INTO policy_version (log_id, version, hash, body, applied_at) VALUES ($1, $2, $3, $4, $5)
), notices AS (
    INSERT INTO notice_version (log_id, notice, version, hash, body, published_at)
    SELECT $1, n.notice, n.version, n.hash, n.body, $5
    FROM unnest($6::text[], $7::int[], $8::text[], $9::bytea[]) AS n (notice, version, hash, body)
    ON CONFLICT (log_id, notice, version) DO NOTHING
), tenant AS (
    UPDATE tenant SET issuers = $10 WHERE log_id = $1
)
UPDATE ledger_head SET policy = $2 WHERE log_id = $1;

-- name: count_subjects :one
-- How many identifiers have a record for any of the purposes.
SELECT count(DISTINCT identifier) AS subjects
FROM consent_state
WHERE log_id = $1 AND purpose = ANY($2::text[]);

-- name: read_issuers :many
-- The reference table, whole: whose tokens lead to which tenant.
SELECT log_id, issuers FROM tenant ORDER BY log_id;
