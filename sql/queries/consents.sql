-- The write path. All of it runs under the head's lock, in one transaction per batch.

-- name: read_answer :one
SELECT body, answer FROM idempotency WHERE log_id = $1 AND credential = $2 AND device = $3 AND key = $4;

-- name: read_batch :many
-- The head, and for each act of the batch, in its order: how many events its identifier has, and an answer already given
-- under its key. LIMIT keeps each look-up a look-up: the one plan may be made while the tables are still empty.
SELECT h.epoch, h.size, h.policy, h.frozen, greatest(h.recorded_at, clock_timestamp()) AS now,
       coalesce(i.events, 0) AS events, k.body, k.answer
FROM ledger_head h
CROSS JOIN unnest($2::text[], $3::bytea[], $4::bytea[], $5::bytea[]) WITH ORDINALITY
    AS a (credential, device, key, identifier, n)
LEFT JOIN LATERAL (
    SELECT body, answer FROM idempotency
    WHERE log_id = $1 AND credential = a.credential AND device = a.device AND key = a.key
    LIMIT 1
) k ON true
LEFT JOIN LATERAL (
    SELECT events FROM identifier WHERE log_id = $1 AND identifier = a.identifier LIMIT 1
) i ON true
WHERE h.log_id = $1
ORDER BY a.n;

-- name: read_states :many
-- The rows that stand for the identifiers of the batch.
SELECT identifier, purpose, channel, contact, recipient, slot, grade, status, occurred_at, recorded_at, expires_at,
       notice, notice_version, language, method, event
FROM consent_state
WHERE log_id = $1 AND identifier = ANY($2::bytea[]);

-- name: write_batch :one
-- Everything that a batch leaves behind, in one statement that commits by itself: all of it, or nothing if anything of the
-- ledger changed since it was read (the head's update waits for whoever holds it, and then looks again).
-- Event n of the batch takes the n-th index; a new state takes from its event what they share. States travel as JSON,
-- which costs client and server together less than arrays.
WITH head AS (
    UPDATE ledger_head SET size = $3 + cardinality($6::uuid[]), recorded_at = $2
    WHERE log_id = $1 AND size = $3 AND epoch = $4 AND policy = $5 AND NOT frozen
    RETURNING log_id
), events AS (
    SELECT h.log_id, e.*
    FROM head h
    CROSS JOIN unnest($6::uuid[], $7::bytea[], $8::bigint[], $9::text[], $10::text[], $11::text[], $12::smallint[],
                      $13::bytea[], $14::bytea[], $15::bytea[], $16::bytea[], $17::bytea[], $18::text[], $19::int[],
                      $20::text[], $21::text[]) WITH ORDINALITY
        AS e (event, identifier, sequence, purposes, statuses, credential, grade, payload, device, key, body, answer,
              notice, notice_version, language, method, n)
), history AS (
    INSERT INTO consent_event (log_id, recorded_at, idx, event, identifier, sequence, purposes, statuses, credential,
                               grade, payload)
    SELECT log_id, $2, $3 + n - 1, event, identifier, sequence, string_to_array(purposes, ','),
           string_to_array(statuses, ','), credential, grade, payload
    FROM events
), answers AS (
    INSERT INTO idempotency (log_id, recorded_at, credential, device, key, body, event, answer)
    SELECT log_id, $2, credential, device, key, body, event, answer FROM events
), identifiers AS (
    INSERT INTO identifier (log_id, identifier, namespace, value, events)
    SELECT h.log_id, i.*
    FROM head h CROSS JOIN unnest($22::bytea[], $23::text[], $24::text[], $25::bigint[]) AS i
), identifiers_again AS (
    INSERT INTO identifier (log_id, identifier, namespace, value, events)
    SELECT h.log_id, i.*
    FROM head h CROSS JOIN unnest($26::bytea[], $27::text[], $28::text[], $29::bigint[]) AS i
    ON CONFLICT (log_id, identifier) DO UPDATE SET events = excluded.events
), contacts AS (
    INSERT INTO contact (log_id, contact, value)
    SELECT h.log_id, c.* FROM head h CROSS JOIN unnest($30::bytea[], $31::text[]) AS c
    ON CONFLICT (log_id, contact) DO NOTHING
), states AS (
    INSERT INTO consent_state (log_id, recorded_at, identifier, purpose, channel, contact, recipient, slot, grade,
                               status, occurred_at, expires_at, notice, notice_version, language, method, event)
    SELECT e.log_id, $2, e.identifier, s.purpose, coalesce(s.channel, ''), decode(coalesce(s.contact, ''), 'base64'),
           coalesce(s.recipient, ''), s.slot, e.grade, s.status, coalesce(s.occurred_at, $2), s.expires_at, e.notice,
           e.notice_version, e.language, e.method, e.event
    FROM json_to_recordset($32::json)
        AS s (n bigint, purpose text, channel text, contact text, recipient text, slot smallint, status text,
              occurred_at timestamptz, expires_at timestamptz)
    JOIN events e USING (n)
), states_again AS (
    -- Written as inserts that collide, because those always go by the key.
    INSERT INTO consent_state (log_id, identifier, purpose, channel, contact, recipient, slot, grade, status,
                               occurred_at, recorded_at, expires_at, notice, notice_version, language, method, event)
    SELECT h.log_id, decode(identifier, 'base64'), purpose, channel, decode(contact, 'base64'), recipient, slot, grade,
           status, occurred_at, recorded_at, expires_at, notice, notice_version, language, method, event
    FROM head h
    CROSS JOIN json_to_recordset($33::json)
        AS s (identifier text, purpose text, channel text, contact text, recipient text, slot smallint, grade smallint,
              status text, occurred_at timestamptz, recorded_at timestamptz, expires_at timestamptz, notice text,
              notice_version int, language text, method text, event uuid)
    ON CONFLICT (log_id, identifier, purpose, channel, contact, recipient, slot, grade) DO UPDATE
    SET status = excluded.status, occurred_at = excluded.occurred_at, recorded_at = excluded.recorded_at,
        expires_at = excluded.expires_at, notice = excluded.notice, notice_version = excluded.notice_version,
        language = excluded.language, method = excluded.method, event = excluded.event
)
SELECT count(*) AS heads FROM head;
