-- The write path: one statement a batch, on the condition that the head is as it was read; else under its lock.

-- name: read_answer :one
SELECT k.body, k.identifier, k.answer, k.event AS answer_event, k.tenure AS answer_tenure, k.idx AS answer_idx,
       k.size AS answer_size, s.key AS answer_key
FROM idempotency k
LEFT JOIN strand s ON s.log_id = $1 AND s.identifier = k.identifier AND s.tenure = k.tenure
WHERE k.log_id = $1 AND k.key = $2;

-- name: read_batch :many
-- The head, and for each act of the batch, in its order: the current strand of its identifier, and an answer already
-- given under its key. LIMIT keeps each look-up a look-up: the one plan may be made while the tables are still empty.
SELECT h.epoch, h.size, h.policy, h.frozen, h.first_key, h.last_key, greatest(h.recorded_at, clock_timestamp()) AS now,
       CASE WHEN a.n = 1 THEN h.frontier ELSE '' END AS frontier,
       greatest(i.tenure, l.tenure, 0) AS tenure, coalesce(l.tenure >= i.tenure, false) AS tenured,
       coalesce(i.events, 0) AS events, i.key,
       k.body, k.answer, k.event AS answer_event, k.tenure AS answer_tenure, k.idx AS answer_idx,
       k.size AS answer_size, k.strand_key AS answer_key
FROM ledger_head h
CROSS JOIN unnest($2::bytea[], $3::bytea[]) WITH ORDINALITY AS a (key, identifier, n)
LEFT JOIN LATERAL (
    SELECT o.body, o.answer, o.event, o.tenure, o.idx, o.size,
           (SELECT s.key FROM strand s WHERE s.log_id = $1 AND s.identifier = o.identifier AND s.tenure = o.tenure)
               AS strand_key
    FROM idempotency o
    WHERE o.log_id = $1 AND o.key = a.key
    LIMIT 1
) k ON true
LEFT JOIN LATERAL (
    SELECT s.tenure, s.events, s.key FROM strand s
    WHERE s.log_id = $1 AND s.identifier = a.identifier
    ORDER BY s.tenure DESC
    LIMIT 1
) i ON true
LEFT JOIN LATERAL (
    SELECT max(tenure) AS tenure FROM link
    WHERE log_id = $1 AND identifier = a.identifier AND kind = 'identity' AND annulled_at IS NULL
) l ON true
WHERE h.log_id = $1
ORDER BY a.n;

