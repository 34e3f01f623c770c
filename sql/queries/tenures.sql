-- Who stands for whom now, and the rows that stand for them: all that a decision about a person needs, in one statement.

-- name: read_persons :many
-- $2: the identifiers asked about; $3: whether each is a thing that changes hands; $4: the moment, or null for now. For each person the account (or the
-- identifier itself, where it is linked to none), then whatever is linked to it now, then groups and guardians. Beside
-- each the rows that stand for it, or nulls. What was said about a thing outside its present tenure is left out.
WITH head AS MATERIALIZED (
    SELECT epoch, size, policy, frozen, first_key, last_key, coalesce($4::timestamptz, greatest(recorded_at, clock_timestamp())) AS now
    FROM ledger_head WHERE log_id = $1
), asked AS MATERIALIZED (
    SELECT DISTINCT ON (coalesce(l.anchor, a.identifier)) coalesce(l.anchor, a.identifier) AS account,
           a.shared AND l.anchor IS NULL AS shared
    FROM head h
    CROSS JOIN unnest($2::bytea[], $3::boolean[]) AS a (identifier, shared)
    LEFT JOIN LATERAL (
        SELECT anchor FROM link
        WHERE log_id = $1 AND identifier = a.identifier AND kind = 'identity' AND ended_at IS NULL
          AND annulled_at IS NULL AND (until IS NULL OR until > h.now)
        LIMIT 1
    ) l ON true
), person AS MATERIALIZED (
    SELECT a.account, a.account AS identifier, 'self' AS kind, NULL::uuid AS link,
           CASE WHEN a.shared THEN 0
                ELSE coalesce((SELECT max(tenure) FROM strand WHERE log_id = $1 AND identifier = a.account), 0)
           END AS tenure,
           CASE WHEN a.shared THEN (
               SELECT coalesce(max(tenure), 0) FROM link
               WHERE log_id = $1 AND identifier = a.account AND kind = 'identity' AND annulled_at IS NULL
           ) ELSE 0 END AS base,
           a.shared,
           CASE WHEN a.shared THEN (
               SELECT max(least(ended_at, until)) FROM link
               WHERE log_id = $1 AND identifier = a.account AND kind = 'identity' AND annulled_at IS NULL
           ) END AS began_at,
           NULL::timestamptz AS until
    FROM asked a
    UNION ALL
    SELECT a.account, l.identifier, l.kind, l.link, l.tenure, l.base, l.shared, l.began_at, l.until
    FROM head h CROSS JOIN asked a
    JOIN link l ON l.log_id = $1 AND l.anchor = a.account AND l.kind = 'identity'
    WHERE l.ended_at IS NULL AND l.annulled_at IS NULL AND (l.until IS NULL OR l.until > h.now)
), member AS (
    SELECT * FROM person
    UNION ALL
    SELECT p.account, l.anchor, l.kind, l.link, 0, 0, false, l.began_at, l.until
    FROM head h CROSS JOIN person p
    JOIN link l ON l.log_id = $1 AND l.identifier = p.identifier AND l.kind IN ('group', 'guardian')
    WHERE l.ended_at IS NULL AND l.annulled_at IS NULL AND (l.until IS NULL OR l.until > h.now)
)
SELECT h.epoch, h.size, h.policy, h.frozen, h.first_key, h.last_key, h.now,
       m.account, m.identifier AS member, m.kind, m.link, m.tenure AS member_tenure, m.base, m.shared, m.began_at, m.until,
       s.identifier, s.purpose, s.channel, s.contact, s.recipient, s.slot, s.grade, s.tenure, s.via, s.status,
       s.occurred_at, s.recorded_at, s.expires_at, s.notice, s.notice_version, s.language, s.method, s.event, s.linked_at,
       s.origin, s.account
FROM head h
LEFT JOIN member m ON true
LEFT JOIN consent_state s ON s.log_id = $1 AND s.identifier = m.identifier AND m.kind <> 'guardian'
    AND (NOT m.shared OR s.tenure = m.tenure OR (m.tenure = 0 AND s.tenure > m.base));

-- name: read_names :many
-- The current strands of identifiers, with what seals their values.
SELECT DISTINCT ON (identifier) identifier, tenure, namespace, value, key
FROM strand
WHERE log_id = $1 AND identifier = ANY($2::bytea[])
ORDER BY identifier, tenure DESC;

-- name: read_strands :many
-- Every strand of the person that an identifier stands for, at the moment $4: of the account, of what is linked to it now,
-- and of whatever was linked to either and truly so. A strand that is somebody else's tenure stays; so does what a thing
-- ($3) was before it changed hands, and what an account was before and after it was a member of another one.
WITH account AS MATERIALIZED (
    SELECT coalesce((
        SELECT anchor FROM link
        WHERE log_id = $1 AND identifier = $2 AND kind = 'identity' AND ended_at IS NULL AND annulled_at IS NULL
          AND (until IS NULL OR until > $4)
        LIMIT 1
    ), $2) AS identifier
), whole AS MATERIALIZED (
    SELECT identifier FROM account
    UNION
    SELECT l.identifier FROM account a
    JOIN link l ON l.log_id = $1 AND l.anchor = a.identifier AND l.kind = 'identity'
    WHERE l.ended_at IS NULL AND l.annulled_at IS NULL AND (l.until IS NULL OR l.until > $4) AND NOT l.shared
), mine AS MATERIALIZED (
    SELECT a.identifier, CASE WHEN $3::boolean THEN (
               SELECT coalesce(max(tenure), 0) FROM link
               WHERE log_id = $1 AND identifier = a.identifier AND kind = 'identity' AND annulled_at IS NULL
           ) ELSE 0 END AS above, NULL::integer AS upto, 0 AS tenure, a.identifier AS anchor
    FROM account a
    UNION ALL
    SELECT l.identifier, CASE WHEN l.shared THEN l.tenure - 1 ELSE l.base END,
           CASE WHEN l.shared OR l.ended_at IS NOT NULL OR l.until <= $4 THEN l.tenure END, l.tenure, l.anchor
    FROM whole w
    JOIN link l ON l.log_id = $1 AND l.anchor = w.identifier AND l.kind = 'identity' AND l.annulled_at IS NULL
)
SELECT DISTINCT s.identifier, s.tenure, s.namespace, s.key, s.value, s.events, s.identifier = a.identifier AS is_account,
       s.identifier IN (SELECT identifier FROM whole) AS is_whole
FROM account a CROSS JOIN mine m
JOIN strand s ON s.log_id = $1 AND s.identifier = m.identifier
    AND s.tenure > m.above AND (m.upto IS NULL OR s.tenure <= m.upto)
    AND (m.upto IS NULL OR s.tenure = m.tenure OR s.namespace <> 'login')
WHERE NOT EXISTS (
    SELECT FROM link o
    WHERE o.log_id = $1 AND o.identifier = s.identifier AND o.kind = 'identity' AND o.tenure = s.tenure
      AND o.annulled_at IS NULL AND o.anchor <> m.anchor
)
ORDER BY s.identifier, s.tenure;
