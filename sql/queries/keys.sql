-- Making and ending keys.

-- name: add_credential :exec
-- A credential that has to be there, with the secrets $5. One that is there already keeps its own and learns of another
-- address from which it may be used; a secret made just now ($9) joins the newest of them. What was revoked stays as it
-- is, and so does one whose secret was kept by the caller but has been rotated out since.
INSERT INTO credential (log_id, id, kind, name, secrets, scopes, origins, rate)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (log_id, id) DO UPDATE
SET name = excluded.name, scopes = excluded.scopes, rate = excluded.rate,
    secrets = CASE WHEN $9::boolean THEN credential.secrets[cardinality(credential.secrets):] || excluded.secrets
                   ELSE credential.secrets END,
    origins = ARRAY(SELECT DISTINCT unnest(credential.origins || excluded.origins))
WHERE credential.revoked_at IS NULL AND ($9 OR credential.secrets @> excluded.secrets);

-- name: create_credential :one
-- A new credential; nothing where its id is taken.
INSERT INTO credential (log_id, id, kind, name, secrets, scopes, origins, rate)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (log_id, id) DO NOTHING
RETURNING id, kind, name, scopes, origins, rate, created_at, last_used_at, cardinality(secrets) AS secrets, revoked_at;

-- name: list_credentials :many
SELECT id, kind, name, scopes, origins, rate, created_at, last_used_at, cardinality(secrets) AS secrets, revoked_at
FROM credential
WHERE log_id = $1
ORDER BY created_at, id;

-- name: lock_credential :one
-- A credential, revoked or not, held until the transaction ends: whoever changes its secrets or revokes it holds it.
SELECT id, kind, name, scopes, origins, rate, created_at, last_used_at, cardinality(secrets) AS secrets, revoked_at
FROM credential
WHERE log_id = $1 AND id = $2
FOR NO KEY UPDATE;

-- name: append_secret :exec
UPDATE credential SET secrets = array_append(secrets, $3) WHERE log_id = $1 AND id = $2;

-- name: drop_oldest_secret :exec
UPDATE credential SET secrets = secrets[2:] WHERE log_id = $1 AND id = $2;

-- name: revoke_credential :exec
UPDATE credential SET revoked_at = now() WHERE log_id = $1 AND id = $2;

-- name: note_unlogged :exec
UPDATE credential SET unlogged = unlogged || $3::text[] WHERE log_id = $1 AND id = $2;

-- name: is_valid :one
SELECT true AS valid
FROM credential
WHERE log_id = $1 AND id = $2 AND revoked_at IS NULL AND $3 = ANY(secrets);