-- name: write_batch :one
-- Everything that a batch leaves behind, in one statement that commits by itself: all of it, or nothing if anything of the
-- ledger changed since it was read (the head's update waits for whoever holds it, and then looks again).
-- Event n of the batch takes the n-th index; a new state takes from its event what they share. States travel as JSON,
-- which costs client and server together less than arrays.
WITH head AS (
    UPDATE ledger_head SET size = $3 + cardinality($6::uuid[]), frontier = $40, recorded_at = $2
    WHERE log_id = $1 AND size = $3 AND epoch = $4 AND policy = $5 AND frozen IS NULL
    RETURNING log_id
), events AS (
    SELECT h.log_id, e.*
    FROM head h
    CROSS JOIN unnest($6::uuid[], $7::bytea[], $8::int[], $9::bigint[], $10::text[], $11::text[], $12::text[],
                      $13::smallint[], $14::bytea[], $15::bytea[], $16::bytea[], $17::bytea[],
                      $18::text[], $19::int[], $20::text[], $21::text[]) WITH ORDINALITY
        AS e (event, identifier, tenure, sequence, purposes, statuses, credential, grade, payload, key, body,
              answer, notice, notice_version, language, method, n)
), entries AS (
    INSERT INTO ledger_entry (log_id, idx, entry)
    SELECT h.log_id, $3 + n - 1, entry FROM head h CROSS JOIN unnest($41::bytea[]) WITH ORDINALITY AS e (entry, n)
), history AS (
    INSERT INTO event (log_id, recorded_at, kind, idx, event, identifier, tenure, sequence, purposes, statuses,
                       credential, grade, payload)
    SELECT log_id, $2, 'consent', $3 + n - 1, event, identifier, tenure, sequence, string_to_array(purposes, ','),
           string_to_array(statuses, ','), credential, grade, payload
    FROM events
), answers AS (
    INSERT INTO idempotency (log_id, recorded_at, key, body, event, identifier, tenure, idx, size, answer)
    SELECT log_id, $2, key, body, event, identifier, tenure, $3 + n - 1,
           $3 + cardinality($6::uuid[]), answer
    FROM events
), strands AS (
    INSERT INTO strand (log_id, identifier, tenure, namespace, key, value, events)
    SELECT h.log_id, i.*
    FROM head h
    CROSS JOIN unnest($22::bytea[], $23::int[], $24::text[], $25::bytea[], $26::bytea[], $27::bigint[]) AS i
), strands_again AS (
    UPDATE strand s SET events = i.events
    FROM head h CROSS JOIN unnest($28::bytea[], $29::int[], $30::bigint[]) AS i (identifier, tenure, events)
    WHERE s.log_id = $1 AND s.identifier = i.identifier AND s.tenure = i.tenure
), contacts AS (
    INSERT INTO contact (log_id, identifier, tenure, contact, value)
    SELECT h.log_id, c.* FROM head h CROSS JOIN unnest($31::bytea[], $32::int[], $33::bytea[], $34::bytea[]) AS c
    ON CONFLICT (log_id, identifier, tenure, contact) DO NOTHING
), conflicts AS (
    INSERT INTO conflict (log_id, link, purpose, channel, opened_at)
    SELECT h.log_id, c.*, $2 FROM head h CROSS JOIN unnest($37::uuid[], $38::text[], $39::text[]) AS c
    ON CONFLICT (log_id, link, purpose, channel) DO NOTHING
), states AS (
    INSERT INTO consent_state (log_id, recorded_at, identifier, purpose, channel, contact, recipient, slot, grade, tenure,
                               via, status, occurred_at, expires_at, notice, notice_version, language, method, event)
    SELECT e.log_id, $2, e.identifier, s.purpose, coalesce(s.channel, ''), decode(coalesce(s.contact, ''), 'base64'),
           coalesce(s.recipient, ''), s.slot, e.grade, e.tenure, '', s.status, coalesce(s.occurred_at, $2),
           s.expires_at, e.notice, e.notice_version, e.language, e.method, e.event
    FROM json_to_recordset($35::json)
        AS s (n bigint, purpose text, channel text, contact text, recipient text, slot smallint, status text,
              occurred_at timestamptz, expires_at timestamptz)
    JOIN events e USING (n)
), states_again AS (
    -- Written as inserts that collide, because those always go by the key.
    INSERT INTO consent_state (log_id, identifier, purpose, channel, contact, recipient, slot, grade, tenure, via, status,
                               occurred_at, recorded_at, expires_at, notice, notice_version, language, method, event,
                               linked_at, origin, account)
    SELECT h.log_id, decode(identifier, 'base64'), purpose, channel, decode(contact, 'base64'), recipient, slot, grade,
           tenure, decode(via, 'base64'), status, occurred_at, recorded_at, expires_at, notice, notice_version, language,
           method, event, linked_at, decode(origin, 'base64'), decode(account, 'base64')
    FROM head h
    CROSS JOIN json_to_recordset($36::json)
        AS s (identifier text, purpose text, channel text, contact text, recipient text, slot smallint, grade smallint,
              tenure int, via text, status text, occurred_at timestamptz, recorded_at timestamptz,
              expires_at timestamptz, notice text, notice_version int, language text, method text, event uuid,
              linked_at timestamptz, origin text, account text)
    ON CONFLICT (log_id, identifier, purpose, channel, contact, recipient, slot, grade, tenure, via) DO UPDATE
    SET status = excluded.status, occurred_at = excluded.occurred_at, recorded_at = excluded.recorded_at,
        expires_at = excluded.expires_at, notice = excluded.notice, notice_version = excluded.notice_version,
        language = excluded.language, method = excluded.method, event = excluded.event, linked_at = excluded.linked_at,
        origin = excluded.origin, account = excluded.account
)
SELECT count(*) AS heads FROM head;
