-- Erasure: finding all that is a person's, and destroying it.

-- name: read_strands :many
-- Every strand of the person that an identifier stands for: of the account, and of whatever is or was linked to it and
-- truly so. A strand that is somebody else's tenure stays; and what a thing ($3) was before it changed hands.
WITH account AS MATERIALIZED (
    SELECT coalesce((
        SELECT anchor FROM link
        WHERE log_id = $1 AND identifier = $2 AND kind = 'identity' AND ended_at IS NULL AND annulled_at IS NULL
          AND (until IS NULL OR until > clock_timestamp())
        LIMIT 1
    ), $2) AS identifier
), mine AS MATERIALIZED (
    SELECT a.identifier, CASE WHEN $3::boolean THEN (
               SELECT coalesce(max(tenure), 0) FROM link
               WHERE log_id = $1 AND identifier = a.identifier AND kind = 'identity' AND annulled_at IS NULL
           ) ELSE 0 END AS above, NULL::integer AS upto, a.identifier AS anchor
    FROM account a
    UNION ALL
    SELECT l.identifier, CASE WHEN l.shared THEN l.tenure - 1 ELSE l.base END,
           CASE WHEN l.shared OR l.ended_at IS NOT NULL OR l.until <= clock_timestamp() THEN l.tenure END, l.anchor
    FROM account a
    JOIN link l ON l.log_id = $1 AND l.anchor = a.identifier AND l.kind = 'identity' AND l.annulled_at IS NULL
)
SELECT DISTINCT s.identifier, s.tenure, s.namespace, s.key, s.value
FROM mine m
JOIN strand s ON s.log_id = $1 AND s.identifier = m.identifier
    AND s.tenure > m.above AND (m.upto IS NULL OR s.tenure <= m.upto)
WHERE NOT EXISTS (
    SELECT FROM link o
    WHERE o.log_id = $1 AND o.identifier = s.identifier AND o.kind = 'identity' AND o.tenure = s.tenure
      AND o.annulled_at IS NULL AND o.anchor <> m.anchor
)
ORDER BY s.identifier, s.tenure;

-- name: read_ordered :many
-- Strands by name.
SELECT s.identifier, s.tenure, s.namespace, s.key, s.value
FROM unnest($2::bytea[], $3::integer[]) AS o (identifier, tenure)
JOIN strand s ON s.log_id = $1 AND s.identifier = o.identifier AND s.tenure = o.tenure;

-- name: read_links :many
-- Every link of the account, false ones included, and those of what is linked to it.
WITH account AS MATERIALIZED (
    SELECT coalesce((
        SELECT anchor FROM link
        WHERE log_id = $1 AND identifier = $2 AND kind = 'identity' AND ended_at IS NULL AND annulled_at IS NULL
          AND (until IS NULL OR until > clock_timestamp())
        LIMIT 1
    ), $2) AS identifier
), own AS MATERIALIZED (
    SELECT l.link, l.identifier, l.anchor FROM account a JOIN link l ON l.log_id = $1 AND l.anchor = a.identifier
)
SELECT link, identifier, anchor FROM own
UNION
SELECT l.link, l.identifier, l.anchor
FROM (SELECT identifier FROM account UNION SELECT identifier FROM own) m
JOIN link l ON l.log_id = $1 AND l.identifier = m.identifier AND l.kind <> 'identity';

-- name: read_contacts :many
SELECT c.identifier, c.tenure, c.contact, c.value
FROM unnest($2::bytea[], $3::integer[]) AS o (identifier, tenure)
JOIN contact c ON c.log_id = $1 AND c.identifier = o.identifier AND c.tenure = o.tenure;

-- name: read_events :many
-- The events of strands; with their payloads where they are about one of the purposes $4.
SELECT e.idx, e.event, e.identifier, e.tenure, e.sequence, e.purposes, e.statuses,
       CASE WHEN e.purposes && $4::text[] THEN e.payload END AS payload
