-- Credentials: who calls.

-- name: read_credential :one
-- A credential that is not revoked, with the hashes of its one or two active secrets.
SELECT log_id, id, kind, name, secrets, scopes, origins, rate
FROM credential
WHERE log_id = $1 AND id = $2 AND revoked_at IS NULL;

-- name: add_credential :exec
-- A new credential, or another address from which a known one may be used.
INSERT INTO credential (log_id, id, kind, name, secrets, scopes, origins, rate)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (log_id, id) DO UPDATE
SET name = excluded.name, secrets = excluded.secrets, scopes = excluded.scopes, rate = excluded.rate,
    origins = ARRAY(SELECT DISTINCT unnest(credential.origins || excluded.origins));
