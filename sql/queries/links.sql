-- Links: who belongs together, and since when. Whoever changes one holds the ledger's head.

-- name: read_links :many
-- Every link that an identifier ever took part in, on either side, oldest first.
SELECT link, kind, identifier, anchor, tenure, base, shared, grade, began_at, until, ended_at, annulled_at, annul_asked
FROM link
WHERE log_id = $1 AND (identifier = ANY($2::bytea[]) OR anchor = ANY($2::bytea[]))
ORDER BY began_at;

-- name: read_link :one
SELECT link, kind, identifier, anchor, tenure, base, shared, grade, began_at, until, ended_at, annulled_at, annul_asked
FROM link
WHERE log_id = $1 AND link = $2;

-- name: add_link :exec
INSERT INTO link (log_id, link, kind, identifier, anchor, tenure, base, shared, grade, began_at, until)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: end_link :exec
UPDATE link SET ended_at = $3 WHERE log_id = $1 AND link = $2;

-- name: ask_annulment :exec
UPDATE link SET annul_asked = $3 WHERE log_id = $1 AND link = $2;

-- name: annul_link :exec
-- As if it had never been: what it carried is taken back, and what was recorded meanwhile belongs to the tenure before.
WITH annulled AS (
    UPDATE link SET annulled_at = $3 WHERE log_id = $1 AND link = $2 RETURNING identifier, anchor, tenure
), later AS (
    UPDATE link l SET base = coalesce((
        SELECT max(o.tenure) FROM link o
        WHERE o.log_id = $1 AND o.identifier = a.identifier AND o.kind = 'identity' AND o.annulled_at IS NULL
          AND o.link <> $2 AND o.tenure < l.tenure
    ), 0)
    FROM annulled a
    WHERE l.log_id = $1 AND l.identifier = a.identifier AND l.kind = 'identity' AND l.tenure > a.tenure
), touched AS (
    SELECT identifier FROM annulled
    UNION SELECT anchor FROM annulled
    UNION SELECT o.identifier FROM annulled a JOIN link o ON o.log_id = $1 AND o.anchor = a.anchor
), settled AS (
    DELETE FROM conflict WHERE log_id = $1 AND link = $2
)
DELETE FROM consent_state s USING touched t
WHERE s.log_id = $1 AND s.identifier = t.identifier AND position(uuid_send($2::uuid) IN s.via) > 0;

-- name: add_conflicts :exec
INSERT INTO conflict (log_id, link, purpose, channel, opened_at)
SELECT $1, $2, c.purpose, c.channel, $5 FROM unnest($3::text[], $4::text[]) AS c (purpose, channel);

-- name: read_conflicts :many
-- What was found when the next so many links were made or since; whether it is still open is worked out.
SELECT c.link, c.purpose, c.channel, c.opened_at, l.identifier, l.shared, l.anchor
FROM conflict c
JOIN link l ON l.log_id = $1 AND l.link = c.link
WHERE c.log_id = $1 AND c.link IN (
    SELECT DISTINCT link FROM conflict WHERE log_id = $1 AND link > $2 ORDER BY link LIMIT $3
) AND l.annulled_at IS NULL
ORDER BY c.link, c.purpose, c.channel;

-- name: last_conflict :one
-- The last of the next so many links with conflicts: where the page after begins.
SELECT link FROM (
    SELECT DISTINCT link FROM conflict WHERE log_id = $1 AND link > $2 ORDER BY link LIMIT $3
) page
ORDER BY link DESC
LIMIT 1;

-- name: read_link_events :many
-- What happened to links, on the side that was linked.
SELECT e.event, e.link, e.identifier, e.tenure, e.payload, s.key
FROM event e
JOIN link l ON l.log_id = $1 AND l.link = e.link AND l.identifier = e.identifier
JOIN strand s ON s.log_id = $1 AND s.identifier = e.identifier AND s.tenure = e.tenure
WHERE e.log_id = $1 AND e.link = ANY($2::uuid[])
ORDER BY e.idx;
