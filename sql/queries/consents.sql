-- The write path. All of it runs under the head's lock, in one transaction per batch.

-- name: read_batch :many
-- For each act of the batch, in its order: an answer already given under its key, and how many events its identifier has.
SELECT k.body, k.answer, coalesce(i.events, 0) AS events
FROM unnest($2::text[], $3::bytea[], $4::bytea[], $5::bytea[]) WITH ORDINALITY AS a (credential, device, key, identifier, n)
LEFT JOIN idempotency k
    ON k.log_id = $1 AND k.credential = a.credential AND k.device = a.device AND k.key = a.key
LEFT JOIN identifier i ON i.log_id = $1 AND i.identifier = a.identifier
ORDER BY a.n;

-- name: read_states :many
-- The rows that stand for the identifiers of the batch.
SELECT identifier, purpose, channel, contact, recipient, slot, grade, status, occurred_at, recorded_at, expires_at,
       notice, notice_version, language, method, event
FROM consent_state
WHERE log_id = $1 AND identifier = ANY($2::bytea[]);

-- name: write_batch :exec
-- Everything new that a batch leaves behind, in one statement. A state takes from its event (n) what they share.
WITH events AS (
    SELECT *
    FROM unnest($3::bigint[], $4::uuid[], $5::bytea[], $6::bigint[], $7::text[], $8::text[], $9::text[],
                $10::smallint[], $11::bytea[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bytea[], $16::text[],
                $17::int[], $18::text[], $19::text[]) WITH ORDINALITY
        AS e (idx, event, identifier, sequence, purposes, statuses, credential, grade, payload, device, key, body,
              answer, notice, notice_version, language, method, n)
), head AS (
    UPDATE ledger_head SET size = size + cardinality($3::bigint[]), recorded_at = $2 WHERE log_id = $1
), history AS (
    INSERT INTO consent_event (log_id, recorded_at, idx, event, identifier, sequence, purposes, statuses, credential,
                               grade, payload)
    SELECT $1, $2, idx, event, identifier, sequence, string_to_array(purposes, ','), string_to_array(statuses, ','),
           credential, grade, payload
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
SELECT $1, $2, e.identifier, s.purpose, s.channel, s.contact, s.recipient, s.slot, e.grade, s.status, s.occurred_at,
       s.expires_at, e.notice, e.notice_version, e.language, e.method, e.event
FROM unnest($26::bigint[], $27::text[], $28::text[], $29::bytea[], $30::text[], $31::smallint[], $32::text[],
            $33::timestamptz[], $34::timestamptz[])
    AS s (n, purpose, channel, contact, recipient, slot, status, occurred_at, expires_at)
JOIN events e USING (n);

-- name: rewrite_batch :exec
-- What a batch changes in rows that stood before: an identifier's count, and states that gave way.
WITH identifiers AS (
    UPDATE identifier i SET events = n.events
    FROM unnest($3::bytea[], $4::bigint[]) AS n (identifier, events)
    WHERE i.log_id = $1 AND i.identifier = n.identifier
)
UPDATE consent_state s
SET status = n.status, occurred_at = n.occurred_at, recorded_at = $2, expires_at = n.expires_at, notice = n.notice,
    notice_version = n.notice_version, language = n.language, method = n.method, event = n.event
FROM unnest($5::bytea[], $6::text[], $7::text[], $8::bytea[], $9::text[], $10::smallint[], $11::smallint[],
            $12::text[], $13::timestamptz[], $14::timestamptz[], $15::text[], $16::int[], $17::text[], $18::text[],
            $19::uuid[])
    AS n (identifier, purpose, channel, contact, recipient, slot, grade, status, occurred_at, expires_at, notice,
          notice_version, language, method, event)
WHERE s.log_id = $1 AND s.identifier = n.identifier AND s.purpose = n.purpose AND s.channel = n.channel
  AND s.contact = n.contact AND s.recipient = n.recipient AND s.slot = n.slot AND s.grade = n.grade;
