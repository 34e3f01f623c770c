-- Erasure: finding all that is a person's, and destroying it.

-- name: read_ordered :many
-- Strands by name, of those that had begun when the ledger had $4 entries: what a person began later is not meant.
SELECT s.identifier, s.tenure, s.key
FROM unnest($2::bytea[], $3::integer[]) AS o (identifier, tenure)
JOIN strand s ON s.log_id = $1 AND s.identifier = o.identifier AND s.tenure = o.tenure
WHERE (
    SELECT e.idx FROM event e
    WHERE e.log_id = $1 AND e.identifier = s.identifier AND e.tenure = s.tenure AND e.sequence = 1
) < $4;

-- name: read_links :many
-- Every link of the account, false ones included, and those of what is linked to it at the moment $3. A false link to
-- somebody else goes with the strand ($4, $5) that it began.
WITH account AS MATERIALIZED (
    SELECT coalesce((
        SELECT anchor FROM link
        WHERE log_id = $1 AND identifier = $2 AND kind = 'identity' AND ended_at IS NULL AND annulled_at IS NULL
          AND (until IS NULL OR until > $3)
        LIMIT 1
    ), $2) AS identifier
), own AS MATERIALIZED (
    SELECT l.link, l.identifier, l.anchor FROM account a JOIN link l ON l.log_id = $1 AND l.anchor = a.identifier
)
SELECT link, identifier, anchor FROM own
UNION
SELECT l.link, l.identifier, l.anchor
FROM (SELECT identifier FROM account UNION SELECT identifier FROM own) m
JOIN link l ON l.log_id = $1 AND l.identifier = m.identifier AND l.kind <> 'identity'
UNION
SELECT l.link, l.identifier, l.anchor
FROM unnest($4::bytea[], $5::integer[]) AS s (identifier, tenure)
JOIN link l ON l.log_id = $1 AND l.identifier = s.identifier AND l.kind = 'identity' AND l.tenure = s.tenure
    AND l.annulled_at IS NOT NULL
ORDER BY link;

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

-- name: read_done :many
-- Which of these erasures the database knows.
SELECT erasure FROM erasure WHERE log_id = $1 AND erasure = ANY($2::uuid[]);

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
INSERT INTO hold (log_id, erasure, idx, identifier, event, until, key, opening)
SELECT $1, $2, h.* FROM unnest($3::bigint[], $4::bytea[], $5::uuid[], $6::timestamptz[], $7::bytea[], $8::bytea[]) AS h;

-- name: destroy :exec
-- Everything of the strands, the links and what was ordered of the person. Of a call that is repeated later, its keyed hash
-- stays: it is told that what it repeats is erased. A no ($6) that counts for somebody else as well stays and forgets
-- whose it was: one that was carried elsewhere, and one on an identifier that is somebody else's by now. (What was said on
-- a thing counts in its own tenure only.)
WITH strands AS MATERIALIZED (
    SELECT * FROM unnest($2::bytea[], $3::integer[]) AS s (identifier, tenure)
), gone AS MATERIALIZED (
    SELECT s.identifier, coalesce(k.tenures, '{}') AS others, coalesce(k.last > max(s.tenure), false) AS stays, EXISTS (
               SELECT FROM link l
               WHERE l.log_id = $1 AND l.identifier = s.identifier AND l.kind = 'identity' AND l.shared
           ) AS shared
    FROM strands s
    LEFT JOIN LATERAL (
        SELECT array_agg(o.tenure) AS tenures, max(o.tenure) AS last FROM strand o
        WHERE o.log_id = $1 AND o.identifier = s.identifier AND (o.identifier, o.tenure) NOT IN (SELECT * FROM strands)
    ) k ON true
    GROUP BY s.identifier, k.tenures, k.last
), standing AS MATERIALIZED (
    SELECT c.ctid AS row, g.identifier IS NOT NULL AND c.tenure <> ALL(g.others)
           AND (NOT g.stays OR g.shared OR c.status <> ALL($6::text[])) AS goes
    FROM consent_state c
    LEFT JOIN gone g USING (identifier)
    WHERE c.log_id = $1 AND c.slot <> 8
      AND c.identifier IN (SELECT identifier FROM strands UNION SELECT unnest($5::bytea[]))
      AND (c.tenure <> ALL(g.others) OR c.origin IN (SELECT identifier FROM strands)
           OR c.account IN (SELECT identifier FROM strands))
), states AS (
    DELETE FROM consent_state c USING standing s WHERE c.log_id = $1 AND c.ctid = s.row AND s.goes
), left_over AS (
    UPDATE consent_state c SET origin = '', account = '', event = gen_random_uuid()
    FROM standing s WHERE c.log_id = $1 AND c.ctid = s.row AND NOT s.goes
), events AS (
    DELETE FROM event e USING strands s WHERE e.log_id = $1 AND e.identifier = s.identifier AND e.tenure = s.tenure
), answers AS (
    UPDATE idempotency i
    SET answer = '', body = '', event = gen_random_uuid(), identifier = '', tenure = 0, idx = 0, size = 0
    FROM strands s WHERE i.log_id = $1 AND i.identifier = s.identifier AND i.tenure = s.tenure
), contacts AS (
    DELETE FROM contact c USING strands s WHERE c.log_id = $1 AND c.identifier = s.identifier AND c.tenure = s.tenure
), keys AS (
    DELETE FROM strand k USING strands s WHERE k.log_id = $1 AND k.identifier = s.identifier AND k.tenure = s.tenure
), conflicts AS (
    DELETE FROM conflict WHERE log_id = $1 AND link = ANY($4::uuid[])
), exports AS (
    DELETE FROM export x WHERE x.log_id = $1 AND (
        EXISTS (
            SELECT FROM unnest(x.identifiers, x.tenures) AS o (identifier, tenure)
            JOIN strands s ON s.identifier = o.identifier AND s.tenure = o.tenure
        )
        OR convert_from(x.filter, 'UTF8')::json ->> 'subject' IN (SELECT encode(identifier, 'hex') FROM strands)
    )
)
DELETE FROM link WHERE log_id = $1 AND link = ANY($4::uuid[]);

-- name: suppress :exec
-- Tombstones; a longer one stays. None names the erasure: that would lead from an address to the entries of a person.
INSERT INTO consent_state (log_id, identifier, purpose, channel, contact, recipient, slot, grade, tenure, via, status,
                           occurred_at, recorded_at, expires_at, notice, notice_version, language, method, event)
SELECT $1, s.identifier, '*', '', '', '', 8, 0, 0, '', 'suppressed', $4, $4, s.until, '', 0, '', '', gen_random_uuid()
FROM unnest($2::bytea[], $3::timestamptz[]) AS s (identifier, until)
ON CONFLICT (log_id, identifier, purpose, channel, contact, recipient, slot, grade, tenure, via) DO UPDATE
SET recorded_at = excluded.recorded_at, occurred_at = excluded.occurred_at, event = excluded.event,
    expires_at = greatest(excluded.expires_at, consent_state.expires_at);
