-- The purge: what is due, and the keys of everything wrapped anew.

-- name: read_due :many
SELECT idx FROM hold WHERE log_id = $1 AND until <= $2 ORDER BY idx;

-- name: release :exec
DELETE FROM hold WHERE log_id = $1 AND idx = ANY($2::bigint[]);

-- name: end_stones :one
WITH ended AS (
    DELETE FROM consent_state WHERE log_id = $1 AND slot = 8 AND expires_at <= $2 RETURNING 1
)
SELECT count(*) AS count FROM ended;

-- name: read_wrapped :many
-- Keys that another key-encryption key than $2 wraps.
SELECT identifier, tenure, key FROM strand
WHERE log_id = $1 AND substr(key, 1, 4) <> $2 AND (identifier, tenure) > ($3, $4)
ORDER BY identifier, tenure
LIMIT $5;

-- name: rewrap :exec
-- Where nobody was quicker.
UPDATE strand s SET key = n.new
FROM unnest($2::bytea[], $3::integer[], $4::bytea[], $5::bytea[]) AS n (identifier, tenure, old, new)
WHERE s.log_id = $1 AND s.identifier = n.identifier AND s.tenure = n.tenure AND s.key = n.old;

-- name: read_held :many
SELECT idx, key FROM hold WHERE log_id = $1 AND substr(key, 1, 4) <> $2 LIMIT $3;

-- name: rewrap_held :exec
UPDATE hold h SET key = n.new FROM unnest($2::bigint[], $3::bytea[]) AS n (idx, new)
WHERE h.log_id = $1 AND h.idx = n.idx;

-- name: trust_kek :exec
UPDATE deployment SET kek = $1 WHERE id = 1;
