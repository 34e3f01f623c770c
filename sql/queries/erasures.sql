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
-- What ties a person, whose identifiers $2 are theirs altogether, to others: every link to them, false ones included, but
-- not that of a group's members; their own groups and guardians; and false links that began strands of theirs ($3, $4).
SELECT link, identifier, anchor FROM link
WHERE log_id = $1 AND anchor = ANY($2::bytea[]) AND (kind <> 'group' OR ended_at IS NOT NULL)
UNION
SELECT link, identifier, anchor FROM link WHERE log_id = $1 AND identifier = ANY($2::bytea[]) AND kind <> 'identity'
UNION
SELECT l.link, l.identifier, l.anchor
FROM unnest($3::bytea[], $4::integer[]) AS s (identifier, tenure)
JOIN link l ON l.log_id = $1 AND l.identifier = s.identifier AND l.kind = 'identity' AND l.tenure = s.tenure
    AND l.annulled_at IS NOT NULL
ORDER BY link;

-- name: read_changed :many
-- Links of some identifiers that began or ended after a moment: an order from before does not know of them.
SELECT link, identifier, anchor FROM link
WHERE log_id = $1 AND (identifier = ANY($2::bytea[]) OR anchor = ANY($2::bytea[]))
  AND greatest(began_at, ended_at, annulled_at) > $3;

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
-- Which of these erasures the database knows, and where their entries are.
SELECT erasure, idx FROM erasure WHERE log_id = $1 AND erasure = ANY($2::uuid[]);

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
-- Everything of the strands, the ties and what was ordered of the person. Of a call that is repeated later, its keyed hash
-- stays: it is told that what it repeats is erased. What somebody else's decisions rest on stays, and nobody can tell any
-- more whose it was:
-- - a no ($6) that was carried elsewhere, or was said on an identifier that `stays`: it was theirs for a time only, not
--   altogether ($8), or somebody else had it too; or it is a group, whose no holds for its members. Names and events
--   become stand-ins, the same for the same within this statement ($7 is a salt that nobody keeps);
-- - of a link the dates: those of a tenure of such an identifier, and until when a child has a guardian.
-- What was said on a thing counts in its own tenure only, and goes.
WITH strands AS MATERIALIZED (
    SELECT * FROM unnest($2::bytea[], $3::integer[]) AS s (identifier, tenure)
), found AS MATERIALIZED (
    SELECT i.identifier, i.identifier = ANY($8::bytea[]) AS whole, coalesce(k.tenures, '{}') AS others, EXISTS (
               SELECT FROM link l
               WHERE l.log_id = $1 AND l.identifier = i.identifier AND l.kind = 'identity' AND l.shared
           ) AS shared, EXISTS (
               SELECT FROM link g WHERE g.log_id = $1 AND g.anchor = i.identifier AND g.kind = 'group'
                 AND g.ended_at IS NULL AND g.annulled_at IS NULL
           ) AS is_group
    FROM (SELECT identifier FROM strands UNION SELECT unnest($8::bytea[])) i
    LEFT JOIN LATERAL (
        SELECT array_agg(o.tenure) AS tenures FROM strand o
        WHERE o.log_id = $1 AND o.identifier = i.identifier AND (o.identifier, o.tenure) NOT IN (SELECT * FROM strands)
    ) k ON true
), known AS MATERIALIZED (
    SELECT *, cardinality(others) > 0 OR is_group OR NOT (whole OR shared) AS stays FROM found
), gone AS MATERIALIZED (
    SELECT identifier FROM known WHERE NOT stays
), standing AS MATERIALIZED (
    SELECT c.ctid AS row, k.identifier IS NOT NULL AND c.tenure <> ALL(k.others)
           AND (NOT k.stays OR k.shared OR c.status <> ALL($6::text[])) AS goes
    FROM consent_state c
    LEFT JOIN known k USING (identifier)
    WHERE c.log_id = $1 AND c.slot <> 8
      AND c.identifier IN (SELECT identifier FROM known UNION SELECT unnest($5::bytea[]))
      AND (c.tenure <> ALL(k.others) OR c.origin IN (SELECT * FROM gone) OR c.account IN (SELECT * FROM gone))
), states AS (
    DELETE FROM consent_state c USING standing s WHERE c.log_id = $1 AND c.ctid = s.row AND s.goes
), left_over AS (
    UPDATE consent_state c
    SET origin = CASE WHEN c.origin IN (SELECT * FROM gone) THEN substr(sha256($7::bytea || c.origin), 1, 16)
                      ELSE c.origin END,
        account = CASE WHEN c.account IN (SELECT * FROM gone) THEN substr(sha256($7::bytea || c.account), 1, 16)
                       ELSE c.account END,
        event = encode(substr(sha256($7::bytea || uuid_send(c.event)), 1, 16), 'hex')::uuid
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
        OR convert_from(x.filter, 'UTF8')::json ->> 'subject' IN (SELECT encode(identifier, 'hex') FROM gone)
    )
), kept AS MATERIALIZED (
    SELECT l.link FROM link l
    WHERE l.log_id = $1 AND l.link = ANY($4::uuid[]) AND l.annulled_at IS NULL AND NOT l.identifier IN (SELECT * FROM gone)
      AND l.kind <> 'group'
), nameless AS (
    UPDATE link l
    SET anchor = '', annul_asked = NULL,
        ended_at = CASE WHEN l.kind = 'identity' THEN coalesce(l.ended_at, $9) ELSE l.ended_at END
    FROM kept k WHERE l.log_id = $1 AND l.link = k.link
)
DELETE FROM link WHERE log_id = $1 AND link = ANY($4::uuid[]) AND link NOT IN (SELECT * FROM kept);

-- name: suppress :exec
-- Tombstones; a longer one stays. None names the erasure: that would lead from an address to the entries of a person.
-- Whoever else has come to have an identifier since ($5, $6: the strands that went) is advertised to as before.
INSERT INTO consent_state (log_id, identifier, purpose, channel, contact, recipient, slot, grade, tenure, via, status,
                           occurred_at, recorded_at, expires_at, notice, notice_version, language, method, event)
SELECT $1, s.identifier, '*', '', '', '', 8, 0, 0, '', 'suppressed', $4, $4, s.until, '', 0, '', '', gen_random_uuid()
FROM unnest($2::bytea[], $3::timestamptz[]) AS s (identifier, until)
WHERE NOT EXISTS (
    SELECT FROM strand k WHERE k.log_id = $1 AND k.identifier = s.identifier AND k.tenure > coalesce((
        SELECT max(o.tenure) FROM unnest($5::bytea[], $6::integer[]) AS o (identifier, tenure)
        WHERE o.identifier = s.identifier
    ), 0)
)
ON CONFLICT (log_id, identifier, purpose, channel, contact, recipient, slot, grade, tenure, via) DO UPDATE
SET recorded_at = excluded.recorded_at, occurred_at = excluded.occurred_at, event = excluded.event,
    expires_at = greatest(excluded.expires_at, consent_state.expires_at);
