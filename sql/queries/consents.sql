-- The write path. All of it runs under the head's lock, in one transaction per batch.

-- name: read_answer :one
SELECT body, answer FROM idempotency WHERE log_id = $1 AND credential = $2 AND device = $3 AND key = $4;

-- name: read_batch :many
-- For each act of the batch, in its order: an answer already given under its key, and how many events its identifier has.
-- LIMIT keeps each look-up a look-up: the one plan may be made while the tables are still empty.
SELECT k.body, k.answer, coalesce(i.events, 0) AS events
FROM unnest($2::text[], $3::bytea[], $4::bytea[], $5::bytea[]) WITH ORDINALITY AS a (credential, device, key, identifier, n)
LEFT JOIN LATERAL (
    SELECT body, answer FROM idempotency
    WHERE log_id = $1 AND credential = a.credential AND device = a.device AND key = a.key
    LIMIT 1
) k ON true
LEFT JOIN LATERAL (
    SELECT events FROM identifier WHERE log_id = $1 AND identifier = a.identifier LIMIT 1
) i ON true
ORDER BY a.n;

-- name: read_states :many
-- The rows that stand for the identifiers of the batch.
SELECT identifier, purpose, channel, contact, recipient, slot, grade, status, occurred_at, recorded_at, expires_at,
       notice, notice_version, language, method, event
FROM consent_state
WHERE log_id = $1 AND identifier = ANY($2::bytea[]);

-- name: write_batch :exec
-- Everything new that a batch leaves behind, in one statement. Event n of the batch takes the n-th index; a state takes
-- from its event what they share. States travel as JSON, which costs client and server together less than arrays.
WITH events AS (
    SELECT *
    FROM unnest($4::uuid[], $5::bytea[], $6::bigint[], $7::text[], $8::text[], $9::text[], $10::smallint[],
                $11::bytea[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bytea[], $16::text[], $17::int[],
                $18::text[], $19::text[]) WITH ORDINALITY
        AS e (event, identifier, sequence, purposes, statuses, credential, grade, payload, device, key, body, answer,
              notice, notice_version, language, method, n)
), head AS (
    UPDATE ledger_head SET size = $3 + cardinality($4::uuid[]), recorded_at = $2 WHERE log_id = $1
), history AS (
    INSERT INTO consent_event (log_id, recorded_at, idx, event, identifier, sequence, purposes, statuses, credential,
                               grade, payload)
    SELECT $1, $2, $3 + n - 1, event, identifier, sequence, string_to_array(purposes, ','),
           string_to_array(statuses, ','), credential, grade, payload
    FROM events
), answers AS (
    INSERT INTO idempotency (log_id, recorded_at, credential, device, key, body, event, answer)
    SELECT $1, $2, credential, device, key, body, event, answer FROM events
), identifiers AS (
    INSERT INTO identifier (log_id, identifier, namespace, value, events)
    SELECT $1, i.* FROM unnest($20::bytea[], $21::text[], $22::text[], $23::bigint[]) AS i
), contacts AS (
    INSERT INTO contact (log_id, contact, value)
    SELECT $1, c.* FROM unnest($24::bytea[], $25::text[]) AS c
    ON CONFLICT (log_id, contact) DO NOTHING
)
INSERT INTO consent_state (log_id, recorded_at, identifier, purpose, channel, contact, recipient, slot, grade, status,
                           occurred_at, expires_at, notice, notice_version, language, method, event)
SELECT $1, $2, e.identifier, s.purpose, coalesce(s.channel, ''), decode(coalesce(s.contact, ''), 'base64'),
       coalesce(s.recipient, ''), s.slot, e.grade, s.status, coalesce(s.occurred_at, $2), s.expires_at, e.notice,
       e.notice_version, e.language, e.method, e.event
FROM json_to_recordset($26::json)
    AS s (n bigint, purpose text, channel text, contact text, recipient text, slot smallint, status text,
          occurred_at timestamptz, expires_at timestamptz)
JOIN events e USING (n);

-- name: rewrite_batch :exec
-- What a batch changes in rows that stood before: an identifier's count, and states that gave way. Written as inserts
-- that collide, because those always go by the key.
WITH identifiers AS (
    INSERT INTO identifier (log_id, identifier, namespace, value, events)
    SELECT $1, i.* FROM unnest($2::bytea[], $3::text[], $4::text[], $5::bigint[]) AS i
    ON CONFLICT (log_id, identifier) DO UPDATE SET events = excluded.events
)
INSERT INTO consent_state (log_id, identifier, purpose, channel, contact, recipient, slot, grade, status, occurred_at,
                           recorded_at, expires_at, notice, notice_version, language, method, event)
SELECT $1, decode(identifier, 'base64'), purpose, channel, decode(contact, 'base64'), recipient, slot, grade, status,
       occurred_at, recorded_at, expires_at, notice, notice_version, language, method, event
FROM json_to_recordset($6::json)
    AS s (identifier text, purpose text, channel text, contact text, recipient text, slot smallint, grade smallint,
          status text, occurred_at timestamptz, recorded_at timestamptz, expires_at timestamptz, notice text,
          notice_version int, language text, method text, event uuid)
ON CONFLICT (log_id, identifier, purpose, channel, contact, recipient, slot, grade) DO UPDATE
SET status = excluded.status, occurred_at = excluded.occurred_at, recorded_at = excluded.recorded_at,
    expires_at = excluded.expires_at, notice = excluded.notice, notice_version = excluded.notice_version,
    language = excluded.language, method = excluded.method, event = excluded.event;