FROM unnest($2::bytea[], $3::integer[]) AS o (identifier, tenure)
JOIN event e ON e.log_id = $1 AND e.identifier = o.identifier AND e.tenure = o.tenure;

-- name: is_done :one
SELECT true AS done FROM erasure WHERE log_id = $1 AND erasure = $2;

-- name: become :exec
-- Until the transaction ends: allowed to erase, and not to write anything else.
SET LOCAL ROLE consent_erase;

-- name: resign :exec
SET LOCAL ROLE consent_app;

-- name: note :exec
-- An erasure, and which entries it is about.
WITH made AS (
    INSERT INTO erasure (log_id, erasure, idx, reason, salt, events, erased_at)
    VALUES ($1, $2, $3, $4, $5, cardinality($6::bigint[]), $7)
)
INSERT INTO erased (log_id, idx, erasure) SELECT $1, unnest($6::bigint[]), $2;

-- name: hold :exec
INSERT INTO hold (log_id, idx, erasure, identifier, event, until, key, opening)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: destroy :exec
-- Everything of the strands and links, and what was ordered of the person. An idempotency key stays, so that a late retry is told that what it repeats is
-- erased; a no that was carried elsewhere stays, and forgets whose it was.
WITH strands AS MATERIALIZED (
    SELECT * FROM unnest($2::bytea[], $3::integer[]) AS s (identifier, tenure)
), events AS (
    DELETE FROM event e USING strands s WHERE e.log_id = $1 AND e.identifier = s.identifier AND e.tenure = s.tenure
    RETURNING e.event
), answers AS (
    UPDATE idempotency i SET answer = '', identifier = '', tenure = 0
    FROM strands s WHERE i.log_id = $1 AND i.identifier = s.identifier AND i.tenure = s.tenure
), contacts AS (
    DELETE FROM contact c USING strands s WHERE c.log_id = $1 AND c.identifier = s.identifier AND c.tenure = s.tenure
), keys AS (
    DELETE FROM strand k USING strands s WHERE k.log_id = $1 AND k.identifier = s.identifier AND k.tenure = s.tenure
), states AS (
    DELETE FROM consent_state c USING strands s
    WHERE c.log_id = $1 AND c.identifier = s.identifier AND c.tenure = s.tenure AND c.slot <> 8
), carried AS (
    UPDATE consent_state c SET origin = '', account = ''
    WHERE c.log_id = $1 AND c.identifier = ANY($5::bytea[])
      AND (c.origin IN (SELECT identifier FROM strands) OR c.account IN (SELECT identifier FROM strands))
      AND (c.identifier, c.tenure) NOT IN (SELECT identifier, tenure FROM strands)
), conflicts AS (
    DELETE FROM conflict WHERE log_id = $1 AND link = ANY($4::uuid[])
), exports AS (
    DELETE FROM export x WHERE x.log_id = $1 AND EXISTS (
        SELECT FROM unnest(x.identifiers, x.tenures) AS o (identifier, tenure)
        JOIN strands s ON s.identifier = o.identifier AND s.tenure = o.tenure
    )
)
DELETE FROM link WHERE log_id = $1 AND link = ANY($4::uuid[]);

-- name: suppress :exec
-- Tombstones; a longer one stays.
INSERT INTO consent_state (log_id, identifier, purpose, channel, contact, recipient, slot, grade, tenure, via, status,
                           occurred_at, recorded_at, expires_at, notice, notice_version, language, method, event)
SELECT $1, s.identifier, '*', '', '', '', 8, 0, 0, '', 'suppressed', $4, $4, s.until, '', 0, '', '', $5
FROM unnest($2::bytea[], $3::timestamptz[]) AS s (identifier, until)
ON CONFLICT (log_id, identifier, purpose, channel, contact, recipient, slot, grade, tenure, via) DO UPDATE
SET recorded_at = excluded.recorded_at, occurred_at = excluded.occurred_at, event = excluded.event,
    expires_at = greatest(excluded.expires_at, consent_state.expires_at);
