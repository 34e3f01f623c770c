-- Credentials: who calls.

-- name: read_credential :one
-- A credential that is not revoked, with the hashes of its one or two active secrets, oldest first; `unnoted`: for a
-- minute nobody has written down that it is used. One row in any case: that there is no such key costs as much as that
-- its secret is another.
SELECT c.id IS NOT NULL AS found, $1::integer AS log_id, coalesce(c.id, $2) AS id, coalesce(c.kind, 'service') AS kind,
       coalesce(c.name, 'none') AS name,
       coalesce(c.secrets, ARRAY[decode(repeat('00', 32), 'hex')]) AS secrets,
       coalesce(c.scopes, ARRAY['check', 'events', 'links', 'write:attested']) AS scopes,
       coalesce(c.origins, '{}') AS origins, c.rate,
       c.last_used_at IS NULL OR c.last_used_at < now() - interval '1 minute' AS unnoted
FROM (SELECT) AS always
LEFT JOIN credential c ON c.log_id = $1 AND c.id = $2 AND c.revoked_at IS NULL;

-- name: note_use :exec
-- Once a minute, however many processes ask. A row that somebody else holds is left alone, not waited for.
UPDATE credential SET last_used_at = now()
WHERE log_id = $1 AND id = (
    SELECT id FROM credential
    WHERE log_id = $1 AND id = $2 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
    FOR NO KEY UPDATE SKIP LOCKED
);
