-- What is not taken any more, or not twice.

-- name: read_revocations :many
SELECT what, at FROM revocation WHERE log_id = $1 AND what = ANY($2::bytea[]) AND expires_at > clock_timestamp();

-- name: revoke :exec
-- Whatever was issued until $3 is refused until it would have expired anyway; what is long over is swept away.
WITH swept AS (
    DELETE FROM revocation
    WHERE log_id = $1 AND expires_at < clock_timestamp() - interval '1 day' AND what <> ALL($2::bytea[])
)
INSERT INTO revocation (log_id, what, at, expires_at)
SELECT $1, w, greatest(clock_timestamp(), $3), $4 FROM unnest($2::bytea[]) AS w
ON CONFLICT (log_id, what) DO UPDATE
SET at = greatest(revocation.at, excluded.at), expires_at = greatest(revocation.expires_at, excluded.expires_at);

-- name: use_once :one
-- Marks something as used; nothing where it was used before.
INSERT INTO revocation (log_id, what, expires_at) VALUES ($1, $2, $3)
ON CONFLICT (log_id, what) DO NOTHING
RETURNING what;
